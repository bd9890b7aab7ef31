package demo

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	checkRound = 300 // entries in one round of the check
	// longestCheck leaves out classes whose budget is too long for the demo.
	longestCheck = 5 * time.Second
)

// checked counts reads whose value was compared with the row's past.
type checked struct {
	reads, stale               int
	controlReads, controlStale int
	example                    string
}

// check looks for stale reads while the shop is at work: reads that returned a value which
// had been replaced longer ago than allowed.
//
// A row that was the same at two moments has had this one value in between (each change
// gives it a version of its own). A read that began later than the first moment plus what is
// allowed, and ended before the second, must have returned it: any other value was
// replaced before the first moment. Rows that changed in between decide nothing.
func (d *demo) check(ctx context.Context, conn *pgx.Conn) error {
	type sample struct {
		e   *entry
		row string
		due time.Time
	}
	uncut := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		samples := make([]sample, checkRound)
		for i := range samples {
			s := &samples[i]
			for s.e = d.traffic.next(); s.e.allowed() > longestCheck; {
				s.e = d.traffic.next()
			}
			var err error
			if s.row, err = s.e.load(uncut, conn); err != nil {
				return err
			}
			s.due = time.Now().Add(s.e.allowed())
		}
		slices.SortFunc(samples, func(a, b sample) int { return a.due.Compare(b.due) })
		for i := range samples {
			s := &samples[i]
			timer := time.NewTimer(time.Until(s.due))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return nil
			}
			value, err := d.read(uncut, s.e)
			if err != nil {
				return err
			}
			plain, err := d.readControl(uncut, s.e, conn)
			if err != nil {
				return err
			}
			row, err := s.e.load(uncut, conn)
			if err != nil {
				return err
			}
			if row == s.row && row != absent { // no row has no version: there may have been one in between
				d.checked.note(s.e, row, value, plain)
			}
		}
	}
	return nil
}

func (c *checked) note(e *entry, row, value, plain string) {
	c.reads++
	c.controlReads++
	if value != row {
		c.stale++
		if c.example == "" {
			c.example = "a read of " + e.name() + " returned " + value + ", its row has long been " + row
		}
	}
	if plain != row {
		c.controlStale++
	}
}

// allowed is how old the entry's value may be: the budget of its class, which is what is
// promised. A machine may be as slow as it likes, for the library does not return what it
// cannot prove to be within it.
func (e *entry) allowed() time.Duration { return e.family.Class.Staleness }
