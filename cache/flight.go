package cache

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// flights are the misses under way in this process, by key: who misses a key that
// somebody else is at waits for what that one gets.
type flights[T any] struct {
	mu sync.Mutex
	by map[flightName]*flight[T]
}

type flightName struct {
	kind flightKind
	key  string
}

// flightKind is what a flight is for: who asks for one thing is not served with another.
type flightKind byte

const (
	flightMiss    flightKind = iota
	flightPast               // past the cache
	flightRefresh            // begun after a call of Refresh
	flightEarly              // while the value is served
)

type flight[T any] struct {
	done chan struct{}
	out  outcome[T]
	err  error
}

// join returns the flight of a key, a new one if there is none: then the caller has to
// see that it lands.
func (fs *flights[T]) join(name flightName) (f *flight[T], first bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.by[name]; f != nil {
		return f, false
	}
	if fs.by == nil {
		fs.by = make(map[flightName]*flight[T])
	}
	f = &flight[T]{done: make(chan struct{})}
	fs.by[name] = f
	return f, true
}

func (fs *flights[T]) land(name flightName, f *flight[T]) {
	fs.mu.Lock()
	if fs.by[name] == f {
		delete(fs.by, name)
	}
	fs.mu.Unlock()
	close(f.done)
}

// leave has whoever asks from now on wait for none of the flights under way.
func (fs *flights[T]) leave(key string, kinds ...flightKind) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, kind := range kinds {
		delete(fs.by, flightName{kind, key})
	}
}

// fly has work done once for all who ask for the key meanwhile. It goes on when ctx ends,
// with the values of ctx, until it is done or the client is closed.
func (v *View[T]) fly(ctx context.Context, kind flightKind, key string, work func(context.Context) (outcome[T], error)) *flight[T] {
	name := flightName{kind, key}
	f, first := v.flights.join(name)
	if !first {
		return f
	}
	if !v.c.detached(ctx, func(ctx context.Context) {
		defer v.flights.land(name, f)
		f.err = errNoReturn
		defer func() {
			// The loader is the application's, and this goroutine is not: nobody else would
			// catch it.
			if r := recover(); r != nil {
				f.err = fmt.Errorf("cache: the loader of family %s panicked: %v\n%s", v.f.Name, r, debug.Stack())
			}
		}()
		f.out, f.err = work(ctx)
	}) {
		f.err = ErrClosed
		v.flights.land(name, f)
	}
	return f
}

var errNoReturn = errors.New("cache: the loader ended its goroutine")

// attempts is how many flights a read waits for when each is too old at its end.
const attempts = 3

// await waits for a flight, and takes another one when that came to something that this
// read cannot take: older than its token, or than the class allows. In the end it loads for
// itself: what has begun after the read is new enough for every token.
func (v *View[T]) await(ctx context.Context, kind flightKind, key string, load loader[T], token *Token, work func(context.Context) (outcome[T], error)) (outcome[T], error) {
	began := time.Now()
	for range attempts {
		f := v.fly(ctx, kind, key, work)
		select {
		case <-f.done:
		case <-ctx.Done():
			return outcome[T]{}, ctx.Err()
		}
		if f.err != nil {
			return outcome[T]{}, f.err
		}
		ok, why := v.returnable(&f.out, time.Now())
		if ok && v.c.meets(v.f, &f.out.meta, token, f.out.vouched(v.f)) {
			return f.out, nil
		}
		if f.out.at.IsZero() && !ok { // it was proved before the wait, and is not any more
			if f.out.known.void() {
				return outcome[T]{}, errLookAgain
			}
			return v.bypass(ctx, key, load, token, why, f.out.known)
		}
		if ok && !f.out.standby && f.out.at.After(began) && token != nil && !token.metBy(&f.out.meta) {
			return outcome[T]{}, v.ahead() // no later load is of more use
		}
	}
	out, err := v.past(ctx, load)
	if err != nil {
		return out, err
	}
	if ok, _ := v.returnable(&out, time.Now()); !ok {
		return outcome[T]{}, fmt.Errorf("%w: family %s, class %s, %v", ErrTooSlow, v.f.Name, v.f.Class.Name, v.f.Class.Staleness)
	}
	if !v.c.meets(v.f, &out.meta, token, nil) {
		return outcome[T]{}, v.ahead()
	}
	return out, nil
}

func (v *View[T]) ahead() error { return fmt.Errorf("%w: family %s", ErrTokenAhead, v.f.Name) }

// doubtSlow is why what was loaded may not be returned.
const doubtSlow = "slow"

// returnable says whether an outcome may be returned at the time now: its snapshot is no
// older than the class allows, or it is, or was, in Redis at a time after which the daemon
// vouches for it.
func (v *View[T]) returnable(out *outcome[T], now time.Time) (ok bool, why string) {
	switch {
	case out.result == resultFailSafe:
		return true, "" // it was looked into
	case out.at.IsZero() || out.standby: // a standby is as far as the daemon was, not as the time
	case now.Sub(out.at) <= v.f.Class.Staleness:
		return true, ""
	case !out.stored || v.f.Versioned: // an invalidation moves the version, and refuses no fill
		return false, doubtSlow
	}
	return v.c.holds(v.f, out.known, now)
}

// vouched is what was known of the daemon where that says how new the outcome is. Of a load it
// says so only once the fill is accepted: a refused one was made stale while it ran, and one of
// a versioned family is accepted under a version that has moved on.
func (out *outcome[T]) vouched(f *family) *controlState {
	if !out.at.IsZero() && !out.standby && (!out.stored || f.Versioned) {
		return nil
	}
	return out.known
}

// bypass reads the source past the cache, once for all who do so at the same time. When the
// source is down it falls back to what is cached, for families that allow it.
func (v *View[T]) bypass(ctx context.Context, key string, load loader[T], token *Token, why string, under *controlState) (outcome[T], error) {
	v.f.metrics.bypasses[why].Inc()
	return v.await(ctx, flightPast, key, load, token, func(ctx context.Context) (outcome[T], error) {
		out, err := v.past(ctx, load)
		if errors.Is(err, ErrUnavailable) && v.f.Class.FailSafe > 0 {
			if old, ok := v.lastResort(ctx, key, token, under); ok {
				return v.giveOld(&old, err), nil
			}
		}
		return out, err
	})
}

// miss gets a value that is not to be had from Redis at once.
func (v *View[T]) miss(ctx context.Context, key string, load loader[T], token *Token, mode string, under *controlState) (outcome[T], error) {
	return v.await(ctx, flightMiss, key, load, token, func(ctx context.Context) (outcome[T], error) {
		return v.resolve(ctx, key, load, token, mode, under)
	})
}

// refreshSoon loads a value anew while it is served.
func (v *View[T]) refreshSoon(ctx context.Context, key string, load loader[T], under *controlState) {
	v.fly(ctx, flightEarly, key, func(ctx context.Context) (outcome[T], error) { // the next readers see what comes of it
		return v.resolve(ctx, key, load, nil, modeEarly, under)
	})
}
