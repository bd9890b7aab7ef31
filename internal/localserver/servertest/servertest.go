// Package servertest gives tests their servers: one Postgres and one Redis a test
// binary, started when the first test asks, and a fresh database in them for each
// test. Tests that stop or break a server take a private one.
//
// A package that uses it has
//
//	func TestMain(m *testing.M) { servertest.VerifyMain(m) }
//
// which ends the servers and then looks for leaked goroutines.
//
// A test fails where there is no server. It is never skipped: a suite that passes
// because nothing was tried says nothing.
package servertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
)

// shared holds the servers of this test binary. It is the package's one variable:
// tests of one package have nothing else in common that could carry them.
var shared servers

type servers struct {
	mu       sync.Mutex
	main     bool // VerifyMain runs and will close them
	dir      *localserver.Dir
	postgres *localserver.Postgres
	redis    *localserver.Redis
	err      error // of the first failed start: it is not tried again by each test
	nextDB   int
}

// VerifyMain runs a package's tests, closes the shared servers and fails when
// goroutines are left. It does not return.
func VerifyMain(m *testing.M, options ...goleak.Option) {
	shared.mu.Lock()
	shared.main = true
	shared.mu.Unlock()
	goleak.VerifyTestMain(closing{m}, options...)
}

// redial is for how long goroutines may go on after the tests: a connection pool of go-redis
// whose server was away dials once a second, and finds out only then that it was closed.
const redial = 3 * time.Second

type closing struct{ m *testing.M }

func (c closing) Run() int {
	code := c.m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, "servertest:", err)
		return max(code, 1)
	}
	for end := time.Now().Add(redial); time.Now().Before(end) && goleak.Find() != nil; {
	}
	return code
}

func (s *servers) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if s.postgres != nil {
		errs = append(errs, s.postgres.Close())
	}
	if s.redis != nil {
		errs = append(errs, s.redis.Close())
	}
	if s.dir != nil {
		errs = append(errs, s.dir.Close())
	}
	return errors.Join(errs...)
}

// need runs start once for all tests, and fails t when it failed.
func (s *servers) need(t testing.TB, start func(ctx context.Context, dir string) error) {
	t.Helper()
	if !s.main {
		t.Fatal("servertest: the package's TestMain must call servertest.VerifyMain")
	}
	if s.err == nil && s.dir == nil {
		s.dir, s.err = localserver.NewDir()
	}
	if s.err == nil {
		// Not the test's context: the server outlives the test.
		s.err = start(context.Background(), s.dir.Path())
	}
	if s.err != nil {
		t.Fatalf("servertest: %v", s.err)
	}
}
