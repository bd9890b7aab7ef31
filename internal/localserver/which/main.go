// Command which says which servers the demo and the tests would start, one a line.
// It exits 2 when one is missing, with what to install, and 1 when something else is
// wrong, which installing would not mend. The set-up script asks it, so that there is
// one answer to the question.
//
//	go run ./internal/localserver/which [postgres] [redis]
//	go run ./internal/localserver/which -sweep
//
// The second one removes the containers that killed owners left.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
)

func main() {
	if slices.Equal(os.Args[1:], []string{"-sweep"}) {
		localserver.SweepContainers(context.Background(), localserver.Docker{})
		return
	}
	code := 0
	for _, s := range []struct {
		name     string
		describe func(context.Context) (string, error)
	}{
		{"postgres", localserver.DescribePostgres},
		{"redis", localserver.DescribeRedis},
	} {
		if len(os.Args) > 1 && !slices.Contains(os.Args[1:], s.name) {
			continue
		}
		text, err := s.describe(context.Background())
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", s.name, err)
			if code = 1; errors.Is(err, localserver.ErrMissing) {
				code = 2
			}
			continue
		}
		fmt.Printf("%s: %s\n", s.name, text)
	}
	os.Exit(code)
}
