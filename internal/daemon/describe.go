package daemon

import (
	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// RegisterMetrics registers all that /metrics of a daemon with this file would
// show, for who wants to describe it. Nothing is connected to or started.
func RegisterMetrics(reg Registry, file *mapping.File) error {
	d, err := newDaemon(Options{File: file, Registry: reg})
	if err != nil {
		return err
	}
	admin.RegisterMetrics(reg, d.health)
	return d.sink.Close()
}
