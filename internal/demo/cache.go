package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// An entry is one string key that holds a value or the lease of the reader that is
// loading it. Deleting the key removes either: the value, or the right to store one.
const (
	markValue = "="
	markLease = "?"

	// leaseTime bounds how long a key stays locked by a reader that died. It is no
	// part of the proof: a fill after its lease has expired is refused.
	leaseTime = 5 * time.Second
)

// fillScript stores a value if the caller's lease still holds the key.
// KEYS[1] data key; ARGV lease, entry, TTL in ms. Returns 1 if stored.
var fillScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1`)

// outcome of one read, for the counters.
type outcome int

const (
	hit     outcome = iota
	filled          // missed, loaded and stored
	refused         // missed and loaded, but the lease was gone
	busy            // another reader was loading: loaded for itself, stored nothing
)

// through reads a key through the cache. load must take its snapshot when it is
// called, not before.
func through(ctx context.Context, rdb *redis.Client, key string, ttl time.Duration, load func() (string, error)) (string, outcome, error) {
	entry, err := rdb.Get(ctx, key).Result()
	switch {
	case err == nil && strings.HasPrefix(entry, markValue):
		return strings.TrimPrefix(entry, markValue), hit, nil
	case err != nil && !errors.Is(err, redis.Nil):
		return "", 0, fmt.Errorf("read the cache: %w", err)
	}
	lease := markLease + rand.Text()
	mine := false
	if err != nil { // absent
		err := rdb.SetArgs(ctx, key, lease, redis.SetArgs{Mode: "NX", TTL: leaseTime}).Err()
		if err != nil && !errors.Is(err, redis.Nil) {
			return "", 0, fmt.Errorf("take the lease: %w", err)
		}
		mine = err == nil
	}
	value, err := load()
	if err != nil || !mine {
		return value, busy, err
	}
	stored, err := fillScript.Run(ctx, rdb, []string{key}, lease, markValue+value, ttl.Milliseconds()).Int()
	if err != nil {
		return "", 0, fmt.Errorf("fill the cache: %w", err)
	}
	if stored == 0 {
		return value, refused, nil
	}
	return value, filled, nil
}
