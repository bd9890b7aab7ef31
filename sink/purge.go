package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/clusternode"
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

// Flush empties the whole database, which is for redis.dedicated: nothing but what is cached
// lies in it. The stamps go with it, and are to be published anew. Resend after any error.
func (r *Redis) Flush(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	const op = "flush the database"
	be, err := r.ready(ctx)
	if err != nil {
		return r.fail(op, "", err)
	}
	if err := r.flushDatabase(ctx, be); err != nil {
		return r.fail(op, "", err)
	}
	if err := r.publishPurge(ctx, be); err != nil {
		return err
	}
	return r.fail(op, "", r.seatHeld(ctx, be))
}

// Dedicated says whether the whole database may be flushed.
func (r *Redis) Dedicated() bool { return r.dedicated }

// publishPurge tells that everything was removed.
func (r *Redis) publishPurge(ctx context.Context, be *backend) error {
	r.news.everything()
	return r.fail("publish", "", r.publish(ctx, be))
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
			install = r.installCommand(ctx, be.guard.replID(be.addr(c)), "")
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

// purgeBatch does what a batch asks for that takes more than its keys: purges, and
// dependents.
func (r *Redis) purgeBatch(ctx context.Context, be *backend, b *ordering.Batch) error {
	for i := range b.Len() {
		e := b.Entry(i)
		var n int64
		var err error
		switch {
		case e.Op == mapping.OpDependents:
			_, err = r.dependents(ctx, be, e.Family.Entity, r.dependentsKey(string(e.Key)), e)
		case e.Op != mapping.OpPurge:
			continue
		case e.Family.Entity != nil:
			n, err = r.allDependents(ctx, be, e.Family, e)
		default:
			n, err = r.purge(ctx, be, e.Family, e.Tenant, r.stream(), e.CommitLSN)
		}
		if err != nil {
			var known *Error
			if errors.As(err, &known) {
				return err
			}
			return fmt.Errorf("%s of %s: %w", e.Op, e.Family.Name, err)
		}
		if e.Op == mapping.OpPurge {
			r.log.Info("purged", "family", e.Family.Name, "whole", e.Tenant == nil, "keys", n, "lsn", e.CommitLSN)
		}
	}
	return nil
}

// purge makes stale all that a family has, or all that a tenant has in it.
//
// Of a versioned family it moves the version key, whether it is there or not, where
// there is a single one for all of that. Else it moves the version keys that are
// there; a key that is not there cannot be found, so what readers cached under the
// version that they take then is removed itself.
func (r *Redis) purge(ctx context.Context, be *backend, f *mapping.Family, tenant []byte, stream string, at lsn.LSN) (int64, error) {
	if key, ok := f.VersionKey(tenant); ok {
		if err := r.moveVersion(ctx, be, key, stream, at); err != nil {
			return 0, err
		}
		r.metrics.purges.Inc()
		return 1, nil
	}
	versions := scan{r: r, be: be, pattern: f.Pattern(tenant), stream: stream, at: at}
	if f.Versioned {
		versions.advance = f.VersionKeys()
	}
	total, err := r.scanAll(ctx, be, versions)
	if err == nil && f.Versioned {
		var n int64
		n, err = r.scanAll(ctx, be, scan{r: r, be: be, pattern: f.AbsentPattern(tenant)})
		total += n
	}
	if err == nil {
		r.metrics.purges.Inc()
	}
	return total, err
}

// moveVersion moves one version key. A key that is not there becomes a version of
// our own stream, since one of a lower stream would be the same each time.
func (r *Redis) moveVersion(ctx context.Context, be *backend, key []byte, stream string, at lsn.LSN) error {
	streams := []string{r.stream()}
	if stream != streams[0] {
		streams = append(streams, stream) // counts up what is there by now
	}
	for attempt := 1; ; attempt++ {
		c, err := be.nodeFor(ctx, string(key))
		if err != nil {
			return err
		}
		nb := &nodeBatch{client: c, addr: be.addr(c)}
		if err := be.guard.node(nb.addr); err != nil {
			return err
		}
		r.plan.reset()
		for _, s := range streams {
			cmd := r.scripts.advance.command(ctx, []any{&keyArg{b: key}}, []any{s, at.Hex()})
			r.plan.advances = append(r.plan.advances, cmd)
			nb.cmds = append(nb.cmds, cmd)
		}
		_ = send(ctx, c, nb.cmds...) // each command's error is looked at
		if err = be.followAsk(ctx, nb); err == nil {
			err = r.settle(be, nb.addr, nb.cmds)
		}
		if err == nil || attempt == attempts {
			return err
		}
		if err := r.mendAll(ctx, be, err); err != nil {
			return err
		}
	}
}

// scanAll removes what a pattern matches on every primary, or moves it forward
// where the keys are versions.
//
// SCAN returns every key that is there from its start to its end, at least once.
// A key that a reader writes meanwhile is not old: its lease was taken after the
// change was visible, or the lease itself was there from the start and is
// removed. In a cluster a key may in addition move from a node not yet scanned to
// one already scanned; so when slots were moving, everything is scanned once
// more: what moved during the first pass lies still in the second.
func (r *Redis) scanAll(ctx context.Context, be *backend, proto scan) (int64, error) {
	if proto.limiter == nil {
		proto.limiter = r.limiter
	}
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
		n, err := clusternode.Parse(text)
		if err != nil {
			return layout{}, &Error{Addr: b.addr(c), Kind: KindUnavailable, Err: err}
		}
		own := n.ID + " " + strings.Join(n.Slots, " ")
		owners = append(owners, own)
		l.moving = l.moving || strings.Contains(own, "[")
		// A node that has no slot of its own yet is no primary to the topology,
		// but has the keys that moved already.
		for _, addr := range n.Targets {
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
