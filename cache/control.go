package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Why a class is not proved.
const (
	doubtUnknown = "unknown" // there is no control hash, or it or the source's clock cannot be read
	doubtGap     = "gap"     // changes may be missing
	doubtPaused  = "paused"  // invalidations are held back by hand
	doubtLate    = "late"    // what is applied is older than the class's budget
	doubtStamp   = "stamp"   // the daemon does not follow the family, or on other terms than this process
)

// control knows how far the daemon has come, from its control hash.
//
// A look is as good as an older one later on: the hash said that at that moment nothing was
// missing that had been visible on the source at fresh_as_of. So a value that is read
// at any later time t was replaced, if at all, less than t - fresh_as_of ago, and the time
// between two looks counts as if nothing had been applied since.
type control struct {
	rdb      redis.UniversalClient
	key      string
	source   querier
	clock    *sourceClock
	interval time.Duration
	log      *slog.Logger

	last   atomic.Pointer[controlState]
	stamps *stampReader
	failed bool // of the goroutine that runs

	servers *servers                             // which connections are believed
	epoch   *atomic.Uint64                       // moves on when Redis is found with older data, or is another one; see servers
	renewed atomic.Uint64                        // the epoch of the last look for its sake
	asked   func(ctx context.Context, err error) // is told how calls to Redis go

	used     atomic.Bool // by a read, since the last look
	sleeping atomic.Bool // nobody has read for a while, so nobody looks
	mu       sync.Mutex  // of who wakes it
	wake     chan struct{}
}

// controlState is what a look has shown. It is true of what is read from Redis after that
// look, not before: so a read takes it first.
//
// It is true as long as Redis does not go back to older data: see servers.
type controlState struct {
	asked     time.Time
	epoch     uint64 // in which it was asked for
	current   *atomic.Uint64
	state     string
	freshAsOf int64   // us since 1970, by the source's clock
	reached   lsn.LSN // nothing that ended at or below it is missing
	revision  string  // of the stamps
	stamps    *stampSet
	err       error // the hash cannot be understood

	generation string // of the positions
	nodes      string // the primaries of a cluster that have all that
}

// idleAfter is how long after the last read the hash is looked at.
const idleAfter = 10 * time.Second

// clockInterval is how often the source is asked for its time.
const clockInterval = 10 * time.Second

func newControl(key string, source querier, clock *sourceClock, interval time.Duration, log *slog.Logger) *control {
	c := &control{key: key, source: source, clock: clock, interval: interval, log: log, wake: make(chan struct{}, 1),
		stamps: &stampReader{log: log, types: &keyTypes{}}, epoch: &atomic.Uint64{}, asked: func(context.Context, error) {}}
	c.servers = &servers{c: c, stall: minStall}
	return c
}

// look is what is known of the daemon.
func (c *control) look() *controlState { return c.last.Load() }

// use notes a read. The first one after a pause looks itself: what is known is too old.
func (c *control) use(ctx context.Context) {
	if !c.used.Load() {
		c.used.Store(true)
	}
	if !c.sleeping.Load() && !c.outdated() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	sleeping := c.sleeping.Load()
	if !sleeping && !c.outdated() {
		return // somebody else has looked meanwhile
	}
	c.renewed.Store(c.epoch.Load()) // one try: while Redis is away, not each reader has to wait for it
	if err := c.poll(ctx); err != nil && ctx.Err() != nil {
		return // this reader has given up: the next one looks
	}
	if sleeping {
		c.sleeping.Store(false)
		c.wake <- struct{}{}
	}
}

// outdated says whether the last look is void, and nobody has tried to take another one.
func (c *control) outdated() bool {
	s := c.look()
	return s != nil && s.void() && c.renewed.Load() != c.epoch.Load()
}

// sleep waits for the next read.
func (c *control) sleep(ctx context.Context) {
	c.sleeping.Store(true)
	select {
	case <-c.wake:
	case <-ctx.Done():
	}
}

