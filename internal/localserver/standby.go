package localserver

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// Contained says whether the server runs in a container.
func (p *Postgres) Contained() bool { return p.container != nil }

// StartStandby makes a hot standby of a running server and starts it. It follows the
// server by streaming, without a slot, and asks for the same password. Of the options Dir
// and Settings are used. It needs an installed server (CDC_SERVERS=local).
func (p *Postgres) StartStandby(ctx context.Context, o PostgresOptions) (_ *Postgres, err error) {
	if p.Contained() {
		return nil, errors.New("start a standby: it needs an installed server (CDC_SERVERS=local)")
	}
	s := &Postgres{password: p.password, bin: p.bin}
	s.name, s.deathSignal = "postgres", syscall.SIGQUIT
	s.ping = s.pingPostgres
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	dir := o.Dir
	if dir == "" {
		dir = filepath.Dir(p.path) // beside it: whoever closes both has removed everything
	}
	if err := s.prepare(dir, "postgres", "nobody"); err != nil {
		return nil, err
	}
	s.install(p.version, func() *exec.Cmd { return s.command(filepath.Join(s.bin, "postgres"), "-D", s.dataDir()) })
	copied, err := start(s.command(filepath.Join(s.bin, "pg_basebackup"), "--pgdata", s.dataDir(), "--write-recovery-conf",
		"--wal-method", "stream", "--checkpoint", "fast", "--no-sync",
		"--host", p.path, "--port", strconv.Itoa(p.port.number), "--username", superuser), s.logPath())
	if err != nil {
		return nil, err
	}
	<-copied.done
	if copied.err != nil {
		return nil, fmt.Errorf("pg_basebackup: %w; its log: %s", copied.err, tail(s.logPath()))
	}
	if err := s.appendSettings(o.Settings); err != nil {
		return nil, err
	}
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}
