package cli

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/daemon"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Commands are all commands, for who describes them. They are not to be run.
func Commands() *cobra.Command {
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}
	return a.newRoot()
}

// RegisterMetrics registers all that /metrics of `run` with this file would show,
// for who describes it.
func RegisterMetrics(reg daemon.Registry, file *mapping.File) error {
	if err := registerProcess(reg, readBuildInfo()); err != nil {
		return err
	}
	return daemon.RegisterMetrics(reg, file)
}
