package daemon

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

const (
	// settleInterval is how often it is looked whether more is settled. It adds to how
	// long somebody waits.
	settleInterval = 20 * time.Millisecond
	// settleMarks bounds the positions that wait for a look at the catalogs. What finds no
	// room waits for the look after the next.
	settleMarks = 64
)

// settler publishes up to where everything is applied: sink/settle.go says what that means,
// and knows what is held. Here is known what the log is silent about: a position counts once
// the catalogs have been looked at after it was applied, and what that found is applied too.
//
// It belongs to a session: a position of another one may be of another history.
type settler struct {
	sink    *sink.Redis
	told    func(error)
	leave   context.CancelCauseFunc
	watcher *replication.CatalogWatcher
	nudged  atomic.Uint64 // position of a transaction whose sender waits; 0 for none
	follows atomic.Bool   // the log is the one that the checkpoint is a position in

	marks  []settleMark // applied, not looked at since; oldest first
	looked lsn.LSN
}

type settleMark struct {
	at  time.Time // when it was applied, at the latest
	end lsn.LSN
}

func newSettler(d *daemon, leave context.CancelCauseFunc, w *replication.CatalogWatcher) *settler {
	return &settler{sink: d.sink, told: func(err error) { d.chore(d.checks, choreSettled, err) }, leave: leave, watcher: w}
}

// nudge notes that somebody waits for what was committed up to a position. Any role can ask
// for it: it costs a look at the catalogs, and no more than one at a time.
func (s *settler) nudge(commit lsn.LSN) { s.nudged.Store(uint64(commit)) }

// run settles until ctx ends, and returns nil.
func (s *settler) run(ctx context.Context) error {
	tick := time.NewTicker(settleInterval)
	defer tick.Stop()
	var notBefore time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if now.Before(notBefore) {
				continue
			}
		}
		control, _ := s.sink.Known()
		s.note(time.Now(), control.End)
		err := s.sink.Settle(ctx, s.looked)
		switch {
		case ctx.Err() != nil:
		case endsAttachment(err):
			s.leave(err)
			return nil
		default:
			s.told(err)
			if err == nil {
				continue
			}
			notBefore = time.Now().Add(stateRetry)
		}
	}
}

// note takes the end of the checkpoint, and what has been looked at since others.
func (s *settler) note(now time.Time, end lsn.LSN) {
	if !s.follows.Load() {
		return
	}
	looked := s.watcher.Looked()
	for len(s.marks) > 0 && !looked.Before(s.marks[0].at) {
		s.looked, s.marks = max(s.looked, s.marks[0].end), s.marks[1:]
	}
	newest := s.looked
	if n := len(s.marks); n > 0 {
		newest = s.marks[n-1].end
	}
	if end > newest && len(s.marks) < settleMarks {
		s.marks = append(s.marks, settleMark{now, end})
	}
	if n := lsn.LSN(s.nudged.Load()); n != 0 && end > n {
		s.nudged.CompareAndSwap(uint64(n), 0)
		if s.looked < end {
			s.watcher.Look()
		}
	}
}
