package sink

import (
	"context"
	"fmt"
	"regexp"
	"slices"

	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// scan is one pass over one node.
type scan struct {
	r          *Redis
	be         *backend
	c          *redis.Client
	pattern    string
	advance    *regexp.Regexp // of what the pattern matches these are version keys, to be moved on
	versioned  bool           // what is being removed is
	stream     string
	limiter    *rate.Limiter
	sort       func(keys []string) (remove, versions []string) // of what the pattern matches; may be nil
	page       func(removed int64)                             // called after each page; may be nil
	each       func(key string) error                          // instead of removing; of keys that belong to the sink
	at         lsn.LSN
	removed    int64
	redirected bool // a key was on the move
}

func (s *scan) run(ctx context.Context) error {
	var cursor uint64
	for {
		if err := s.limiter.WaitN(ctx, scanCount/scanDiscount); err != nil {
			return err
		}
		cmd := s.c.Scan(ctx, cursor, s.pattern, scanCount)
		keys, next, err := cmd.Result()
		if err != nil {
			s.be.noteReply(s.be.addr(s.c), err)
			return wrap("", s.be.addr(s.c), "", err)
		}
		s.r.metrics.purgeScanned.Add(float64(len(keys)))
		if s.r.onScan != nil {
			s.r.onScan()
		}
		if err := s.handle(ctx, keys); err != nil {
			return err
		}
		if s.page != nil {
			s.page(s.removed)
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// handle does with a page of keys what the scan is for.
func (s *scan) handle(ctx context.Context, keys []string) error {
	if s.each != nil {
		for _, key := range keys {
			if err := s.each(key); err != nil {
				return err
			}
		}
		return nil
	}
	var versions []string
	switch {
	case s.sort != nil:
		keys, versions = s.sort(keys)
	case s.advance != nil:
		versions = slices.DeleteFunc(keys, func(key string) bool { return !s.advance.MatchString(key) })
		keys = nil
	}
	for _, part := range []struct {
		keys      []string
		versioned bool
	}{{versions, true}, {keys, false}} { // what may be either is removed in the end
		s.versioned = part.versioned
		for keys := range slices.Chunk(part.keys, advanceKeys) {
			if err := s.remove(ctx, keys); err != nil {
				return err
			}
		}
	}
	return nil
}

// remove takes the keys that were found away, or forward. One that has moved to
// another node meanwhile is not an error: the next pass meets it there.
func (s *scan) remove(ctx context.Context, keys []string) error {
	if err := s.limiter.WaitN(ctx, len(keys)); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		cmds := s.commands(ctx, keys)
		_ = send(ctx, s.c, cmds...) // each command's error is looked at
		s.askMoved(ctx, cmds)
		var first error
		removed := int64(0)
		for _, cmd := range cmds {
			err := cmd.Err()
			switch code := replyCode(err); {
			case err == nil:
				removed += replyCount(cmd)
			case s.be.cluster != nil && (code == "MOVED" || code == "ASK"):
				s.redirected = true
			default:
				s.be.noteReply(s.be.addr(s.c), err)
				if first == nil {
					first = fmt.Errorf("%s: %w", cmd.Name(), err)
				}
			}
		}
		if first == nil {
			s.removed += removed
			s.r.metrics.purgeRemoved.Add(float64(removed))
			return nil
		}
		if attempt < attempts {
			first = s.r.mend(ctx, s.be, s.c, first)
		}
		if first != nil {
			return wrap("", s.be.addr(s.c), "", first)
		}
	}
}

// askMoved sends what was answered with MOVED again: a node that imports a slot
// has some of its keys already and takes commands for them only after ASKING.
func (s *scan) askMoved(ctx context.Context, cmds []redis.Cmder) {
	var again []redis.Cmder
	for _, cmd := range cmds {
		if s.be.cluster != nil && cmd.Err() != nil && replyCode(cmd.Err()) == "MOVED" {
			again = append(again, redis.NewStatusCmd(ctx, "asking"), cmd)
		}
	}
	if again != nil {
		_ = send(ctx, s.c, again...) // the caller looks at each command's error
	}
}

func (s *scan) commands(ctx context.Context, keys []string) []redis.Cmder {
	per := len(keys)
	if s.be.cluster != nil {
		per = 1
	}
	var cmds []redis.Cmder
	for len(keys) > 0 {
		args := make([]any, 0, per+1)
		for i := range keys[:per] {
			args = append(args, &keys[i])
		}
		keys = keys[per:]
		var cmd redis.Cmder
		if s.versioned {
			argv := []any{s.stream}
			for range args {
				argv = append(argv, s.at.Hex())
			}
			cmd = s.r.scripts.advance.command(ctx, args, argv)
		} else {
			cmd = redis.NewIntCmd(ctx, append([]any{"unlink"}, args...)...)
		}
		cmds = append(cmds, cmd)
	}
	return cmds
}

func replyCount(cmd redis.Cmder) int64 {
	switch c := cmd.(type) {
	case *redis.IntCmd:
		return c.Val()
	case *redis.Cmd:
		n, _ := c.Int64()
		return n
	}
	return 0
}
