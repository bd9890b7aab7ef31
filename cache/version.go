package cache

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// noVersion stands in keys that name nothing in Redis, but loads in this process.
const noVersion = "?"

var errRedisDown = errors.New("redis does not answer")

// version reads a family's version key. One that is not there (at first, or evicted) is
// made: to take a fixed value for it would bring back what was cached the last time that it
// was not there. A new version belongs to a stream (lua/advance.lua of the daemon) below all
// others, so that the daemon moves it on like any other.
func (v *View[T]) version(ctx context.Context, name string) (string, error) {
	if !v.c.redisUp(time.Now()) {
		return "", errRedisDown
	}
	mark := v.mark(name)
	version, err := v.c.rdb.Get(ctx, name).Result()
	if errors.Is(err, redis.Nil) {
		var random [8]byte
		_, _ = rand.Read(random[:]) // never fails
		var get *redis.StringCmd
		_, err = v.c.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.SetNX(ctx, name, "0000000000000000"+hex.EncodeToString(random[:])+"00000000", 0)
			get = p.Get(ctx, name)
			return nil
		})
		if err == nil {
			version, err = get.Result()
		}
	}
	v.c.asked(ctx, err)
	if err != nil {
		return "", err
	}
	v.storeVersion(mark, version)
	return version, nil
}
