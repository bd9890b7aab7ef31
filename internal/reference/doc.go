// Package reference makes what stands in the repository and is derived from the
// code: the JSON schemas of the files that people write, and the reference pages of
// the commands and the metrics. A test fails when one of them is not what the code
// says; `go generate ./...` writes them again.
package reference

import (
	"fmt"

	"github.com/cdc-invalidator/cdc-invalidator/internal/cli"
	"github.com/cdc-invalidator/cdc-invalidator/mapping/format"
)

//go:generate go run ./generate ../..

// File is a derived file, by its path in the repository.
type File struct {
	Path    string
	Content []byte
}

// Files are all derived files. root is the repository's folder, where the comments
// on the formats' types are read.
func Files(root string) ([]File, error) {
	mappings, err := schemaOf[format.Mappings](root, "A mappings file of cdc-invalidator", refineMappings)
	if err != nil {
		return nil, fmt.Errorf("schema of mappings files: %w", err)
	}
	tests, err := schemaOf[format.Tests](root, "A file of mapping tests for cdc-invalidator", refineTests)
	if err != nil {
		return nil, fmt.Errorf("schema of test files: %w", err)
	}
	metrics, err := metricsPage()
	if err != nil {
		return nil, fmt.Errorf("page of the metrics: %w", err)
	}
	return []File{
		{"mappings.schema.json", mappings},
		{"mappings_test.schema.json", tests},
		{"docs/reference/cli.md", cliPage(cli.Commands())},
		{"docs/reference/metrics.md", metrics},
	}, nil
}
