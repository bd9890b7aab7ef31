package daemon

import (
	"context"
	"time"
)

// Supervisor is told of the daemon's life: the service manager. Its methods are called
// from several goroutines and must not wait.
type Supervisor interface {
	Ready(status string) error // it streams; a reload is over
	Reloading() error
	Stopping() error
	Status(text string) error
	Alive() error            // called only while the pipeline is not stuck
	Watchdog() time.Duration // Alive is wanted that often; 0 for never
}

// noSupervisor is for a process that nobody supervises.
type noSupervisor struct{}

func (noSupervisor) Ready(string) error      { return nil }
func (noSupervisor) Reloading() error        { return nil }
func (noSupervisor) Stopping() error         { return nil }
func (noSupervisor) Status(string) error     { return nil }
func (noSupervisor) Alive() error            { return nil }
func (noSupervisor) Watchdog() time.Duration { return 0 }

// told logs what a supervisor could not be told; that is no reason to stop.
func (d *daemon) told(err error) {
	if err != nil {
		d.log.Warn("the service manager was not told", "error", err)
	}
}

// supervise feeds the watchdog while the pipeline lives, and tells when it ends. A stuck
// pipeline gets no more food: the manager restarts the process then, with the reason in
// the log.
func (d *daemon) supervise(ctx context.Context) error {
	s := d.o.Supervisor
	var tick <-chan time.Time
	if w := s.Watchdog(); w > 0 {
		t := time.NewTicker(w / 3)
		defer t.Stop()
		tick = t.C
		d.told(s.Alive())
	}
	wasStuck := false
	for {
		select {
		case <-ctx.Done():
			d.told(s.Stopping())
			return nil
		case <-tick:
		}
		err := d.pulse.stuck(time.Now())
		if err == nil {
			wasStuck = false
			d.told(s.Alive())
			continue
		}
		if !wasStuck {
			wasStuck = true
			d.log.Error("the watchdog is not fed any more", "error", err)
			d.told(s.Status(err.Error()))
		}
	}
}
