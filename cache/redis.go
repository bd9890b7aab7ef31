package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// checkReads refuses clients whose reads may be answered by somebody who has not got
// the last invalidation yet.
func checkReads(rdb redis.UniversalClient) error {
	switch c := rdb.(type) {
	case *redis.Client:
		if o := c.Options(); o.ClientSideCache != nil || o.ClientSideCacheConfig != nil {
			return errors.New("the Redis client has a cache of its own, which may be older than any budget: switch ClientSideCache off, and use WithL1")
		}
	case *redis.ClusterClient:
		if c.Options().ReadOnly {
			return errors.New("the Redis client may read from replicas, which lag behind: switch ReadOnly, RouteByLatency, RouteRandomly and ReplicaOnly off")
		}
	default:
		return fmt.Errorf("a %T spreads or hides its nodes in a way that the cache does not know: give a *redis.Client (of NewClient or NewFailoverClient) or a *redis.ClusterClient", rdb)
	}
	return nil
}

// connect is the client that the library uses: one of its own with the options of the one
// that was given, whose calls end within about the timeout, connecting included, and are not
// tried again: a read has the source to go to. met is run on each new connection before
// anything else is. A cluster's client, and any without a timeout, is used as it is.
func connect(rdb redis.UniversalClient, timeout time.Duration, met func(context.Context, *redis.Conn) error) (own redis.UniversalClient, disconnect func() error) {
	given, ok := rdb.(*redis.Client)
	if !ok || timeout == 0 {
		return rdb, func() error { return nil }
	}
	o := *given.Options()
	o.PushNotificationProcessor = nil // belongs to one client
	for _, t := range []*time.Duration{&o.ReadTimeout, &o.WriteTimeout, &o.DialTimeout, &o.PoolTimeout} {
		if *t <= 0 || *t > timeout {
			*t = timeout
		}
	}
	o.DialerRetries = 1
	o.MaxRetries = -1 // none
	o.ContextTimeoutEnabled = true
	theirs := o.OnConnect
	o.OnConnect = func(ctx context.Context, conn *redis.Conn) error {
		if theirs != nil {
			if err := theirs(ctx, conn); err != nil {
				return err
			}
		}
		return met(ctx, conn)
	}
	client := redis.NewClient(&o)
	if o.Addr == failoverAddr {
		client.AddHook(&oneServer{})
	}
	return client, sync.OnceValue(client.Close)
}

// failoverAddr stands in the options of clients that follow Sentinel.
const failoverAddr = "FailoverClient"

// oneServer closes the connections to another server than the one that was connected to last: a
// client that follows Sentinel has been led to a new primary then, and the old one, where it can
// be reached still, does not hear of what is invalidated.
type oneServer struct {
	mu    sync.Mutex
	addr  string
	conns map[net.Conn]struct{}
}

// DialHook implements redis.Hook.
func (s *oneServer) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return s.took(conn), nil
	}
}

func (s *oneServer) took(conn net.Conn) net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := conn.RemoteAddr().String(); at != s.addr {
		for old := range s.conns {
			_ = old.Close() // its next use fails, and is made on a new connection
		}
		s.addr, s.conns = at, map[net.Conn]struct{}{}
	}
	s.conns[conn] = struct{}{}
	if plain, ok := conn.(syscall.Conn); ok {
		return &plainConn{oneConn{conn, s}, plain}
	}
	return &oneConn{conn, s}
}

// ProcessHook implements redis.Hook.
func (*oneServer) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook implements redis.Hook.
func (*oneServer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// oneConn is a connection of oneServer.
type oneConn struct {
	net.Conn
	of *oneServer
}

// Close implements net.Conn.
func (c *oneConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c.Conn)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// plainConn is one without TLS, of which the client can see when the server has closed it.
type plainConn struct {
	oneConn
	syscall.Conn
}

// redisPause is how long Redis is left alone after it has failed several times.
const redisPause = 200 * time.Millisecond

// asked notes how a call to Redis went. A caller that gives up says nothing of Redis.
func (c *Client) asked(ctx context.Context, err error) {
	failed := err != nil && !errors.Is(err, redis.Nil) && !isReply(err)
	if failed && ctx.Err() != nil {
		return
	}
	if failed || c.trouble.Load() {
		c.redis.done(failed, time.Now())
		c.trouble.Store(failed)
	}
}

// redisUp says whether Redis is worth a call. While it works, that costs nothing.
func (c *Client) redisUp(now time.Time) bool { return !c.trouble.Load() || c.redis.allow(now) }

// isReply says whether an error is an answer of Redis, which works then. What it says
// while it starts, or has lost its primary, is no answer.
func isReply(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	for _, prefix := range []string{"LOADING", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "TRYAGAIN"} {
		if redis.HasErrorPrefix(err, prefix) {
			return false
		}
	}
	return true
}
