package demo

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

// reads counts what the readers did in the real space.
type reads struct {
	total atomic.Int64
	loads atomic.Int64
}

// read reads an entry through the library, as an application does.
func (d *demo) read(ctx context.Context, e *entry) (string, error) {
	d.reads.total.Add(1)
	value, err := d.views[e.family.Name].Get(ctx, e.vars, func(ctx context.Context, tx pgx.Tx) (string, error) {
		d.reads.loads.Add(1)
		value, err := e.load(ctx, tx)
		if err == nil && value == absent {
			err = cache.ErrNotFound
		}
		if err != nil || e.view.dependsOn == nil {
			return value, err
		}
		return value, e.view.dependsOn(ctx, tx, e.args)
	})
	if errors.Is(err, cache.ErrNotFound) {
		return absent, nil
	}
	return value, err
}

// readControl reads an entry in the control space.
func (d *demo) readControl(ctx context.Context, e *entry, conn *pgx.Conn) (string, error) {
	key, err := e.key(ctx, d.rdb, true)
	if err != nil {
		return "", err
	}
	return plain(ctx, d.rdb, key, e.ttl(), func() (string, error) { return e.load(ctx, conn) })
}

// readBoth reads an entry in both spaces.
func (d *demo) readBoth(ctx context.Context, e *entry, conn *pgx.Conn) error {
	if _, err := d.read(ctx, e); err != nil {
		return err
	}
	_, err := d.readControl(ctx, e, conn)
	return err
}

// reader reads until ctx ends; it finishes the entry that it has begun.
func (d *demo) reader(ctx context.Context, conn *pgx.Conn) error {
	for limit := pace(readRate, readerCount); limit.Wait(ctx) == nil; {
		if err := d.readBoth(context.WithoutCancel(ctx), d.traffic.next(), conn); err != nil {
			return err
		}
	}
	return nil
}
