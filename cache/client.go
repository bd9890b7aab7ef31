package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Client reads through one Redis for one source. It is made once and used by all
// goroutines.
type Client struct {
	o       options
	rdb     redis.UniversalClient
	primary *pgxpool.Pool
	prefix  string
	plan    *mapping.Plan
	log     *slog.Logger
	metrics *metrics
	scripts *scripts

	clock   *sourceClock
	control *control
	source  *gate        // of loads
	redis   breaker      // so that reads do not wait for its timeouts while it is down
	trouble atomic.Bool  // its last call failed
	waiting atomic.Int64 // reads that wait for somebody else's load
	tags    *lru.Cache[string, []string]

	closed     atomic.Bool
	mu         sync.Mutex // begins background work, or closes
	ctx        context.Context
	cancel     context.CancelFunc
	background sync.WaitGroup
}

// knownTags is how many keys' dependencies are remembered, so that a load registers them
// up front instead of running twice.
const knownTags = 10_000

// Open prepares reading through rdb what is in pool's database. It starts to follow the
// daemon's control hash; while that cannot be read, reads go to the source. Close ends it.
//
// rdb should have ContextTimeoutEnabled, and timeouts of a second or less: they are what
// a read waits for when Redis hangs.
func Open(ctx context.Context, rdb redis.UniversalClient, pool *pgxpool.Pool, opts ...Option) (*Client, error) {
	o := options{codec: JSON, lease: defaultLease, wait: defaultWait, loadTimeout: defaultLoadTimeout, logger: slog.New(slog.DiscardHandler)}
	for _, option := range opts {
		if err := option(&o); err != nil {
			return nil, fmt.Errorf("cache: open: %w", err)
		}
	}
	if o.file == nil {
		return nil, errors.New("cache: open: no mappings: give WithMappings the path of the file that the daemon runs with")
	}
	if rdb == nil || pool == nil {
		return nil, errors.New("cache: open: a Redis client and a pool are needed")
	}
	plan, err := mapping.Compile(o.file)
	if err != nil {
		return nil, fmt.Errorf("cache: open: %w", err)
	}
	if o.concurrency == 0 {
		o.concurrency = int(pool.Config().MaxConns)
	}
	tags, err := lru.New[string, []string](knownTags)
	if err != nil {
		return nil, fmt.Errorf("cache: open: %w", err)
	}
	c := &Client{
		o: o, rdb: rdb, primary: pool, prefix: o.file.Redis.Prefix, plan: plan, log: o.logger, scripts: newScripts(),
		clock: &sourceClock{}, source: newGate(o.concurrency), redis: breaker{pause: redisPause}, tags: tags,
	}
	if c.metrics, err = newMetrics(o.registerer); err != nil {
		return nil, fmt.Errorf("cache: open: %w", err)
	}
	key := c.prefix + "source:{" + o.file.Source.Slot.Name + "}"
	c.control = newControl(rdb, key, pool, c.clock, pollInterval(plan), c.log)
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := c.openL1(); err != nil {
		c.cancel()
		return nil, fmt.Errorf("cache: open: %w", err)
	}
	c.firstLook(ctx)
	c.do(c.control.run)
	return c, nil
}

// firstLook lets the first reads be served from the cache. Where it fails, they are
// not, which is no error: what is down comes back.
func (c *Client) firstLook(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := c.clock.measure(ctx, c.primary); err != nil {
		c.log.Warn("the source does not tell its time yet: reads go past the cache until it does", "error", err)
	}
	if err := c.control.poll(ctx); err != nil {
		c.log.Warn("reads go past the cache until the daemon's control hash is there", "key", c.control.key, "error", err)
	}
}

// pollInterval follows from the strictest budget that is obeyed.
func pollInterval(plan *mapping.Plan) time.Duration {
	interval := pollMax
	for _, f := range plan.Families() {
		if f.Class.OnDoubt != onDoubtServe {
			interval = min(interval, f.Class.Staleness/pollsInBudget)
		}
	}
	return max(interval, pollMin)
}

// Close ends what runs in the background and waits for it. The pool and the Redis
// client stay open: they are the caller's.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed.Store(true)
	c.cancel()
	c.mu.Unlock()
	c.background.Wait()
	return nil
}

// do runs f in the background until Close; false after Close.
func (c *Client) do(f func(context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return false
	}
	c.background.Go(func() { f(c.ctx) })
	return true
}

const onDoubtServe = "serve"

// Other doubts, beside those of the control hash.
const (
	doubtRedis = "redis" // it does not answer
	doubtToken = "token" // what is cached is older than the read's token, and somebody else is loading
)

// trusted says whether what is cached of the family may be served now.
func (c *Client) trusted(f *family, now time.Time) (ok bool, why string) {
	if f.Class.OnDoubt == onDoubtServe {
		return true, ""
	}
	return c.control.proves(f.Class, now)
}

// meets says whether an entry is new enough for the token, which may be nil.
func (c *Client) meets(f *family, m *entryMeta, token *Token) bool {
	return token == nil || token.metBy(m) || !f.Class.Held() && c.control.reached(token)
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

// isReply says whether an error is an answer of Redis, which works then.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}
