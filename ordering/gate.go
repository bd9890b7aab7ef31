package ordering

import (
	"context"
	"fmt"
	"time"
)

// SnapshotReader asks the source which transactions are visible now. It must
// ask the same primary that the log comes from, on an ordinary connection.
type SnapshotReader interface {
	ReadSnapshot(ctx context.Context) (Snapshot, error)
}

// Pauses between questions while a transaction stays invisible. It is a moment
// (the committing backend has yet to leave the list of running transactions) or, under
// synchronous replication, as long as the standby takes.
const (
	gatePauseMin = 100 * time.Microsecond
	gatePauseMax = 20 * time.Millisecond
)

// snapshotLife bounds how long a snapshot is trusted. A slot whose tables are quiet
// for days, on a server that is busy with others, gets its next xid from the far half
// of the circle, where an old snapshot takes it for one of long ago.
const snapshotLife = time.Minute

// Gate lets a batch pass once all its transactions are visible to other
// sessions. A snapshot stays good for every transaction that it shows, so a backlog
// passes with one question. Not safe for concurrent use.
type Gate struct {
	src  SnapshotReader
	snap Snapshot
	at   time.Time // when snap was asked for; zero without one
}

// NewGate returns a gate for one attachment: a snapshot of before a restart of
// the source must not be trusted after it, since xids are reused there.
func NewGate(src SnapshotReader) *Gate { return &Gate{src: src} }

// Wait returns when every transaction of the batch is visible, and how many
// questions that took beyond the first. A transaction that nobody can see
// makes nothing stale, so waiting costs no freshness.
func (g *Gate) Wait(ctx context.Context, b *Batch) (repeats int, err error) {
	done := 0 // transactions known to be visible
	if time.Since(g.at) < snapshotLife {
		done = g.visible(b, 0)
	}
	pause := gatePauseMin
	for asked := 0; done < len(b.txns); asked++ {
		if asked > 1 {
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return asked, ctx.Err()
			}
			pause = min(2*pause, gatePauseMax)
		}
		at := time.Now()
		snap, err := g.src.ReadSnapshot(ctx)
		if err != nil {
			return asked, fmt.Errorf("visibility gate: %w", err)
		}
		g.snap, g.at = snap, at
		done = g.visible(b, done)
		repeats = asked
	}
	return repeats, nil
}

// Snapshot is the newest one that a Wait saw.
func (g *Gate) Snapshot() Snapshot { return g.snap }

func (g *Gate) visible(b *Batch, from int) int {
	for from < len(b.txns) && (b.txns[from].XID == 0 || g.snap.Visible(b.txns[from].XID)) {
		from++
	}
	return from
}
