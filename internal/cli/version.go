package cli

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Set by the linker: -X <this package>.version=... A binary made by a plain `go
// build` or `go install` has none of it, and shows what the toolchain recorded.
var (
	version string
	commit  string
	date    string
)

// buildInfo is what `version --json` prints.
type buildInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"` // built from a tree with changes that are in no commit
	Built    string `json:"built,omitempty"`    // of the build, else of the commit; RFC 3339
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readBuildInfo() buildInfo {
	b := buildInfo{
		Version: version, Commit: commit, Built: date,
		Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		if b.Version == "" && info.Main.Version != "(devel)" {
			b.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision" && b.Commit == "":
				b.Commit = s.Value
			case s.Key == "vcs.time" && b.Built == "":
				b.Built = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				b.Modified = true
			}
		}
	}
	if b.Version == "" {
		b.Version = "development"
	}
	return b
}

func (b buildInfo) String() string {
	s := fmt.Sprintf("%s %s", programName, b.Version)
	if b.Commit != "" {
		s += " commit " + b.Commit
		if b.Modified {
			s += " (modified)"
		}
	}
	if b.Built != "" {
		s += " built " + b.Built
	}
	return s + " with " + b.Go + " for " + b.Platform
}

func newVersionCommand(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version, the commit and the toolchain of this binary",
		Example: `  cdc-invalidator version
  cdc-invalidator version --json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b := readBuildInfo()
			if asJSON {
				enc := json.NewEncoder(a.stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(b)
			}
			_, err := fmt.Fprintln(a.stdout, b)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
