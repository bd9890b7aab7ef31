package tap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// resolver asks the source for_each queries, as the daemon does: once the change is
// visible there. It belongs to one goroutine at a time.
type resolver struct {
	q *replication.QueryConn
}

const (
	// visiblePatience bounds the wait for a transaction that synchronous replication
	// keeps from becoming visible.
	visiblePatience = 30 * time.Second
	visiblePause    = 5 * time.Millisecond
)

func newResolver(ctx context.Context, url string, epoch replication.Epoch) (*resolver, error) {
	q, err := replication.OpenQueryConn(ctx, url, "gate", epoch)
	if err != nil {
		return nil, err
	}
	return &resolver{q}, nil
}

func (r *resolver) close(ctx context.Context) { r.q.Close(ctx) }

// answer leaves in out what the lookup stands for. What the daemon would widen is
// widened.
func (r *resolver) answer(ctx context.Context, xid uint32, call *mapping.LookupCall, out *mapping.Output) error {
	if err := r.visible(ctx, xid); err != nil {
		return err
	}
	columns, rows, err := r.q.Query(ctx, call.SQL(), call.Params(), call.MaxRows())
	switch {
	case errors.Is(err, replication.ErrQueryRefused), err == nil && len(rows) > call.MaxRows():
		call.Widen(out)
		return nil
	case err != nil:
		return err
	}
	if err := call.Render(columns, rows, out); err != nil {
		out.Reset()
		call.Widen(out)
	}
	return nil
}

func (r *resolver) visible(ctx context.Context, xid uint32) error {
	tick := time.NewTicker(visiblePause)
	defer tick.Stop()
	for end := time.Now().Add(visiblePatience); ; {
		text, err := r.q.Snapshot(ctx)
		if err != nil {
			return err
		}
		snap, err := ordering.ParseSnapshot(text)
		if err != nil {
			return err
		}
		if xid == 0 || snap.Visible(xid) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("transaction %d has not become visible within %s: a synchronous standby may be missing", xid, visiblePatience)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
