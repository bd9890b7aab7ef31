package sink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/clusternode"
)

// Connection settings. The applier is one goroutine; the others (state, node,
// load) are rare, so a handful of connections is plenty, and their buffers are
// what the memory budget sees of Redis.
const (
	poolSize       = 4
	bufferSize     = 64 << 10
	dialTimeout    = time.Second
	ioTimeout      = time.Second
	reloadInterval = 5 * time.Second
	nameTimeout    = 250 * time.Millisecond
)

// backend is one set of connections and the guard that judges them. A new one is
// made by each Attach.
type backend struct {
	endpoint  *endpoint
	login     *atomic.Pointer[endpoint] // whose user, password and certificates new connections use
	guard     *guard
	label     string // what a standalone node or a sentinel group is called in errors
	single    *redis.Client
	cluster   *redis.ClusterClient
	sentinels []*redis.SentinelClient

	mu     sync.Mutex
	dialed string                   // sentinel: the address that the group's name led to last
	extra  map[string]*redis.Client // cluster: nodes that an ASK named
	nodes  map[string]*redis.Client // cluster: the primaries that were attached to, by address
}

func newBackend(login *atomic.Pointer[endpoint], g *guard) *backend {
	e := login.Load()
	b := &backend{endpoint: e, login: login, guard: g}
	switch e.kind {
	case standalone:
		b.label = e.addrs[0]
		b.single = redis.NewClient(b.options(b.label))
	case sentinel:
		b.label = "sentinel group " + e.master
		for _, addr := range e.addrs {
			o := b.baseOptions()
			o.Addr = addr
			o.CredentialsProvider = func() (string, string) { e := login.Load(); return e.sentinelUser, e.sentinelSecret }
			o.PoolSize, o.ReadBufferSize, o.WriteBufferSize = 1, 4<<10, 4<<10
			b.sentinels = append(b.sentinels, redis.NewSentinelClient(o))
		}
		o := b.options(b.label)
		// Not redis.NewFailoverClient: it gives the sentinels' connections to the
		// same OnConnect hook, and moves a client to another primary by itself.
		o.Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) {
			addr, err := b.primaryAddr(ctx)
			if err != nil {
				return nil, err
			}
			b.mu.Lock()
			b.dialed = addr
			b.mu.Unlock()
			return b.dial(ctx, network, addr)
		}
		b.single = redis.NewClient(o)
	case cluster:
		b.extra = make(map[string]*redis.Client)
		// The cluster client keeps the topology. Batches go to its nodes' own
		// clients, so that no redirect is followed to a node nobody has checked.
		b.cluster = redis.NewClusterClient(&redis.ClusterOptions{
			Addrs:                      e.addrs,
			MaxRedirects:               -1,
			ClusterStateReloadInterval: reloadInterval,
			DialTimeout:                dialTimeout,
			NewClient: func(o *redis.Options) *redis.Client {
				node := b.options(o.Addr)
				node.NodeAddress = o.NodeAddress
				return redis.NewClient(node)
			},
		})
	}
	return b
}

// baseOptions are the settings of every connection. No retries: a resend is the
// caller's, of a whole batch. RESP2 spares the look for push messages before each
// reply. No CLIENT SETINFO, which 7.0 refuses and an ACL cannot name there.
func (b *backend) baseOptions() *redis.Options {
	return &redis.Options{
		Protocol:              2,
		Dialer:                b.dial,
		CredentialsProvider:   b.credentials,
		MaxRetries:            -1,
		DialerRetries:         1,
		DialTimeout:           dialTimeout,
		ReadTimeout:           ioTimeout,
		WriteTimeout:          ioTimeout,
		ContextTimeoutEnabled: true,
		PoolSize:              poolSize,
		PoolTimeout:           2 * ioTimeout,
		PipelinePoolSize:      -1, // everything is a pipeline: one pool is enough
		ReadBufferSize:        bufferSize,
		WriteBufferSize:       bufferSize,
		DisableIdentity:       true,
	}
}

func (b *backend) options(addr string) *redis.Options {
	o := b.baseOptions()
	o.Network, o.Addr = b.endpoint.network, addr
	o.DB = b.endpoint.db
	if b.guard != nil { // nil for a look at the server, which trusts nothing to it
		o.OnConnect = b.guard.onConnect(addr, b.endpoint.kind == cluster)
	}
	return o
}

// primaryAddr asks the sentinels, in the order of the URL, where the group's
// primary is.
func (b *backend) primaryAddr(ctx context.Context) (string, error) {
	var errs []error
	for i, s := range b.sentinels {
		addr, err := s.GetMasterAddrByName(ctx, b.endpoint.master).Result()
		switch {
		case errors.Is(err, redis.Nil):
			err = &Error{Kind: KindConfiguration, Hint: "check the name after the last / of redis.url", Err: fmt.Errorf("knows no group %q", b.endpoint.master)}
		case isUnknownCommand(err):
			err = &Error{Kind: KindConfiguration, Hint: "it is no sentinel: use redis://host:port/db in redis.url, or the sentinels' port (26379)", Err: errors.New("does not know of sentinels")}
		case RefusesLogin(err):
			err = &Error{Kind: KindConfiguration, Hint: "see sentinel_username and sentinel_password in redis.url, which are not those of the data nodes", Err: err}
		case err == nil && len(addr) == 2:
			return net.JoinHostPort(addr[0], addr[1]), nil
		case err == nil:
			err = errors.New("malformed answer")
		}
		errs = append(errs, fmt.Errorf("sentinel %s: %w", b.endpoint.addrs[i], err))
	}
	return "", errors.Join(errs...)
}

