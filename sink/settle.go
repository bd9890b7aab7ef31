package sink

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// # Settled
//
// A checkpoint says that nothing up to its end is missing, but what a class holds back
// counts as applied for it. The field settled of the control hash is the one answer to
// "has everything up to here been applied": nothing that ended at or below it is missing,
// held, or part of a purge under way. It is the smallest of
//
//   - the end of the checkpoint, behind which every batch was acknowledged;
//   - of each held set, a position at which the set had nothing that is still in it;
//   - the position at which the catalogs were last looked at, for the DDL that the log is
//     silent about (the caller's).
//
// A set is judged when a take has been applied, while no batch is under way. Whatever
// batches up to the checkpoint have put in is there then, with deadlines up to the newest
// in the set: that is a mark. Takes go by deadline, so once the oldest in the set has a
// later deadline than the mark, the set has let go of all that. An empty set has let go of
// everything. A set that was adopted has no marks and settles nothing before its first
// take, so a restart starts behind what it published and never ahead of it.
//
// The claim is about the primaries that it was made on. A restart or failover of the
// node with the hash leaves a prefix of its history, the claim and what it is about alike,
// but in a cluster another node may lose an UNLINK on its own. So it is valid only while
// nodes in the hash are the primaries that are there: while a replay is under way nothing
// is settled, and the checkpoint that ends it begins at 0 again.
//
// A purge of a batch, or of a set that was lost, holds the lock that Settle takes. One that
// goes on behind the stamps has its families in the field purging: while it has any, nothing
// is settled.

// heldMark is a position, and a deadline in ms that is not below that of anything which
// transactions up to there have put into a set.
type heldMark struct {
	end    lsn.LSN
	newest int64
}

// markSteps bounds the marks of a set, and so how much later than its hold something is
// known to have left it: one step of them.
const markSteps = 32

// errOtherNodes: the control hash speaks of other primaries than those attached to.
var errOtherNodes = errors.New("the control hash speaks of other primaries")

// left notes what is in a set after a take of it was applied.
func (r *Redis) left(s *heldSet, t taken) {
	r.shadowMu.Lock()
	end, replayed := r.shadow.End, r.shadow.nodes == r.nodes
	r.shadowMu.Unlock()
	// What had been taken before may not be all that was.
	if replayed && !t.again {
		s.left(end, t)
	}
}

// left is told of what is in the set, and up to where batches have put in what they had to.
func (s *heldSet) left(end lsn.LSN, t taken) {
	if t.waiting == 0 {
		s.settled, s.marks = max(s.settled, end), nil
		return
	}
	oldest, newest := t.oldest.UnixMilli(), t.newest.UnixMilli()
	for i := len(s.marks) - 1; i >= 0; i-- {
		if m := s.marks[i]; m.newest < oldest {
			s.settled, s.marks = max(s.settled, m.end), s.marks[i+1:]
			break
		}
	}
	// A later position that asks for no more takes the place of those before.
	for n := len(s.marks); n > 0 && s.marks[n-1].newest >= newest; n-- {
		s.marks = s.marks[:n-1]
	}
	if n := len(s.marks); n == 0 || newest-s.marks[n-1].newest >= s.hold.Milliseconds()/markSteps {
		s.marks = append(s.marks, heldMark{end, newest})
	}
}

// Settle publishes up to where everything is applied, when that has moved on. looked is a
// position whose transactions were all visible when the catalogs were looked at, and what
// that found is applied.
func (r *Redis) Settle(ctx context.Context, looked lsn.LSN) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	end := r.settles(looked)
	if end == 0 {
		return nil
	}
	be, err := r.ready(ctx)
	if err == nil {
		err = r.callControl(ctx, be, func(replID string) *redis.Cmd {
			r.shadowMu.Lock()
			defer r.shadowMu.Unlock()
			return r.scripts.settle.command(ctx, []any{r.controlKey},
				[]any{hex32(r.shadow.Generation), replID, r.nodes, end.Hex()})
		})
	}
	r.shadowMu.Lock()
	defer r.shadowMu.Unlock()
	switch {
	case errors.Is(err, errOtherNodes):
		// A late command has put them there. The next checkpoint corrects it.
		r.shadow.nodes, r.shadow.Settled = "", 0
		return nil
	case err == nil:
		r.shadow.Settled = end
	}
	return r.fail("settle", end.String(), err)
}

// settles is what can be published now; 0 when that is nothing new.
func (r *Redis) settles(looked lsn.LSN) lsn.LSN {
	r.shadowMu.Lock()
	end, before, valid := r.shadow.End, r.shadow.Settled, r.shadow.Generation != 0 && r.shadow.nodes == r.nodes && len(r.shadow.Purging) == 0
	r.shadowMu.Unlock()
	end = min(end, looked)
	for _, s := range r.sets {
		end = min(end, s.settled)
	}
	if !valid || end <= before {
		return 0
	}
	return end
}
