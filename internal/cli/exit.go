package cli

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// The exit codes, from sysexits.h where it has one. They are part of the
// interface: supervisors restart on 1 and 69, and must not on 64 and 78.
const (
	exitOK          = 0
	exitFailed      = 1
	exitDifferences = 2
	exitUsage       = 64
	exitUnavailable = 69
	exitTimeout     = 75 // EX_TEMPFAIL: the same command may succeed later
	exitConfig      = 78
)

// ExitError is an error that settles the exit code itself. A nil Err prints
// nothing: the command has already said what there is to say.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return e.Err.Error()
}

func (e *ExitError) Unwrap() error { return e.Err }

// usageErrorf is for what a command's own arguments get wrong and cobra cannot
// see; Main adds the hint where to read on.
func usageErrorf(format string, args ...any) error {
	return &ExitError{Code: exitUsage, Err: fmt.Errorf(format, args...)}
}

// exitCode is the one place where errors become exit codes.
func exitCode(err error) int {
	var (
		exit   *ExitError
		faults mapping.Faults
		config *replication.ConfigError
		away   *replication.UnavailableError
		redis  *sink.Error
		path   *fs.PathError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return exit.Code
	// What a person has to mend comes before what waiting mends: with both, a
	// restart would only fail again.
	case errors.As(err, &faults), errors.As(err, &config):
		return exitConfig
	case errors.As(err, &away):
		return exitUnavailable
	case errors.As(err, &redis):
		switch redis.Kind {
		case sink.KindConfiguration:
			return exitConfig
		case sink.KindUnavailable:
			return exitUnavailable
		}
	case errors.As(err, &path) && path.Op != "write": // a full disk is no fault of the configuration
		return exitConfig // the mappings file, or one that it names, cannot be read
	}
	return exitFailed
}
