package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
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
// that was given. Each new connection is judged before anything is read on it, see
// servers. With a timeout, calls end within about that, connecting included. Nothing is tried
// again: a read has the source to go to, and read.lua must not be sent twice. The client does
// not follow a server that announces its move: that moves a connection to another server.
func connect(rdb redis.UniversalClient, timeout time.Duration, judge *servers) (own redis.UniversalClient, disconnect func() error) {
	switch given := rdb.(type) {
	case *redis.ClusterClient:
		o := *given.Options()
		o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		bound(timeout, &o.ReadTimeout, &o.WriteTimeout, &o.DialTimeout, &o.PoolTimeout)
		if timeout > 0 {
			o.DialerRetries, o.ContextTimeoutEnabled = 1, true
		}
		theirs := o.NewClient
		if theirs == nil {
			theirs = redis.NewClient
		}
		o.NewClient = func(node *redis.Options) *redis.Client {
			n := judge.node()
			node.OnConnect = both(node.OnConnect, n.met)
			if node.Dialer == nil {
				node.Dialer = redis.NewDialer(node)
			}
			node.Dialer = n.dialer(node.Dialer)
			client := theirs(node)
			client.AddHook(n)
			return client
		}
		client := redis.NewClusterClient(&o)
		return client, sync.OnceValue(client.Close)
	case *redis.Client:
		o := *given.Options()
		o.PushNotificationProcessor = nil // belongs to one client
		o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		bound(timeout, &o.ReadTimeout, &o.WriteTimeout, &o.DialTimeout, &o.PoolTimeout)
		if timeout > 0 {
			o.DialerRetries, o.ContextTimeoutEnabled = 1, true
		}
		o.MaxRetries = -1 // none
		o.OnConnect = both(o.OnConnect, judge.met)
		again := o
		again.PoolSize, again.MinIdleConns = 1, 0
		o.Dialer = judge.conns.dialer(o.Dialer)
		client := redis.NewClient(&o)
		judge.look = func(ctx context.Context) error {
			probe := redis.NewClient(&again)
			defer probe.Close()
			return probe.Ping(ctx).Err()
		}
		return client, sync.OnceValue(client.Close)
	}
	return rdb, func() error { return nil } // checkReads has refused it
}

// bound makes timeouts no longer than most, unless that is 0.
func bound(most time.Duration, timeouts ...*time.Duration) {
	for _, t := range timeouts {
		if most > 0 && (*t <= 0 || *t > most) {
			*t = most
		}
	}
}

type onConnect = func(ctx context.Context, conn *redis.Conn) error

func both(theirs, ours onConnect) onConnect {
	if theirs == nil {
		return ours
	}
	return func(ctx context.Context, conn *redis.Conn) error {
		if err := theirs(ctx, conn); err != nil {
			return err
		}
		return ours(ctx, conn)
	}
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
