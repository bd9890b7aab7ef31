package demo

import (
	"context"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

// reads counts what the readers saw in the real space.
type reads struct {
	total   atomic.Int64
	hits    atomic.Int64
	refused atomic.Int64 // fills that the lease stopped
}

// readBoth reads an entry in the real space and in the control space.
func (e *entry) readBoth(ctx context.Context, rdb *redis.Client, conn *pgx.Conn, counts *reads) error {
	for _, control := range []bool{false, true} {
		key, err := e.key(ctx, rdb, control)
		if err != nil {
			return err
		}
		_, what, err := through(ctx, rdb, key, e.ttl(), func() (string, error) { return e.load(ctx, conn) })
		if err != nil {
			return err
		}
		if control {
			continue
		}
		counts.total.Add(1)
		switch what {
		case hit:
			counts.hits.Add(1)
		case refused:
			counts.refused.Add(1)
		}
	}
	return nil
}

// reader reads until ctx ends; it finishes the entry that it has begun.
func (d *demo) reader(ctx context.Context, conn *pgx.Conn) error {
	for limit := pace(readRate, readerCount); limit.Wait(ctx) == nil; {
		if err := d.traffic.next().readBoth(context.WithoutCancel(ctx), d.rdb, conn, &d.reads); err != nil {
			return err
		}
	}
	return nil
}
