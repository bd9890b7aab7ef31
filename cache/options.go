package cache

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// DefaultTTL is how long values of a family without a ttl are kept.
const DefaultTTL = time.Hour

const (
	defaultLease       = 10 * time.Second
	defaultWait        = 2 * time.Second
	defaultLoadTimeout = 30 * time.Second

	defaultRedisTimeout = 500 * time.Millisecond

	// A control hash is looked at this many times within the strictest budget, and never
	// more often than pollMin.
	pollsInBudget = 10
	pollMin       = 20 * time.Millisecond
	pollMax       = time.Second
)

// Option configures Open.
type Option func(*options) error

type options struct {
	file        *mapping.File
	replica     *pgxpool.Pool
	logger      *slog.Logger
	registerer  prometheus.Registerer
	codec       Codec
	l1          int
	lease       time.Duration
	wait        time.Duration
	loadTimeout time.Duration

	redisTimeout time.Duration
	concurrency  int
}

// WithMappings names the mappings file that the daemon runs with. Keys and policies come
// from it. What its source.url and redis.url refer to need not be set in this process.
func WithMappings(path string) Option {
	return func(o *options) (err error) {
		o.file, err = mapping.LoadOffline(path)
		return err
	}
}

// WithMappingFile is WithMappings for a file that is parsed already.
func WithMappingFile(f *mapping.File) Option {
	return func(o *options) error { o.file = f; return nil }
}

// WithL1 keeps up to so many values in this process's memory as well, kept right by the
// daemon's invalidation stream (redis.stream_max_length in the mappings). A hit there costs
// no round trip. Such a value is shared by all who read it: it must not be changed.
func WithL1(entries int) Option {
	return func(o *options) error {
		if entries <= 0 {
			return fmt.Errorf("WithL1(%d): want at least 1", entries)
		}
		o.l1 = entries
		return nil
	}
}

// WithReplica names a hot standby of the source. Loads go there as long as it is far
// enough for what they store to be right, else to the primary.
func WithReplica(pool *pgxpool.Pool) Option {
	return func(o *options) error { o.replica = pool; return nil }
}

// WithLogger sets the logger; the default is silent. Values of rows are never logged.
func WithLogger(l *slog.Logger) Option {
	return func(o *options) error { o.logger = l; return nil }
}

// WithRegisterer registers the library's metrics, whose names begin with cache_.
func WithRegisterer(r prometheus.Registerer) Option {
	return func(o *options) error { o.registerer = r; return nil }
}

// WithCodec sets how values are stored; the default is JSON.
func WithCodec(c Codec) Option {
	return func(o *options) error { o.codec = c; return nil }
}

// WithLease sets for how long a reader may load before another one may; the default is
// 10 s. What is loaded more slowly is not stored.
func WithLease(d time.Duration) Option {
	return positive("WithLease", d, func(o *options) { o.lease = d })
}

// WithWait sets for how long a reader waits for another one's load before it loads for
// itself, and stores nothing; the default is 2 s.
func WithWait(d time.Duration) Option {
	return positive("WithWait", d, func(o *options) { o.wait = d })
}

// WithLoadTimeout bounds a load, with the wait for its turn; the default is 30 s. Loads go on
// when the reader that began one gives up, for the others that wait for it.
func WithLoadTimeout(d time.Duration) Option {
	return positive("WithLoadTimeout", d, func(o *options) { o.loadTimeout = d })
}

// WithRedisTimeout bounds each call to Redis, so that a read goes to the source when Redis
// hangs; the default is 500 ms, or the client's ReadTimeout where that is less. For that the
// cache uses a client of its own with the same options, which does not try again, and does not
// call the other's hooks. With 0 it keeps the client's own timeouts: what they add up to is how long
// a read can hang.
func WithRedisTimeout(d time.Duration) Option {
	if d == 0 {
		return func(o *options) error { o.redisTimeout = 0; return nil }
	}
	return positive("WithRedisTimeout", d, func(o *options) { o.redisTimeout = d })
}

// WithSourceConcurrency bounds how many loads run at a time. The default is the size of the
// pool.
func WithSourceConcurrency(n int) Option {
	return func(o *options) error {
		if n <= 0 {
			return fmt.Errorf("WithSourceConcurrency(%d): want at least 1", n)
		}
		o.concurrency = n
		return nil
	}
}

func positive(name string, d time.Duration, set func(*options)) Option {
	return func(o *options) error {
		if d < time.Millisecond {
			return fmt.Errorf("%s(%v): want at least 1 ms", name, d)
		}
		set(o)
		return nil
	}
}

// GetOption is an option of one read.
type GetOption func(*getOptions)

type getOptions struct{ token *Token }

// AtLeast asks for what had been committed at the token's moment, and before. The zero
// token asks for nothing.
func AtLeast(t Token) GetOption {
	return func(o *getOptions) {
		if !t.IsZero() {
			o.token = &t
		}
	}
}

// tokenOf is apart from its callers: what options are given escapes, and a read without any
// should not pay for that.
func tokenOf(opts []GetOption) *Token {
	if len(opts) == 0 {
		return nil
	}
	var o getOptions
	for _, option := range opts {
		option(&o)
	}
	return o.token
}
