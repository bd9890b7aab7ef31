package localserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 60 * time.Second
	pollInterval = 10 * time.Millisecond
)

// server is what Postgres and Redis have in common: a program or a container with
// a folder and a port, that can be started and stopped again and again.
type server struct {
	name        string // in errors
	path        string // the folder of this server's files
	ownDir      *Dir   // nil when the caller gave a folder
	port        *port
	account     *account
	container   Container // nil for an installed program
	version     string
	deathSignal syscall.Signal
	launch      func(context.Context) (instance, error)
	ping        func(context.Context) error

	mu     sync.Mutex
	run    instance // nil when it is not running
	closed bool
}

// instance is one run of a server, from its start to its end.
type instance interface {
	ended() <-chan struct{}
	signal(sig syscall.Signal) error // nil also when it has ended
	kill()                           // ends all of its processes, and waits for that
	pid() int
}

func alive(i instance) bool {
	select {
	case <-i.ended():
		return false
	default:
		return true
	}
}

// prepare makes the folder and claims the port.
func (s *server) prepare(dir string, accounts ...string) error {
	var err error
	if s.account, err = serverAccount(accounts...); err != nil {
		return err
	}
	if dir == "" {
		if s.ownDir, err = NewDir(); err != nil {
			return err
		}
		dir = s.ownDir.Path()
	}
	s.path = filepath.Join(dir, s.name)
	for n := 2; ; n++ { // several servers may share a folder
		if err = os.Mkdir(s.path, 0o700); !errors.Is(err, os.ErrExist) {
			break
		}
		s.path = filepath.Join(dir, fmt.Sprintf("%s%d", s.name, n))
	}
	if err == nil {
		err = s.account.own(s.path)
	}
	if err != nil {
		return fmt.Errorf("make the folder for %s: %w", s.name, err)
	}
	s.port, err = claimPort()
	return err
}

// writeFile writes a file of the server's folder that only its account can read.
func (s *server) writeFile(name string, content []byte) error {
	path := filepath.Join(s.path, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("prepare %s: %w", s.name, err)
	}
	if err := s.account.own(path); err != nil {
		return fmt.Errorf("prepare %s: %w", s.name, err)
	}
	return nil
}

func (s *server) logPath() string { return filepath.Join(s.path, "server.log") }

// InContainer says whether the server runs in a container. Its processes have other
// pids there, and its files are not on this machine.
func (s *server) InContainer() bool { return s.container != nil }

// install sets the server up to be an installed program.
func (s *server) install(version string, command func() *exec.Cmd) {
	s.version = version
	s.launch = func(context.Context) (instance, error) {
		cmd := command()
		cmd.SysProcAttr = childAttr(s.account, s.deathSignal)
		p, err := start(cmd, s.logPath())
		if err != nil {
			return nil, err
		}
		return p, nil
	}
}

// command is an installed program run in the server's folder as its account.
func (s *server) command(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Dir = s.path
	cmd.Env = environment()
	cmd.SysProcAttr = childAttr(s.account, syscall.SIGKILL)
	return cmd
}

// Start starts a server that was stopped or killed, on the same port and the same
// files, and waits until it answers.
func (s *server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return fmt.Errorf("start %s: it is closed", s.name)
	case s.run != nil && alive(s.run):
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("no answer within %v", startTimeout))
	defer cancel()
	for {
		run, err := s.launch(ctx)
		if err != nil {
			return fmt.Errorf("start %s: %w", s.name, err)
		}
		s.run = run
		err = s.answer(ctx)
		if err == nil {
			return nil
		}
		// After a SIGKILL the last backends and connections may hold the shared memory
		// or the port for a moment longer; then it ends at once, and is tried again.
		ended := !alive(run)
		s.halt()
		if !ended || ctx.Err() != nil || !errors.Is(err, errEndedAtOnce) {
			return fmt.Errorf("start %s: %w; its log: %s", s.name, err, tail(s.logPath()))
		}
	}
}

// errEndedAtOnce: the server ended before it answered, for a reason that passes.
var errEndedAtOnce = errors.New("it ended before it answered")

func (s *server) answer(ctx context.Context) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	began := time.Now()
	var last error
	for {
		if last = s.ping(ctx); last == nil {
			return nil
		}
		select {
		case <-s.run.ended():
			if time.Since(began) < 5*time.Second && busy(tail(s.logPath())) {
				return errEndedAtOnce
			}
			return errors.New("it ended before it answered")
		case <-ctx.Done():
			return fmt.Errorf("%w; last attempt: %v", context.Cause(ctx), last)
		case <-ticker.C:
		}
	}
}

// halt ends the server without a chance to clean up.
func (s *server) halt() {
	if s.run != nil {
		s.run.kill()
		s.run = nil
	}
}

// Kill ends the server as a crash of its machine does: all of its processes at
// once, with SIGKILL.
func (s *server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.halt()
}

// Signal sends a signal to the server's main process, for example SIGSTOP and
// SIGCONT: a server that hangs is another thing than one that is down.
func (s *server) Signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil || !alive(s.run) {
		return fmt.Errorf("signal %s: it is not running", s.name)
	}
	return s.run.signal(sig)
}

func (s *server) stop(ctx context.Context, sig syscall.Signal) error {
	// Not locked while it waits: a smart shutdown can take for ever, and Kill must
	// be able to end it.
	s.mu.Lock()
	run := s.run
	var err error
	if run != nil && alive(run) {
		err = run.signal(sig)
	}
	s.mu.Unlock()
	if run == nil || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, stopTimeout, fmt.Errorf("still running after %v", stopTimeout))
	defer cancel()
	select {
	case <-run.ended():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w; its log: %s", s.name, context.Cause(ctx), tail(s.logPath()))
	}
}

// Running says whether the server's process is there.
func (s *server) Running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run != nil && alive(s.run)
}

// PID of the server's main process; 0 when it is not running.
func (s *server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil || !alive(s.run) {
		return 0
	}
	return s.run.pid()
}

// Version as the server's program says it, and for a container its image.
func (s *server) Version() string { return s.version }

// Port on 127.0.0.1.
func (s *server) Port() int { return s.port.number }

// LogPath is the file with the server's own log.
func (s *server) LogPath() string { return s.logPath() }

// Close ends the server if it runs and removes everything that it left. It may be
// called twice.
func (s *server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	s.halt()
	if s.container != nil {
		errs = append(errs, s.container.Remove())
	}
	if s.port != nil {
		s.port.release()
	}
	if s.path != "" {
		errs = append(errs, os.RemoveAll(s.path))
	}
	if s.ownDir != nil {
		errs = append(errs, s.ownDir.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close %s: %w", s.name, err)
	}
	return nil
}
