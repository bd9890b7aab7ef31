package mapping

import (
	"fmt"
	"os"
)

// Load parses a file with the environment and the files of this process.
func Load(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the mappings: %w", err)
	}
	return Parse(path, data, Env{LookupEnv: os.LookupEnv, ReadFile: os.ReadFile})
}

// LoadOffline parses a file for who does not connect with it: what its URLs refer to
// need not be set.
func LoadOffline(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the mappings: %w", err)
	}
	return Parse(path, data, Env{LookupEnv: os.LookupEnv, ReadFile: os.ReadFile, AllowUnset: true})
}
