package cli

import (
	"encoding/json"
	"os"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// offlineEnv is the process's, where URLs may refer to what is not set.
func offlineEnv() mapping.Env {
	return mapping.Env{LookupEnv: os.LookupEnv, ReadFile: os.ReadFile, AllowUnset: true}
}

// loadPlan reads a mappings file for what needs no server.
func loadPlan(path string) (*mapping.Plan, error) {
	file, err := mapping.LoadOffline(path)
	if err != nil {
		return nil, err
	}
	return mapping.Compile(file)
}

// printJSON prints what a command's --json is documented to be.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
