package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// lease is the right to fill, and the family's stamp that was known before it was taken.
type lease struct{ token, stamp string }

// modeEarly is modeRefresh for who would rather have no load of its own.
const modeEarly = "early"

// Pauses between two looks at a key that somebody else is loading.
const (
	waitFirst = 2 * time.Millisecond
	waitMost  = 100 * time.Millisecond
)

// resolve gets a value together with all other readers of the fleet: whoever has the
// lease loads, the others wait for it, within bounds. under is what was known of the daemon before
// the key was made. Of a versioned family nothing later counts: an invalidation moves
// the version, and leaves everything under the old one as it is.
func (v *View[T]) resolve(ctx context.Context, key string, load loader[T], token *Token, mode string, under *controlState) (outcome[T], error) {
	giveUp := time.Now().Add(v.c.o.wait)
	pause := waitFirst
	waited := false
	for {
		v.c.control.use(ctx) // also while nobody else reads
		mark, known := v.mark(key), under
		if !v.f.Versioned {
			known = v.c.control.look()
		}
		stamp := known.stamp(v.f)
		if stamp != under.stamp(v.f) { // the daemon may make another key by now
			return outcome[T]{}, errLookAgain
		}
		if stamp == "" && v.f.Class.OnDoubt != onDoubtServe { // of what would be stored nobody would know what it is
			v.f.metrics.bypasses[doubtStamp].Inc()
			return v.past(ctx, load)
		}
		script := modeRead
		if mode != modeRead {
			script = modeRefresh
		}
		a, err := v.c.scripts.callRead(ctx, v.c.rdb, key, v.c.o.lease, script, stamp)
		v.c.asked(ctx, err)
		if err != nil {
			v.f.metrics.bypasses[doubtRedis].Inc()
			v.c.log.Debug("no lease: loading without", "family", v.f.Name, "error", err)
			return v.past(ctx, load)
		}
		old, readable := v.open(a.entry)
		old.known, old.stamp = known, stamp
		switch a.verdict {
		case verdictLease:
			return v.fill(ctx, key, mark, lease{a.token, stamp}, token, nil, load)
		case verdictExpired:
			return v.fill(ctx, key, mark, lease{a.token, stamp}, token, oldIf(&old, readable), load)
		case verdictRefresh:
			if mode == modeRead && readable && v.c.meets(v.f, &old.meta, token, known) {
				v.behind(ctx, key, mark, lease{a.token, stamp}, load)
				old.result = resultStale
				return old, nil
			}
			return v.fill(ctx, key, mark, lease{a.token, stamp}, token, oldIf(&old, readable), load)
		case verdictValue, verdictStale:
			if readable && v.c.meets(v.f, &old.meta, token, known) && mode != modeRefresh || mode == modeEarly {
				if a.verdict == verdictStale {
					old.result = resultStale
				}
				return old, nil
			}
			if mode == modeRead { // it is not what this read can take
				mode = modeRefresh
				continue
			}
		}
		// Somebody else loads.
		if !waited {
			waited = true
			v.f.metrics.waits.Inc()
		}
		left := time.Until(giveUp)
		if left <= 0 {
			out, err := v.past(ctx, load)
			if readable && errors.Is(err, ErrUnavailable) && v.mayGive(&old, token) {
				return v.giveOld(&old, err), nil
			}
			return out, err
		}
		if err := sleep(ctx, min(left, pause/2+rand.N(pause))); err != nil {
			return outcome[T]{}, unavailable("wait for another reader's load", err)
		}
		pause = min(2*pause, waitMost)
		if mode == modeRefresh && token != nil {
			mode = modeRead // what the other one stores may do
		}
	}
}

// open reads what read.lua shows.
func (v *View[T]) open(raw string) (out outcome[T], ok bool) {
	if raw == "" {
		return out, false
	}
	e, ok := parseEntry(raw)
	if !ok {
		return out, false
	}
	out, err := v.decode(&e, resultHit)
	return out, err == nil
}

func oldIf[T any](old *outcome[T], readable bool) *outcome[T] {
	if !readable {
		return nil
	}
	return old
}

// behind loads while the old value is served.
func (v *View[T]) behind(ctx context.Context, key string, mark l1Mark, held lease, load loader[T]) {
	started := v.c.detached(ctx, func(ctx context.Context) {
		defer v.rescue()
		if _, err := v.fill(ctx, key, mark, held, nil, nil, load); err != nil {
			v.c.log.Debug("a value could not be refreshed; the old one is served while it may be", "family", v.f.Name, "error", err)
		}
	})
	if !started {
		v.release(ctx, key, held.token)
	}
}

