package cache

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Refresh loads a value and stores it, whatever is cached, and returns it. Readers are
// served what is cached meanwhile.
func (v *View[T]) Refresh(ctx context.Context, vars Vars, load func(ctx context.Context, tx pgx.Tx) (T, error)) (T, error) {
	out, err := v.refresh(ctx, vars, load)
	v.count(&out, err)
	if err == nil && out.meta.negative {
		err = ErrNotFound
	}
	return out.value, err
}

func (v *View[T]) refresh(ctx context.Context, vars Vars, load loader[T]) (outcome[T], error) {
	if v.c.closed.Load() {
		return outcome[T]{}, ErrClosed
	}
	if nested(ctx) {
		return outcome[T]{}, errNested
	}
	for try := 1; ; try++ {
		out, err := v.refreshOnce(ctx, vars, load, try == looks)
		if err != errLookAgain {
			return out, err
		}
	}
}

// refreshOnce is refresh on what is known of the daemon now.
func (v *View[T]) refreshOnce(ctx context.Context, vars Vars, load loader[T], last bool) (outcome[T], error) {
	v.c.control.use(ctx)
	known := v.c.control.look() // before anything is read
	key, version, err := v.key(ctx, vars, nil, 0, known, nil)
	if err != nil {
		return outcome[T]{}, err
	}
	switch version {
	case versionNone:
		return v.bypass(ctx, key, load, nil, doubtRedis, known)
	case versionUntyped:
		return v.bypass(ctx, key, load, nil, doubtTypes, known)
	}
	// Not one that has begun before this call: it may have read what is to be replaced.
	v.flights.leave(key, flightRefresh)
	out, err := v.await(ctx, flightRefresh, key, load, nil, func(ctx context.Context) (outcome[T], error) {
		return v.resolve(ctx, key, load, nil, modeRefresh, known)
	})
	if last && err == errLookAgain {
		return v.bypass(ctx, key, load, nil, doubtUnknown, known)
	}
	return out, err
}

// Invalidate removes a value, and refuses the fills of those who are loading it. Changes of
// mapped rows need no such call: the daemon removes what they make stale.
func (v *View[T]) Invalidate(ctx context.Context, vars Vars) error {
	v.c.control.use(ctx)
	key, version, err := v.key(ctx, vars, nil, 0, v.c.control.look(), nil)
	if err != nil {
		return err
	}
	if version == versionUntyped {
		return fmt.Errorf("cache: invalidate family %s: %w", v.f.Name, errTypes)
	}
	if version == versionNone {
		return fmt.Errorf("cache: invalidate family %s: %w", v.f.Name, errRedisDown)
	}
	err = v.c.rdb.Unlink(ctx, key).Err()
	v.c.asked(ctx, err)
	v.dropL1(key)
	v.flights.leave(key, flightMiss, flightPast, flightRefresh, flightEarly)
	if err != nil {
		return fmt.Errorf("cache: invalidate family %s: %w", v.f.Name, err)
	}
	return nil
}
