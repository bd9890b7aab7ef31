package integration

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
)

// The daemon is killed at every point between receiving a change and confirming it,
// the first time that it gets there and a later time. Whatever it had done by
// then, the next one leaves every changed row uncached, and keeps the others.
func TestKilledAtEveryPoint(t *testing.T) {
	t.Parallel()
	const window = 400 // rows of one round; none is changed twice, which could hide a loss
	hits := []int{1, 3}
	w := itemsWorld(t, window*len(hits)*len(failpoint.Points()))
	w.replayWindow("1ms") // nothing is sent again that was confirmed: the hardest case
	w.start().stop()
	from := int64(0)
	for _, point := range failpoint.Points() {
		for _, n := range hits {
			t.Run(fmt.Sprintf("%s/%d", point, n), func(t *testing.T) {
				w.killedAt(t, point, n, from, from+window)
			})
			from += window
		}
	}
}

func (w *world) killedAt(t *testing.T, point failpoint.Point, n int, from, to int64) {
	w.cacheRows(from, to)
	if point == failpoint.Purging {
		w.loseCheckpoint()
	}
	row := from
	change := func(rows int64) {
		if row+rows > to-100 {
			t.Fatal("the daemon never got there")
		}
		w.update(row, row+rows)
		row += rows
	}
	change(20) // while it is away
	p := w.launch(failAt(point, n))
	t.Cleanup(p.kill)
	w.eventually("it follows the source, or has ended", func() bool { return p.ended() || p.logged("msg=streaming") > 0 })
	for !p.ended() {
		change(5)
		w.eventually("they are applied, or it has ended", func() bool { return p.ended() || w.appliedAll() })
		w.provoke(p, point)
	}
	if p.err == nil {
		t.Fatal("it ended by itself")
	}
	change(1)
	next := w.start()
	w.wantGone(from, row)
	gap := point == failpoint.Purging
	if !gap {
		w.wantKept(row, to)
	}
	if got := next.logged("gap: ") > 0; got != gap {
		t.Errorf("a gap: %v, want %v", got, gap)
	}
	next.stop()
}

// loseCheckpoint makes the next session find that it cannot know what it missed.
func (w *world) loseCheckpoint() {
	w.t.Helper()
	if err := w.rdb.Unlink(w.t.Context(), "inv:source:{"+w.slot+"}").Err(); err != nil {
		w.t.Fatal(err)
	}
}

// provoke brings the daemon to points that it passes at the end of a session only.
func (w *world) provoke(p *process, point failpoint.Point) {
	switch point {
	case failpoint.Purging, failpoint.Confirming, failpoint.Confirmed:
	default:
		return
	}
	sessions := p.logged("msg=streaming")
	if point == failpoint.Purging {
		w.dropSlot()
	} else {
		w.endSession()
	}
	w.eventually("it follows the source again, or has ended", func() bool { return p.ended() || p.logged("msg=streaming") > sessions })
}

// dropSlot makes the session end, and the next one find that it cannot know what it missed. A
// daemon that runs knows what stood in the checkpoint, so to lose that would not do.
func (w *world) dropSlot() {
	w.t.Helper()
	w.eventually("the slot is dropped", func() bool {
		w.endSession()
		_, err := w.conn.Exec(w.t.Context(), "SELECT pg_drop_replication_slot('"+w.slot+"')")
		return err == nil
	})
}

// endSession makes the daemon attach anew.
func (w *world) endSession() {
	w.t.Helper()
	w.exec("SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE active AND slot_name = '" + w.slot + "'")
}

// The daemon is killed at random while rows are written and read as fast as they go.
// At the end every cached version is compared with its row.
func TestKilledAtRandomUnderLoad(t *testing.T) {
	const rows, kills = 1000, 20
	w := itemsWorld(t, rows)
	w.replayWindow("1ms")
	w.start().stop()
	l := w.load(rows, 3)
	var seed [32]byte
	copy(seed[:], t.Name())
	rng := rand.New(rand.NewChaCha8(seed))
	for range kills {
		p := w.launch()
		w.eventually("it follows the source", func() bool { return p.logged("msg=streaming") > 0 })
		w.eventually("its time is over", elapsed(time.Duration(rng.IntN(250))*time.Millisecond))
		p.kill()
	}
	p := w.start()
	l.until(rows / 4)
	l.end()
	w.settle(p)
	w.wantFresh(10)
	t.Logf("%d updates, %d fills, %d kills", l.updates.Load(), l.fills.Load(), kills)
	p.stop()
}