// nodeFor returns the client of the primary that owns key.
func (b *backend) nodeFor(ctx context.Context, key string) (*redis.Client, error) {
	if b.single != nil {
		return b.single, nil
	}
	c, err := b.cluster.MasterForKey(ctx, key)
	if err != nil {
		return nil, topologyError(err)
	}
	return c, nil
}

func topologyError(err error) error {
	e := &Error{Err: fmt.Errorf("read the cluster's topology: %w", err)}
	e.Kind, e.Hint = classify(err)
	if e.Kind == KindOther {
		e.Kind = KindUnavailable
	}
	return e
}

// askedFor returns a client of the node that an ASK named, which need not own a
// slot yet.
func (b *backend) askedFor(addr string) *redis.Client {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.extra[addr]
	if c == nil {
		c = redis.NewClient(b.options(addr))
		b.extra[addr] = c
	}
	return c
}

func (b *backend) addr(c *redis.Client) string { return c.Options().Addr }

// primaries returns the clients of all primaries, in a cluster those of a
// topology that was read just now.
func (b *backend) primaries(ctx context.Context) ([]*redis.Client, error) {
	if b.single != nil {
		return []*redis.Client{b.single}, nil
	}
	var mu sync.Mutex
	var all []*redis.Client
	err := b.cluster.ForEachMaster(ctx, func(_ context.Context, c *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, c)
		return nil
	})
	if err == nil && len(all) == 0 {
		err = errors.New("no node owns a slot")
	}
	if err != nil {
		return nil, topologyError(err)
	}
	return all, nil
}

// keepNodes notes the clients of the primaries that were attached to.
func (b *backend) keepNodes(ctx context.Context) error {
	clients, err := b.primaries(ctx)
	if err != nil {
		return err
	}
	b.nodes = make(map[string]*redis.Client, len(clients))
	for _, c := range clients {
		b.nodes[b.addr(c)] = c
	}
	return nil
}

// identify asks every primary who it is now.
func (b *backend) identify(ctx context.Context) ([]Identity, error) {
	clients, err := b.primaries(ctx)
	if err != nil {
		return nil, err
	}
	ids := make([]Identity, 0, len(clients))
	for _, c := range clients {
		server, replication := redis.NewStringCmd(ctx, "info", "server"), redis.NewStringCmd(ctx, "info", "replication")
		cmds, nodes := []redis.Cmder{server, replication}, redis.NewStringCmd(ctx, "cluster", "nodes")
		if b.cluster != nil {
			cmds = append(cmds, nodes)
		}
		if err := send(ctx, c, cmds...); err != nil {
			return nil, wrap("", b.addr(c), "", err)
		}
		id, err := parseIdentity(b.addr(c), server.Val(), replication.Val())
		if err != nil {
			return nil, err
		}
		if b.cluster != nil {
			if id.node, err = clusternode.Parse(nodes.Val()); err != nil {
				return nil, &Error{Addr: id.Addr, Kind: KindUnavailable, Err: err}
			}
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// verify finds what a connection that stayed up does not tell: a primary that
// was demoted, a topology that moved, sentinels that follow another primary
// while the old one, cut off, goes on taking writes that will be lost.
func (b *backend) verify(ctx context.Context) error {
	ids, err := b.identify(ctx)
	if err != nil {
		return err
	}
	if err := b.guard.verify(ids); err != nil {
		return err
	}
	if b.endpoint.kind == standalone {
		return b.verifyName(ctx)
	}
	if b.endpoint.kind == sentinel {
		// Sentinels that cannot be asked prove nothing either way.
		now, err := b.primaryAddr(ctx)
		b.mu.Lock()
		dialed := b.dialed
		b.mu.Unlock()
		if err == nil && now != dialed {
			err := fmt.Errorf("%w: the sentinels name %s as the primary, connected is %s", ErrNodeChanged, now, dialed)
			b.guard.fail(err)
			return err
		}
	}
	return nil
}

// verifyName finds that the address leads to another primary by now: behind a name or a proxy
// connections that are up stay with the old one, which may take writes that nobody reads any
// more. A new one that does not come about, or leads to a replica, proves nothing.
func (b *backend) verifyName(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	o := b.baseOptions()
	o.Network, o.Addr, o.PoolSize = b.endpoint.network, b.label, 1
	c := redis.NewClient(o)
	defer c.Close()
	server, replication := redis.NewStringCmd(ctx, "info", "server"), redis.NewStringCmd(ctx, "info", "replication")
	if err := send(ctx, c, server, replication); err != nil {
		return nil //nolint:nilerr // the connections that are up go on
	}
	id, err := parseIdentity(b.label, server.Val(), replication.Val())
	if err != nil || id.Role != rolePrimary {
		return nil //nolint:nilerr // see above
	}
	return b.guard.verify([]Identity{id})
}

// noteReply looks at a reply's error for what it says about the node.
func (b *backend) noteReply(addr string, err error) {
	switch code := replyCode(err); code {
	case "READONLY", "MASTERDOWN":
		b.guard.fail(fmt.Errorf("%w: %s answers %s", ErrNodeChanged, addr, code))
	case "MOVED", "ASK", "CLUSTERDOWN":
		if b.cluster != nil {
			b.cluster.ReloadState(context.Background())
		}
	case "":
		// go-redis does not read the topology again when a node is gone.
		if b.cluster != nil && err != nil {
			b.cluster.ReloadState(context.Background())
		}
	}
}

func (b *backend) close() error {
	var errs []error
	if b.single != nil {
		errs = append(errs, b.single.Close())
	}
	if b.cluster != nil {
		errs = append(errs, b.cluster.Close())
	}
	for _, s := range b.sentinels {
		errs = append(errs, s.Close())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.extra {
		errs = append(errs, c.Close())
	}
	b.extra = nil
	return errors.Join(errs...)
}