// fill loads with the lease, and stores what comes of it. old is what may be given when the
// source is down; nil for nothing.
func (v *View[T]) fill(ctx context.Context, key string, mark l1Mark, held lease, token *Token, old *outcome[T], load loader[T]) (outcome[T], error) {
	returned := false
	defer func() {
		if !returned { // the loader panicked
			v.release(ctx, key, held.token)
		}
	}()
	l, err := run(ctx, v.c, v.f, []string{key}, load, loadOptions{leased: true, token: token})
	returned = true
	if err != nil {
		v.release(ctx, key, held.token)
		if old != nil && errors.Is(err, ErrUnavailable) && v.mayGive(old, token) {
			return v.giveOld(old, err), nil
		}
		return outcome[T]{}, err
	}
	defer l.end()
	out := outcomeOf(l.value, l.notFound, &l.source, resultMiss)
	out.stamp = held.stamp
	if !l.proved {
		v.f.metrics.refused[refusedLoader].Inc()
		v.release(ctx, key, held.token)
		return out, nil
	}
	args, err := v.fillArgs(&out, held.token)
	if args == nil {
		v.giveUp(ctx, key, held.token, out.meta.negative) // of a row that is gone, what is cached is wrong
		return out, err
	}
	if !out.standby {
		v.c.control.use(ctx) // a long load is no pause
		out.known = v.c.control.look()
	}
	if v.elsewhere(mark) {
		v.f.metrics.refused[refusedRevoked].Inc()
		v.release(ctx, key, held.token)
		return out, nil
	}
	stored, err := parseDone(v.c.scripts.fill.run(ctx, v.c.rdb, key, args...))
	v.filled(ctx, mark, &out, stored, err)
	return out, nil
}

func outcomeOf[T any](value T, notFound bool, s *loadSource, result string) outcome[T] {
	out := outcome[T]{value: value, meta: s.meta, at: s.at, standby: s.standby, known: s.known, result: result}
	out.meta.negative = notFound
	return out
}

// fillArgs are the arguments of fill.lua for what was loaded; nil when it is not to be
// stored.
func (v *View[T]) fillArgs(out *outcome[T], lease string) ([]any, error) {
	kind, life := byte(kindValue), v.f.life
	var payload []byte
	if out.meta.negative {
		kind, life = kindMissing, v.f.negative
	} else {
		var err error
		if payload, err = v.c.o.codec.Encode(out.value); err != nil {
			return nil, fmt.Errorf("cache: family %s: encode: %w", v.f.Name, err)
		}
	}
	if life.ttl <= 0 {
		return nil, nil
	}
	life.ttl -= rand.N(life.ttl/10 + 1) // so that what was loaded together does not end together
	now := time.Now()
	out.meta.loadedAt, out.meta.loadTime = millisOf(now), now.Sub(out.at).Milliseconds()
	out.meta.freshUntil, out.meta.staleUntil = millisOf(now.Add(life.ttl)), millisOf(now.Add(life.ttl+life.stale))
	return fillArgs(lease, kind, life, appendRest(nil, &out.meta, payload)), nil
}

// filled notes how a fill went.
func (v *View[T]) filled(ctx context.Context, mark l1Mark, out *outcome[T], stored bool, err error) {
	v.c.asked(ctx, err)
	switch {
	case err != nil:
		v.f.metrics.refused[refusedRedis].Inc()
		v.c.log.Debug("what was loaded was not stored", "family", v.f.Name, "error", err)
	case !stored:
		v.f.metrics.refused[refusedRevoked].Inc()
	default:
		v.f.metrics.fills.Inc()
		// Under another stamp the daemon's word is not about this load.
		out.stored = out.known.stamp(v.f) == out.stamp
		v.storeL1(mark, out)
	}
}

// release gives up a lease, for the others that wait for it. Should that fail, it runs out.
func (v *View[T]) release(ctx context.Context, key, lease string) { v.giveUp(ctx, key, lease, false) }

// giveUp is release; drop removes the value that was to be replaced, too.
func (v *View[T]) giveUp(ctx context.Context, key, lease string, drop bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err := v.c.scripts.callRelease(ctx, v.c.rdb, key, lease, drop)
	v.c.asked(ctx, err)
	if err != nil {
		v.c.log.Debug("a lease was not given up; it runs out", "family", v.f.Name, "error", err)
	}
}

// past loads without a lease, and stores nothing.
func (v *View[T]) past(ctx context.Context, load loader[T]) (outcome[T], error) {
	l, err := run(ctx, v.c, v.f, nil, load, loadOptions{})
	if err != nil {
		return outcome[T]{}, err
	}
	l.end()
	return outcomeOf(l.value, l.notFound, &l.source, resultBypass), nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
