package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// plain reads a key as applications do without any of this: GET, on a miss load and
// SET with a TTL. It is what the control space is read with.
func plain(ctx context.Context, rdb *redis.Client, key string, ttl time.Duration, load func() (string, error)) (string, error) {
	value, err := rdb.Get(ctx, key).Result()
	if err == nil {
		return value, nil
	}
	if !errors.Is(err, redis.Nil) {
		return "", fmt.Errorf("read the cache: %w", err)
	}
	if value, err = load(); err != nil {
		return "", err
	}
	if err := rdb.Set(ctx, key, value, ttl).Err(); err != nil {
		return "", fmt.Errorf("fill the cache: %w", err)
	}
	return value, nil
}
