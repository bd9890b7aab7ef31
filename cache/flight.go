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
	by map[string]*flight[T]
}

type flight[T any] struct {
	done chan struct{}
	out  outcome[T]
	err  error
}

// join returns the flight of a key, a new one if there is none: then the caller has to
// see that it lands.
func (fs *flights[T]) join(key string) (f *flight[T], first bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.by[key]; f != nil {
		return f, false
	}
	if fs.by == nil {
		fs.by = make(map[string]*flight[T])
	}
	f = &flight[T]{done: make(chan struct{})}
	fs.by[key] = f
	return f, true
}

func (fs *flights[T]) land(key string, f *flight[T]) {
	fs.mu.Lock()
	delete(fs.by, key)
	fs.mu.Unlock()
	close(f.done)
}

// fly has work done once for all who ask for the key meanwhile. It goes on when ctx ends,
// with the values of ctx, until it is done or the client is closed.
func (v *View[T]) fly(ctx context.Context, key string, work func(context.Context) (outcome[T], error)) *flight[T] {
	f, first := v.flights.join(key)
	if !first {
		return f
	}
	if !v.c.do(func(closing context.Context) {
		defer v.flights.land(key, f)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), v.c.o.loadTimeout)
		defer cancel()
		defer context.AfterFunc(closing, cancel)()
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
		v.flights.land(key, f)
	}
	return f
}

var errNoReturn = errors.New("cache: the loader ended its goroutine")

// attempts is how many flights a read waits for when each is too old at its end.
const attempts = 3

// await waits for a flight, and takes another one when that came to something that this
// read cannot take: older than its token, or than the class allows. In the end it loads for
// itself: what has begun after the read is new enough for every token.
func (v *View[T]) await(ctx context.Context, key string, load loader[T], token *Token, work func(context.Context) (outcome[T], error)) (outcome[T], error) {
	for range attempts {
		f := v.fly(ctx, key, work)
		select {
		case <-f.done:
		case <-ctx.Done():
			return outcome[T]{}, ctx.Err()
		}
		if f.err != nil {
			return outcome[T]{}, f.err
		}
		cached := f.out.at.IsZero()
		if cached {
			if trusted, why := v.c.trusted(v.f, time.Now()); !trusted { // it was, before the wait
				v.f.metrics.bypasses[why].Inc()
				break
			}
		}
		if (cached || v.youngEnough(&f.out)) && v.c.meets(v.f, &f.out.meta, token) {
			return f.out, nil
		}
	}
	out, err := v.past(ctx, load)
	if err == nil && !v.youngEnough(&out) {
		return outcome[T]{}, fmt.Errorf("%w: family %s, class %s, %v", ErrTooSlow, v.f.Name, v.f.Class.Name, v.f.Class.Staleness)
	}
	return out, err
}

// youngEnough says whether what was loaded may be returned now: its fill was accepted, so
// nothing has made it stale, or its snapshot is no older than a value may be.
func (v *View[T]) youngEnough(out *outcome[T]) bool {
	return out.stored || time.Since(out.at) <= v.f.Class.Staleness
}

// bypass reads the source past the cache, once for all who do so at the same time.
func (v *View[T]) bypass(ctx context.Context, key string, load loader[T], token *Token, why string) (outcome[T], error) {
	v.f.metrics.bypasses[why].Inc()
	return v.await(ctx, "past "+key, load, token, func(ctx context.Context) (outcome[T], error) {
		return v.past(ctx, load)
	})
}

// miss gets a value that is not to be had from Redis at once.
func (v *View[T]) miss(ctx context.Context, key string, load loader[T], token *Token, mode string) (outcome[T], error) {
	return v.await(ctx, key, load, token, func(ctx context.Context) (outcome[T], error) {
		return v.resolve(ctx, key, load, token, mode)
	})
}

// refreshSoon loads a value anew while it is served.
func (v *View[T]) refreshSoon(ctx context.Context, key string, load loader[T]) {
	v.fly(ctx, "early "+key, func(ctx context.Context) (outcome[T], error) { // the next readers see what comes of it
		return v.resolve(ctx, key, load, nil, modeEarly)
	})
}
