package sink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// guard decides whether a connection leads to the process, and the history of
// writes, that the sink attached to.
//
// go-redis replaces connections inside its pool without a word, so a check
// before each batch proves nothing about the connection that the batch then
// takes. The guard therefore sits in the pool's OnConnect hook: a connection to
// anything else fails before its first command, and the commands with it.
//
// Until it is sealed the first connection to an address decides what is there;
// sealing names the primaries that batches may go to. A guard lives as long as
// its backend: attaching again makes new connections and a new guard, so that no
// connection judged by the old one survives.
type guard struct {
	scripts     *scripts
	connections func() // counts

	mu        sync.Mutex
	seen      map[string]Identity // by address as dialled
	primaries map[string]bool     // nil until sealed
	changed   error               // the first change that was seen: sticks
	broken    atomic.Bool         // changed != nil, readable without the lock
	stale     atomic.Bool         // slots have moved since the primaries were asked
}

func newGuard(s *scripts, connections func()) *guard {
	return &guard{scripts: s, connections: connections, seen: make(map[string]Identity)}
}

// handshakeError is a layer for go-redis to peel off: it hands on what a failed
// hook's error wraps instead of that error, and with it the details would go.
type handshakeError struct{ error }

func (e *handshakeError) Unwrap() error { return e.error }

// onConnect is the hook for connections to addr.
func (g *guard) onConnect(addr string, clustered bool) func(context.Context, *redis.Conn) error {
	return func(ctx context.Context, cn *redis.Conn) error {
		g.connections()
		if err := g.check(ctx, cn, addr, clustered); err != nil {
			return &handshakeError{err}
		}
		return nil
	}
}

// check asks the node who it is and, in the same round trip, loads the scripts.
func (g *guard) check(ctx context.Context, cn *redis.Conn, addr string, clustered bool) error {
	p := cn.Pipeline()
	server, replication := p.Info(ctx, "server"), p.Info(ctx, "replication")
	loads := g.scripts.loads(ctx)
	_ = p.BatchProcess(ctx, loads...)
	_, _ = p.Exec(ctx) // each command's error is looked at below
	if err := firstError([]redis.Cmder{server, replication}); err != nil {
		return fmt.Errorf("identify the node: %w", err)
	}
	id, err := parseIdentity(addr, server.Val(), replication.Val())
	if err != nil {
		return err
	}
	if err := g.admit(id, clustered); err != nil {
		return err
	}
	if id.Role != rolePrimary {
		return nil // a cluster's replica: asked for the topology only
	}
	if err := firstError(loads); err != nil {
		return fmt.Errorf("load the scripts: %w", err)
	}
	return nil
}

// admit judges one connection.
func (g *guard) admit(id Identity, clustered bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.changed != nil {
		return g.changed
	}
	prev, known := g.seen[id.Addr]
	switch {
	case g.primaries != nil && clustered && !g.primaries[id.Addr]:
		// Not a node that a batch may go to; node() refuses it should the
		// topology ever name it.
		return nil
	case known && !prev.same(id):
		if g.primaries == nil && clustered {
			// A topology that moves while it is being attached to.
			g.seen[id.Addr] = id
			return nil
		}
		return g.setChanged(fmt.Errorf("%w: %s", ErrNodeChanged, prev.difference(id)))
	case !clustered:
		if err := id.usable(clustered); err != nil {
			return err
		}
	}
	g.seen[id.Addr] = id
	return nil
}

// usable says why a node cannot be worked on.
func (id Identity) usable(clustered bool) error {
	switch {
	case !clustered && id.clustered:
		return &Error{Kind: KindConfiguration, Addr: id.Addr, Hint: clusterHint, Err: errors.New("redis.url names one server")}
	case id.Role != rolePrimary:
		return notPrimary(id)
	}
	return nil
}

// notPrimary is for a node that takes no writes. After a failover that can be a matter of
// seconds; of one that redis.url names it is a wrong URL.
func notPrimary(id Identity) error {
	return &Error{Kind: KindUnavailable, Addr: id.Addr, Hint: "redis.url must lead to the primary, or to the sentinels (redis+sentinel://)",
		Err: fmt.Errorf("%w: the node is a %s", ErrReplica, id.Role)}
}

// seal ends the attaching: batches go to these primaries only, as they are now.
func (g *guard) seal(primaries []Identity) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.primaries = make(map[string]bool, len(primaries))
	for _, id := range primaries {
		g.primaries[id.Addr] = true
		g.seen[id.Addr] = id
	}
}

func (g *guard) sealed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.primaries != nil
}

// node reports whether a batch may go to addr. It is asked per batch and node.
func (g *guard) node(addr string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.changed != nil:
		return g.changed
	case g.primaries == nil:
		return ErrNotAttached
	case !g.primaries[addr]:
		return g.setChanged(fmt.Errorf("%w: %s serves keys and was no primary when the sink attached", ErrNodeChanged, addr))
	}
	return nil
}

// verify compares what the primaries say of themselves now with what was sealed.
func (g *guard) verify(now []Identity) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.changed != nil {
		return g.changed
	}
	if g.primaries == nil {
		return ErrNotAttached
	}
	for _, id := range now {
		prev, known := g.seen[id.Addr]
		if !known || !g.primaries[id.Addr] {
			return g.setChanged(fmt.Errorf("%w: %s is a primary that was not there when the sink attached", ErrNodeChanged, id.Addr))
		}
		if !prev.same(id) {
			return g.setChanged(fmt.Errorf("%w: %s", ErrNodeChanged, prev.difference(id)))
		}
	}
	if len(now) != len(g.primaries) {
		return g.setChanged(fmt.Errorf("%w: %d primaries, %d when the sink attached", ErrNodeChanged, len(now), len(g.primaries)))
	}
	for _, id := range now {
		g.seen[id.Addr] = id // which slots it has by now
	}
	g.stale.Store(false)
	return nil
}

// fail records a change that a reply told of (READONLY).
func (g *guard) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.changed == nil {
		_ = g.setChanged(err)
	}
}

func (g *guard) setChanged(err error) error {
	g.changed = err
	g.broken.Store(true)
	return err
}

// replID is the replication id that a primary was sealed with.
func (g *guard) replID(addr string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seen[addr].ReplID
}
