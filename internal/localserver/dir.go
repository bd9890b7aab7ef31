package localserver

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	dirPrefix = "cdc-invalidator-"
	lockName  = "owner.lock"

	// The path of a Unix socket has at most 107 bytes on Linux and 103 on macOS;
	// this leaves room for "/postgres/.s.PGSQL.65535" below the folder.
	maxDirPath = 75

	// A folder is not swept in its first minute, in which its owner may not have
	// taken its lock yet.
	sweepAge = time.Minute
)

// Dir is a temporary folder for servers. It is locked by its owner for as long as
// that lives, so that the folders of owners that were killed can be told apart and
// removed by the next one.
type Dir struct {
	path string
	lock *os.File
}

// NewDir makes a folder that other accounts can pass through, but not list.
func NewDir() (*Dir, error) {
	base, err := tempBase()
	if err != nil {
		return nil, err
	}
	sweep(base)
	path, err := os.MkdirTemp(base, dirPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a temporary folder: %w", err)
	}
	d := &Dir{path: path}
	if err := os.Chmod(path, 0o711); err == nil {
		d.lock, err = os.Create(filepath.Join(path, lockName))
		if err == nil {
			err = syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		}
		if err == nil {
			return d, nil
		}
	}
	_ = d.Close()
	return nil, fmt.Errorf("lock the temporary folder %s: %w", path, err)
}

// Path of the folder.
func (d *Dir) Path() string { return d.path }

// Close removes the folder with everything in it.
func (d *Dir) Close() error {
	err := os.RemoveAll(d.path)
	if d.lock != nil {
		d.lock.Close()
	}
	if err != nil {
		return fmt.Errorf("remove the temporary folder: %w", err)
	}
	return nil
}

// tempBase is where folders are made: the usual place for temporary files, unless
// the servers' account cannot get there or socket paths would become too long.
func tempBase() (string, error) {
	for _, dir := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		abs, err := filepath.Abs(dir)
		if err != nil || len(abs) > maxDirPath-len(dirPrefix)-10 {
			continue
		}
		if os.Geteuid() != 0 || reachable(abs) {
			return abs, nil
		}
	}
	return "", fmt.Errorf("no folder for temporary files: %s is not reachable for other accounts or its path is too long; set TMPDIR", os.TempDir())
}

// sweep removes the folders of owners that are gone. What it cannot remove now, the
// next one will.
func sweep(base string) {
	locks, _ := filepath.Glob(filepath.Join(base, dirPrefix+"*", lockName))
	for _, path := range locks {
		info, err := os.Stat(path)
		if err != nil || time.Since(info.ModTime()) < sweepAge {
			continue
		}
		lock, err := os.Open(path)
		if err != nil {
			continue // another account's
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
		lock.Close()
	}
}
