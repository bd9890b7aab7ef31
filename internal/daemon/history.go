package daemon

import (
	"errors"
	"fmt"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// errOtherHistory means that the log which the slot sends is not the one that the checkpoint
// is a position in: the source was restored from a copy of its files.
var errOtherHistory = errors.New("the source was taken back")

// history proves that the slot goes on where the checkpoint stands.
//
// A position alone proves nothing. A volume snapshot that is restored has the system id,
// the timeline and the slot of the original, and once its log has grown past the old end the
// checkpoint lies somewhere in the middle of it. So the checkpoint names the last transaction
// that was applied, the log is never confirmed past that one's beginning (ordering.Position),
// and here that very transaction has to come through the slot again, before anything
// later does.
type history struct {
	last sink.Control // the checkpoint
	seen bool         // its transaction, or there is none to wait for
}

// newHistory awaits the transaction of a stored checkpoint. None is known of a position that no
// transaction has reached, of one that an older version stored, and while there are no heartbeats.
func newHistory(stored sink.Control) history {
	return history{last: stored, seen: stored.XID == 0}
}

func (h *history) proved() bool { return h.seen }

// begin is called with each transaction that the slot sends, in the order of their commits.
func (h *history) begin(at lsn.LSN, xid uint32, committed time.Time) error {
	switch {
	case h.seen || at < h.last.Applied:
		return nil
	case at == h.last.Applied && xid == h.last.XID && committed.Equal(h.last.CommitTime):
		h.seen = true
		return nil
	case at == h.last.Applied:
		return fmt.Errorf("%w: the last applied transaction was %d at %s of %s, and the slot sends %d of %s there",
			errOtherHistory, h.last.XID, at, stamp(h.last.CommitTime), xid, stamp(committed))
	}
	return h.missing(at)
}

// reached is called when the slot has nothing more to send below end.
func (h *history) reached(end lsn.LSN) error {
	if h.seen || end <= h.last.Applied {
		return nil
	}
	return h.missing(end)
}

func (h *history) missing(at lsn.LSN) error {
	return fmt.Errorf("%w: the last applied transaction, %d at %s of %s, is not in the log that the slot sends, which goes on to %s",
		errOtherHistory, h.last.XID, h.last.Applied, stamp(h.last.CommitTime), at)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// heartbeats says whether they come back through the slot. The log is held back for the last
// transaction, and on an idle database it is heartbeats that move it on. Without them, on a
// busy server, it would be kept for ever: rather than fill a disk, the proof is given up.
func (d *daemon) heartbeats() bool {
	return d.file.Source.Heartbeat > 0 && d.heartbeat.Status().OK
}
