package cache

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
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
	failed bool // of the goroutine that runs
}

type controlState struct {
	state     string
	freshAsOf int64   // us since 1970, by the source's clock
	reached   lsn.LSN // nothing that ended at or below it is missing
	err       error   // the hash cannot be understood
}

// clockInterval is how often the source is asked for its time.
const clockInterval = 10 * time.Second

func newControl(rdb redis.UniversalClient, key string, source querier, clock *sourceClock, interval time.Duration, log *slog.Logger) *control {
	return &control{rdb: rdb, key: key, source: source, clock: clock, interval: interval, log: log}
}

// run looks at the hash, and at the source's clock, until ctx ends.
func (c *control) run(ctx context.Context) {
	tick := time.NewTicker(c.interval)
	defer tick.Stop()
	measured := time.Now()
	if _, ok := c.clock.now(measured); !ok {
		measured = time.Time{}
	}
	for {
		if time.Since(measured) >= clockInterval {
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
		bounded, cancel := context.WithTimeout(ctx, time.Second)
		err := c.poll(bounded)
		cancel()
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

// poll looks at the hash now. After an error the last look stands, and ages.
func (c *control) poll(ctx context.Context) error {
	values, err := c.rdb.HMGet(ctx, c.key, "state", "fresh_as_of", "applied", "end").Result()
	if err != nil {
		return fmt.Errorf("read the control hash: %w", err)
	}
	s, err := parseControlState(values)
	if err != nil {
		s = &controlState{err: err}
	}
	c.last.Store(s)
	return err
}

func parseControlState(values []any) (*controlState, error) {
	var text [4]string
	for i := range text {
		v, ok := values[i].(string)
		if !ok {
			return nil, fmt.Errorf("the control hash is missing, or has no field %s: is the daemon running with this redis.prefix and source.slot.name?",
				[...]string{"state", "fresh_as_of", "applied", "end"}[i])
		}
		text[i] = v
	}
	s := &controlState{state: text[0]}
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

// proves says whether a value of the class that is in Redis at the time now is within the
// class's budget; why tells what is in doubt.
func (c *control) proves(class *mapping.Class, now time.Time) (ok bool, why string) {
	s := c.last.Load()
	if s == nil || s.err != nil {
		return false, doubtUnknown
	}
	switch s.state {
	case "ok", "catching_up":
	case "gap", "paused":
		return false, s.state
	default:
		return false, doubtUnknown
	}
	at, known := c.clock.now(now)
	if !known {
		return false, doubtUnknown
	}
	age := time.Duration(at-s.freshAsOf)*time.Microsecond + class.Hold()
	if age > class.Staleness {
		return false, doubtLate
	}
	return true, ""
}

// reached says whether everything that had been committed at the token's moment is
// applied. It says nothing of classes whose invalidations are held back.
func (c *control) reached(t *Token) bool {
	s := c.last.Load()
	return s != nil && s.err == nil && (s.state == "ok" || s.state == "catching_up") && s.reached >= t.at
}

// sent asks for the position above which nothing has been applied yet.
func (c *control) sent(ctx context.Context) (lsn.LSN, error) {
	text, err := c.rdb.HGet(ctx, c.key, "sent").Result()
	if err != nil {
		return 0, fmt.Errorf("read the sent position: %w", err)
	}
	return lsn.ParseHex(text)
}
