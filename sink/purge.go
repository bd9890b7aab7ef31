package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

const (
	// scanCount is how many keys one SCAN looks at: more hold up other clients.
	scanCount = 500
	// scanDiscount: to look at a key costs the server about a tenth of removing it,
	// so the rate limit counts it as that.
	scanDiscount = 10
)

// Progress tells of a purge of families.
type Progress struct {
	Family      string // done last; empty for a flushed database
	Done, Total int    // families
	Removed     int64  // keys removed, or moved forward, so far
}

// PurgeAll removes everything of the families: with redis.dedicated the whole
// database, else what a scan finds, at the configured rate. Version keys are
// moved on, to a value they never had. Resend after any error.
func (r *Redis) PurgeAll(ctx context.Context, families []*mapping.Family, progress func(Progress)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if progress == nil {
		progress = func(Progress) {}
	}
	be, err := r.ready(ctx)
	if err != nil {
		return r.fail("purge", "", err)
	}
	if r.dedicated {
		if err := r.flushDatabase(ctx, be); err != nil {
			return r.fail("purge", "", err)
		}
		progress(Progress{Done: len(families), Total: len(families)})
		return nil
	}
	p := Progress{Total: len(families)}
	for _, f := range families {
		// Stream 0 is below any other, so every version found is counted up.
		removed, err := r.purge(ctx, be, f, nil, "0000000000000000", 0)
		if err != nil {
			return r.fail("purge of family "+f.Name, "", err)
		}
		p.Family, p.Done, p.Removed = f.Name, p.Done+1, p.Removed+removed
		progress(p)
	}
	return nil
}

