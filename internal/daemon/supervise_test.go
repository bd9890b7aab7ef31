package daemon

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// supervisor records what it is told.
type supervisor struct {
	watchdog time.Duration
	told     chan string
}

func (s *supervisor) Ready(status string) error { s.told <- "ready: " + status; return nil }
func (s *supervisor) Reloading() error          { s.told <- "reloading"; return nil }
func (s *supervisor) Stopping() error           { s.told <- "stopping"; return nil }
func (s *supervisor) Status(text string) error  { s.told <- text; return nil }
func (s *supervisor) Alive() error              { s.told <- "alive"; return nil }
func (s *supervisor) Watchdog() time.Duration   { return s.watchdog }

func (s *supervisor) next(t *testing.T) string {
	t.Helper()
	select {
	case text := <-s.told:
		return text
	case <-time.After(10 * time.Second):
		t.Fatal("the supervisor was told nothing")
		return ""
	}
}

func TestWatchdogIsFedWhileThePipelineLives(t *testing.T) {
	s := &supervisor{watchdog: 30 * time.Millisecond, told: make(chan string, 1000)}
	d := &daemon{o: Options{Supervisor: s}, log: slog.New(slog.DiscardHandler)}
	d.health = &health{d: d}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.supervise(ctx) }()

	for _, l := range []struct {
		name    string
		beat    *beat
		silence time.Duration
	}{
		{"reading the log", &d.pulse.receiver, receiverSilence},
		{"applying", &d.pulse.applier, applierSilence},
		{"attaching", &d.pulse.attach, attachSilence},
	} {
		// At rest, and with a sign that is not too old, it is fed.
		l.beat.rest()
		l.beat.again() // a sign from elsewhere does not wake it
		for range 3 {
			if got := s.next(t); got != "alive" {
				t.Fatalf("%s at rest: told %q", l.name, got)
			}
		}
		l.beat.at.Store(time.Now().Add(-l.silence / 2).UnixNano())
		for range 3 {
			if got := s.next(t); got != "alive" {
				t.Fatalf("%s with a sign of life: told %q", l.name, got)
			}
		}
		l.beat.at.Store(time.Now().Add(-2 * l.silence).UnixNano())
		got := s.next(t)
		for got == "alive" { // from before
			got = s.next(t)
		}
		if !strings.Contains(got, "stuck while "+l.name) {
			t.Errorf("%s without a sign of life: told %q", l.name, got)
		}
		if err := d.health.Live(); err == nil || !strings.Contains(err.Error(), l.name) {
			t.Errorf("%s without a sign of life: /livez says %v", l.name, err)
		}
		// Nothing more until the next sign of life.
		time.AfterFunc(5*s.watchdog, l.beat.again)
		if got := s.next(t); got != "alive" {
			t.Errorf("%s: then told %q", l.name, got)
		}
		if d.pulse.stuck(time.Now()) != nil {
			t.Errorf("%s: fed while it was stuck", l.name)
		}
		l.beat.rest()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for got := s.next(t); got != "stopping"; got = s.next(t) {
		if got != "alive" {
			t.Errorf("told %q at the end", got)
		}
	}
}
