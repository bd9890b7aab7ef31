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
	rdb     redis.UniversalClient // see connect
	primary *pgxpool.Pool
	prefix  string
	plan    *mapping.Plan
	log     *slog.Logger
	metrics *metrics
	scripts *scripts

	clock   *sourceClock
	control *control
	types   *keyTypes
	l1      *l1     // nil without
	source  *gate   // of loads
	redis   breaker // so that reads do not wait for its timeouts while it is down
	standby breaker
	trouble atomic.Bool // its last call failed
	tags    *lru.Cache[string, []string]

	closed     atomic.Bool
	mu         sync.Mutex // begins background work, or closes
	ctx        context.Context
	cancel     context.CancelFunc
	disconnect func() error
	background sync.WaitGroup
}

// minStall is how long the control hash stands still at least before another server is looked for.
const minStall = 500 * time.Millisecond

// knownTags is how many keys' dependencies are remembered, so that a load registers them
// up front instead of running twice.
const knownTags = 10_000

// Open prepares reading through rdb what is in pool's database. It starts to follow the
// daemon's control hash; while that cannot be read, reads go to the source. Close ends it.
//
// When Redis hangs, a read waits for WithRedisTimeout before it goes to the source. The
// client of a cluster must bring that along itself: give it ContextTimeoutEnabled, and
// timeouts of a second or less.
func Open(ctx context.Context, rdb redis.UniversalClient, pool *pgxpool.Pool, opts ...Option) (*Client, error) {
	o := options{codec: JSON, lease: defaultLease, wait: defaultWait, loadTimeout: defaultLoadTimeout, redisTimeout: defaultRedisTimeout, logger: slog.New(slog.DiscardHandler)}
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
	if err := checkReads(rdb); err != nil {
		return nil, fmt.Errorf("cache: open: %w", err)
	}
	plan, err := mapping.Compile(o.file)
	if err != nil {
		return nil, fmt.Errorf("cache: open: %w", err)
	}
	if err := checkHeartbeat(o.file, plan); err != nil {
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
		o: o, primary: pool, prefix: o.file.Redis.Prefix, plan: plan, log: o.logger, scripts: newScripts(),
		clock: &sourceClock{}, tags: tags, types: newKeyTypes(pool, plan, o.logger),
	}
	c.source = newGate(o.concurrency, c.breakerChanged("the source"))
	c.redis = breaker{pause: redisPause, onChange: c.breakerChanged("redis")}
	c.standby = breaker{pause: sourcePause, onChange: c.breakerChanged("the standby")}
	if c.metrics, err = newMetrics(o.registerer, o.l1 > 0); err != nil {
		return nil, fmt.Errorf("cache: open: %w", err)
	}
	key := mapping.ControlKey(c.prefix, o.file.Source.Slot.Name)
	c.control = newControl(key, pool, c.clock, pollInterval(plan), c.log)
	c.control.stamps = &stampReader{key: mapping.StampsKey(c.prefix, o.file.Source.Slot.Name), plan: plan, log: c.log, types: c.types}
	c.control.asked = c.asked
	judge := c.control.servers
	judge.prefix, judge.slot, judge.stall = c.prefix, o.file.Source.Slot.Name, max(minStall, 2*o.file.Source.Heartbeat)
	c.rdb, c.disconnect = connect(rdb, o.redisTimeout, judge)
	c.control.rdb, c.control.stamps.rdb = c.rdb, c.rdb
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := c.openL1(); err != nil {
		c.cancel()
		c.metrics.unregister()
		_ = c.disconnect()
		return nil, fmt.Errorf("cache: open: %w", err)
	}
	c.firstLook(ctx)
	c.do(c.control.run)
	c.do(c.types.watch)
	return c, nil
}

// checkHeartbeat refuses a file with which nothing would ever be served from the cache.
func checkHeartbeat(f *mapping.File, plan *mapping.Plan) error {
	for _, family := range plan.Families() {
		if f.Source.Heartbeat == 0 && family.Class.OnDoubt != onDoubtServe {
			return fmt.Errorf("%s: source.heartbeat is 0, so that no read of the family %s can know that its value is young enough: leave the field out, or give the class %s on_doubt: serve",
				f.Name, family.Name, family.Class.Name)
		}
	}
	return nil
}

// firstLook lets the first reads be served from the cache. Where it fails, they are
// not, which is no error: what is down comes back.
func (c *Client) firstLook(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := c.clock.measure(ctx, c.primary); err != nil {
		c.log.Warn("the source does not tell its time yet: reads go past the cache until it does", "error", err)
	}
	if err := c.types.read(ctx); err != nil {
		c.log.Warn("the source does not tell of what types key columns are yet: reads go past the cache until it does", "error", err)
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

func (c *Client) breakerChanged(server string) func(bool) {
	return func(open bool) {
		if open {
			c.log.Warn(server+" has not answered several times in a row; it is left alone, and tried again all the time", "failures", breakerFailures)
		} else {
			c.log.Info(server + " answers again")
		}
	}
}

// Close ends what runs in the background and waits for it. The pool and the Redis
// client stay open: they are the caller's.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed.Store(true)
	c.cancel()
	c.mu.Unlock()
	c.background.Wait()
	c.metrics.unregister()
	return c.disconnect()
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

// detached runs f in the background until Close, on a context with the values of ctx that
// does not end with it but after the time that a load may take; false after Close.
func (c *Client) detached(ctx context.Context, f func(context.Context)) bool {
	return c.do(func(closing context.Context) {
		ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), c.o.loadTimeout, errLoadTimeout)
		defer cancel()
		defer context.AfterFunc(closing, cancel)()
		f(ctx)
	})
}

const onDoubtServe = "serve"

// Other doubts, beside those of the control hash.
const (
	doubtRedis = "redis" // it does not answer
	doubtTypes = "types" // those of the columns that keys are made of are not known
)

// holds says whether what was read of the family from Redis, after the daemon's state known
// was, may be returned at t.
func (c *Client) holds(f *family, known *controlState, t time.Time) (ok bool, why string) {
	if f.Class.OnDoubt == onDoubtServe {
		return true, ""
	}
	if ok, why = known.proves(c.clock, f.Class, t, 0); ok && known.stamp(f) == "" {
		return false, doubtStamp
	}
	return ok, why
}

// meets says whether an entry, which was read after known was, is new enough for the
// token, which may be nil. What the daemon has applied is gone from Redis, but for values
// that it has only marked as stale, and for what it holds back on purpose.
func (c *Client) meets(f *family, m *entryMeta, token *Token, known *controlState) bool {
	return token == nil || token.metBy(m) || m.freshUntil != 0 && !f.Class.Held() && known.includes(token)
}