// flushDatabase empties every primary and puts the control hash back at once.
// Readers that look in between find none, which they are to read as a gap.
func (r *Redis) flushDatabase(ctx context.Context, be *backend) error {
	nodes, err := be.primaries(ctx)
	if err != nil {
		return err
	}
	control, err := be.nodeFor(ctx, r.controlKey)
	if err != nil {
		return err
	}
	for _, c := range nodes {
		if err := be.guard.node(be.addr(c)); err != nil {
			return err
		}
		flush := redis.NewStatusCmd(ctx, "flushdb", "async")
		cmds := []redis.Cmder{flush}
		var install *redis.Cmd
		if c == control {
			install = r.installCommand(ctx, be.guard.replID(be.addr(c)))
			cmds = append(cmds, install)
		}
		_ = send(ctx, c, cmds...) // each command's error is looked at
		if err := flush.Err(); err != nil {
			be.noteReply(be.addr(c), err)
			return wrap("", be.addr(c), "", err)
		}
		if install != nil {
			if r.controlAnswer(be, be.addr(c), install) != nil {
				if err := r.restore(ctx, be, c); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// purgeBatch does the purges that a batch asks for.
func (r *Redis) purgeBatch(ctx context.Context, be *backend, b *ordering.Batch) error {
	for i := range b.Len() {
		e := b.Entry(i)
		if e.Op != mapping.OpPurge {
			continue
		}
		removed, err := r.purge(ctx, be, e.Family, e.Tenant, r.stream(), e.CommitLSN)
		if err != nil {
			var known *Error
			if errors.As(err, &known) {
				return err
			}
			return fmt.Errorf("purge of family %s: %w", e.Family.Name, err)
		}
		r.log.Info("purged", "family", e.Family.Name, "whole", e.Tenant == nil, "keys", removed, "lsn", e.CommitLSN)
	}
	return nil
}

// purge removes what a family's pattern matches on every primary, or moves it
// forward where the keys are versions.
//
// SCAN returns every key that is there from its start to its end, at least once.
// A key that a reader writes meanwhile is not old: its lease was taken after the
// change was visible, or the lease itself was there from the start and is
// removed. In a cluster a key may in addition move from a node not yet scanned to
// one already scanned; so when slots were moving, everything is scanned once
// more: what moved during the first pass lies still in the second.
func (r *Redis) purge(ctx context.Context, be *backend, f *mapping.Family, tenant []byte, stream string, at lsn.LSN) (int64, error) {
	proto := scan{r: r, be: be, pattern: f.Pattern(tenant), versioned: f.Versioned, stream: stream, at: at}
	var total int64
	for pass := 1; ; pass++ {
		before, err := be.layout(ctx)
		if err != nil {
			return total, err
		}
		redirected := false
		for _, c := range before.nodes {
			s := proto
			s.c = c
			err := s.run(ctx)
			total += s.removed
			if err != nil {
				return total, err
			}
			redirected = redirected || s.redirected
		}
		after, err := be.layout(ctx)
		if err != nil {
			return total, err
		}
		quiet := !redirected && !before.moving && !after.moving && before.owners == after.owners
		if quiet || pass == 2 {
			r.metrics.purges.Inc()
			return total, nil
		}
	}
}

// layout is where keys can be.
type layout struct {
	nodes  []*redis.Client // the primaries, and nodes that slots are moving to
	owners string          // a fingerprint of who owns which slots
	moving bool
}

// layout asks the nodes. Each tells of its own moving slots only.
func (b *backend) layout(ctx context.Context) (layout, error) {
	primaries, err := b.primaries(ctx)
	if err != nil {
		return layout{}, err
	}
	l := layout{nodes: primaries}
	known := make(map[string]bool)
	for _, c := range primaries {
		if err := b.guard.node(b.addr(c)); err != nil {
			return layout{}, err
		}
		known[b.addr(c)] = true
	}
	if b.cluster == nil {
		return l, nil
	}
	var owners []string
	for _, c := range primaries {
		text, err := c.ClusterNodes(ctx).Result()
		if err != nil {
			b.noteReply(b.addr(c), err)
			return layout{}, wrap("", b.addr(c), "", err)
		}
		own, targets := parseClusterNodes(text)
		owners = append(owners, own)
		l.moving = l.moving || strings.Contains(own, "[")
		// A node that has no slot of its own yet is no primary to the topology,
		// but has the keys that moved already.
		for _, addr := range targets {
			if !known[addr] {
				known[addr] = true
				l.nodes = append(l.nodes, b.askedFor(addr))
			}
		}
	}
	slices.Sort(owners)
	l.owners = strings.Join(owners, "\n")
	return l, nil
}

// parseClusterNodes reads CLUSTER NODES, whose lines are
//
//	id host:port@bus[,name] flags primary ping pong epoch link slot...
//
// with [slot->-id] among the slots of the node that was asked, for one that moves
// away.
func parseClusterNodes(text string) (own string, targets []string) {
	addrs := make(map[string]string)
	var slots []string
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		addrs[f[0]], _, _ = strings.Cut(f[1], "@")
		if strings.Contains(f[2], "myself") {
			slots = f[8:]
			own = f[0] + " " + strings.Join(slots, " ")
		}
	}
	for _, s := range slots {
		if _, id, ok := strings.Cut(strings.Trim(s, "[]"), "->-"); ok && addrs[id] != "" {
			targets = append(targets, addrs[id])
		}
	}
	return own, targets
}

// scan is one pass over one node.
type scan struct {
	r          *Redis
	be         *backend
	c          *redis.Client
	pattern    string
	versioned  bool
	stream     string
	at         lsn.LSN
	removed    int64
	redirected bool // a key was on the move
}

func (s *scan) run(ctx context.Context) error {
	var cursor uint64
	for {
		if err := s.r.limiter.WaitN(ctx, scanCount/scanDiscount); err != nil {
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
		for len(keys) > 0 {
			n := min(len(keys), advanceKeys)
			if err := s.remove(ctx, keys[:n]); err != nil {
				return err
			}
			keys = keys[n:]
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// remove takes the keys that were found away, or forward. One that has moved to
// another node meanwhile is not an error: the next pass meets it there.
func (s *scan) remove(ctx context.Context, keys []string) error {
	if err := s.r.limiter.WaitN(ctx, len(keys)); err != nil {
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
