package cli

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/redis/go-redis/v9"
)

// redisLog takes what the Redis client would write to stderr past our own format. It
// has one logger for the whole process. What matters of it comes back as an error too, so
// this is for debugging.
type redisLog struct{ log *slog.Logger }

func (l redisLog) Printf(ctx context.Context, format string, args ...any) {
	l.log.DebugContext(ctx, "redis client: "+fmt.Sprintf(format, args...))
}

func logRedisTo(l *slog.Logger) { redis.SetLogger(redisLog{l}) }
