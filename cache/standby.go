package cache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// beginStandby opens a transaction on the standby, or says why what is read there could
// be too old to be stored.
//
// The order is the proof. The lease is there already. Then the position is read above
// which no invalidation has been applied; then, in a statement of its own, how far the
// standby has replayed; then the snapshot is taken. When it has replayed more, every change
// that the snapshot misses is above that position, so its invalidation is still to come
// and revokes the lease. Snapshots of a standby say nothing themselves.
func (c *Client) beginStandby(ctx context.Context, f *family, token *Token) (*session, error) {
	if ok, why := c.control.proves(f.Class, time.Now()); !ok {
		return nil, fmt.Errorf("the daemon's position is in doubt: %s", why)
	}
	sent, err := c.control.sent(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := c.o.replica.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	var standby bool
	var text string
	err = conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), coalesce(pg_last_wal_replay_lsn()::text, '0/0')`).Scan(&standby, &text)
	var replayed lsn.LSN
	if err == nil {
		replayed, err = lsn.Parse(text)
	}
	switch {
	case err != nil:
	case !standby:
		err = errors.New("it is no standby any more") // its replay position stands still
	case replayed <= sent:
		err = fmt.Errorf("it has replayed %s, and %s has been invalidated", replayed, sent)
	case token != nil && replayed < token.at:
		err = fmt.Errorf("it has replayed %s, and the read asks for %s", replayed, token.at)
	}
	if err != nil {
		conn.Release()
		return nil, err
	}
	s := &session{conn: conn, at: time.Now()}
	if s.tx, _, err = beginTx(ctx, conn.Conn()); err != nil {
		conn.Release()
		return nil, err
	}
	s.meta.snapshot, s.meta.lsn = noSnapshot, replayed
	return s, nil
}