// run looks at the hash, and at the source's clock, until ctx ends.
func (c *control) run(ctx context.Context) {
	tick := time.NewTicker(c.interval)
	defer tick.Stop()
	measured := time.Now()
	if _, ok := c.clock.now(measured); !ok {
		measured = time.Time{}
	}
	lastUse := time.Now()
	for {
		if time.Since(measured) >= clockInterval || c.clockWasSet() {
			bounded, cancel := context.WithTimeout(ctx, time.Second)
			err := c.clock.measure(bounded, c.source)
			cancel()
			if err == nil {
				measured = time.Now()
			} else {
				c.log.Debug("the source's clock is not known better", "error", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if c.used.Swap(false) {
			lastUse = time.Now()
		} else if time.Since(lastUse) > idleAfter {
			c.sleep(ctx)
			lastUse = time.Now()
		}
		err := c.poll(ctx)
		c.servers.seek(ctx)
		if ctx.Err() != nil {
			return
		}
		if failed := err != nil; failed != c.failed {
			c.failed = failed
			if failed {
				c.log.Warn("the control hash cannot be read: when that lasts, reads go to the source", "key", c.key, "error", err)
			} else {
				c.log.Info("the control hash is read again", "key", c.key)
			}
		}
	}
}

// clockWasSet says whether the daemon is fresh to a time that the source's clock cannot
// have reached: it was set forward, and what is known of it is wrong.
func (c *control) clockWasSet() bool {
	s := c.look()
	now, ok := c.clock.now(time.Now())
	return ok && s != nil && s.freshAsOf > now
}

const pollTimeout = time.Second

// poll looks at the hash now. After an error the last look stands, and ages.
func (c *control) poll(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	var s *controlState
	var asked time.Time
	var id string
	var err error
	for range looks {
		asked = time.Now()
		epoch := c.epoch.Load()
		var values []any
		id, values, err = c.read(bounded)
		c.asked(ctx, err)
		if err != nil {
			return fmt.Errorf("read the control hash: %w", err)
		}
		if s, err = parseControlState(values); err != nil {
			s = &controlState{}
		} else {
			s.stamps, err = c.stamps.at(bounded, s.revision)
		}
		s.err, s.asked, s.epoch, s.current = err, asked, epoch, c.epoch
		if id != "" {
			if err := c.servers.news(id, s, epoch, time.Now()); err != nil {
				return err
			}
		}
		if !errors.Is(err, errNoStamps) { // others may have been published in between
			break
		}
	}
	for {
		old := c.last.Load()
		if old != nil && old.asked.After(asked) {
			return err
		}
		if !c.last.CompareAndSwap(old, s) {
			continue
		}
		if id == "" && err == nil && (old == nil || old.err != nil || old.nodes != s.nodes) {
			c.servers.again()
		}
		return err
	}
}

// read reads the hash, and on which server; id is "" in a cluster.
func (c *control) read(ctx context.Context) (id string, values []any, err error) {
	if _, single := c.rdb.(*redis.Client); !single {
		values, err = c.rdb.HMGet(ctx, c.key, controlFields...).Result()
		return "", values, err
	}
	p := c.rdb.Pipeline()
	info, hash := p.Info(ctx, "replication"), p.HMGet(ctx, c.key, controlFields...)
	_, _ = p.Exec(ctx) // each command's error is looked at
	if values, err = hash.Result(); err != nil {
		return "", nil, err
	}
	id, err = identity(info)
	return id, values, err
}

var controlFields = []string{"state", "fresh_as_of", "applied", "end", "generation", "nodes", "stamps"}

func parseControlState(values []any) (*controlState, error) {
	var text [7]string // a hash without generation, nodes or stamps is one while nothing is followed
	for i := range text {
		if i >= len(values) {
			return nil, errors.New("the control hash cannot be read")
		}
		v, ok := values[i].(string)
		if !ok && i < 4 {
			return nil, fmt.Errorf("the control hash is missing, or has no field %s: is the daemon running with this redis.prefix and source.slot.name?",
				controlFields[i])
		}
		text[i] = v
	}
	s := &controlState{state: text[0], generation: text[4], nodes: text[5], revision: text[6]}
	fresh, err := strconv.ParseUint(text[1], 16, 63)
	if err != nil {
		return nil, fmt.Errorf("the control hash's fresh_as_of is %q", text[1])
	}
	s.freshAsOf = int64(fresh)
	end, err1 := lsn.ParseHex(text[3])
	applied, err2 := lsn.ParseHex(text[2])
	if err1 != nil || err2 != nil {
		return nil, fmt.Errorf("the control hash's positions are %q and %q", text[2], text[3])
	}
	s.reached = max(applied, end)
	return s, nil
}

// void says whether Redis has gone back to older data since.
func (s *controlState) void() bool {
	return s != nil && s.current != nil && s.current.Load() != s.epoch
}

// proves says whether a value of the class that is read from Redis after this look can be
// returned at t: it is within the class's budget, and spare. why tells what is in doubt.
func (s *controlState) proves(clock *sourceClock, class *mapping.Class, t time.Time, spare time.Duration) (ok bool, why string) {
	if s == nil || s.err != nil || s.void() {
		return false, doubtUnknown
	}
	switch s.state {
	case "ok", "catching_up":
	case doubtGap, doubtPaused:
		return false, s.state
	default:
		return false, doubtUnknown
	}
	at, known := clock.now(t)
	if !known || at < s.freshAsOf { // see clockWasSet
		return false, doubtUnknown
	}
	age := time.Duration(at-s.freshAsOf)*time.Microsecond + class.Hold()
	if age > class.Staleness+spare {
		return false, doubtLate
	}
	return true, ""
}

// atMost is what is known where a part of it is fresh to told only, in us since 1970.
func (s *controlState) atMost(told int64) *controlState {
	if s == nil || s.freshAsOf <= told {
		return s
	}
	less := *s
	less.freshAsOf = told
	return &less
}

// includes says whether everything that had been committed at the token's moment is
// applied. It says nothing of classes whose invalidations are held back.
func (s *controlState) includes(t *Token) bool {
	return s != nil && s.err == nil && !s.void() && (s.state == "ok" || s.state == "catching_up") && s.reached >= t.at
}

// sent asks for the position above which nothing has been applied yet.
func (c *control) sent(ctx context.Context) (lsn.LSN, error) {
	text, err := c.rdb.HGet(ctx, c.key, "sent").Result()
	if err != nil {
		return 0, fmt.Errorf("read the sent position: %w", err)
	}
	return lsn.ParseHex(text)
}
