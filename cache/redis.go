package cache

import (
	"context"
	"errors"
	"fmt"
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

// bounded is the client with the timeout for each call, if one is asked for. It shares the connections of the
// one that was given, but does not try again by itself: a read has the source to go to,
// and what Redis does not answer in time is not worth several times that. A cluster's client
// cannot be had anew without new connections, so its own options stand.
func bounded(rdb redis.UniversalClient, timeout time.Duration) redis.UniversalClient {
	c, ok := rdb.(*redis.Client)
	if !ok || timeout == 0 {
		return rdb
	}
	if has := c.Options().ReadTimeout; has > 0 {
		timeout = min(timeout, has)
	}
	own := c.WithTimeout(timeout)
	o := own.Options() // a copy that belongs to own alone
	o.MaxRetries = 0
	o.ContextTimeoutEnabled = true
	return own
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
