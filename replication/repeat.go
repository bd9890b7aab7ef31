package replication

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
)

// repeatForever calls do at once, at every interval, which is counted from one begin to the
// next, and whenever it is asked to, until ctx ends. All calls go over one connection, which is made again after an
// error; the pauses before that have jitter, and start small again once a call has
// succeeded. failed is told of each error and of the pause that follows.
func repeatForever(ctx context.Context, connect func(context.Context) (*pgx.Conn, error), do func(context.Context, *pgx.Conn) error,
	interval func() time.Duration, asked <-chan struct{}, failed func(err error, next time.Duration)) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval = 200 * time.Millisecond
	pause.Multiplier = 2
	pause.MaxInterval = 10 * time.Second
	for {
		progress, err := repeat(ctx, connect, do, interval, asked)
		if ctx.Err() != nil {
			return
		}
		if progress {
			pause.Reset()
		}
		next := pause.NextBackOff()
		failed(err, next)
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// repeat is repeatForever up to the first error. progress says whether a call had
// succeeded by then.
func repeat(ctx context.Context, connect func(context.Context) (*pgx.Conn, error), do func(context.Context, *pgx.Conn) error,
	interval func() time.Duration, asked <-chan struct{}) (progress bool, err error) {
	conn, err := connect(ctx)
	if err != nil {
		return false, err
	}
	defer CloseControl(ctx, conn)
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		began := time.Now()
		if err := do(ctx, conn); err != nil {
			return progress, err
		}
		progress = true
		next.Reset(max(0, interval()-time.Since(began))) // asked for anew: it may depend on what was found
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case <-next.C:
		case <-asked:
		}
	}
}
