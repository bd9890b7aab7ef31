// Package cdcinvalidator holds what the program carries with it. The program is
// cmd/cdc-invalidator; what it does is in README.md, and how in ARCHITECTURE.md.
package cdcinvalidator

import _ "embed"

//go:embed mappings.yaml
var exampleMappings []byte

// ExampleMappings is mappings.yaml, the worked example that the demo runs.
func ExampleMappings() []byte { return exampleMappings }

//go:embed mappings.schema.json
var mappingsSchema []byte

// MappingsSchema is the JSON schema of mappings files.
func MappingsSchema() []byte { return mappingsSchema }

//go:embed mappings_test.schema.json
var testsSchema []byte

// TestsSchema is the JSON schema of files of mapping tests.
func TestsSchema() []byte { return testsSchema }
