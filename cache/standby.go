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
	known := c.control.look()
	if ok, why := known.proves(c.clock, f.Class, time.Now(), 0); !ok {
		return nil, fmt.Errorf("the daemon's position is in doubt: %s", why)
	}
	sent, err := c.control.sent(ctx)
	if err != nil {
		return nil, err
	}
	// A standby that is down must not use up the lease's time.
	short, cancel := context.WithTimeout(ctx, standbyTimeout)
	defer cancel()
	s, replayed, err := c.askStandby(short)
	c.standby.done(err != nil && ctx.Err() == nil, time.Now())
	switch {
	case err != nil:
		return nil, err
	case replayed <= sent:
		err = fmt.Errorf("it has replayed %s, and %s has been invalidated", replayed, sent)
	case token != nil && replayed < token.at:
		err = fmt.Errorf("it has replayed %s, and the read asks for %s", replayed, token.at)
	default:
		s.at = time.Now()
		s.tx, _, _, err = beginTx(short, s.conn.Conn())
	}
	if err != nil {
		s.conn.Release()
		return nil, err
	}
	s.meta = entryMeta{snapshot: noSnapshot, lsn: replayed}
	s.standby, s.known = true, known
	return s, nil
}

// standbyTimeout bounds what is asked of a standby before a load.
const standbyTimeout = time.Second

// askStandby asks how far the standby has replayed, on the connection for the load.
func (c *Client) askStandby(ctx context.Context) (*session, lsn.LSN, error) {
	conn, err := c.o.replica.Acquire(ctx)
	if err != nil {
		return nil, 0, err
	}
	var standby bool
	var text string
	err = conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), coalesce(pg_last_wal_replay_lsn()::text, '0/0')`).Scan(&standby, &text)
	var replayed lsn.LSN
	if err == nil {
		replayed, err = lsn.Parse(text)
	}
	if err == nil && !standby {
		err = errors.New("it is no standby any more") // its replay position stands still
	}
	if err != nil {
		conn.Release()
		return nil, 0, err
	}
	return &session{conn: conn}, replayed, nil
}
