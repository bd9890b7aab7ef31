package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// comparison of cached values with their rows.
type comparison struct {
	cached  int // values found
	stale   int
	example string // of a stale one
}

// compare loads every entry given and compares it with what is cached for it. It
// returns the keys that it looked at.
func compare(ctx context.Context, rdb *redis.Client, conn *pgx.Conn, entries []*entry, control bool) (comparison, map[string]bool, error) {
	var c comparison
	looked := make(map[string]bool, len(entries))
	for _, e := range entries {
		key, err := e.key(ctx, rdb, control)
		if err != nil {
			return c, nil, err
		}
		looked[key] = true
		cached, err := rdb.Get(ctx, key).Result()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return c, nil, fmt.Errorf("read %s: %w", key, err)
		}
		if !control {
			var fresh bool
			if cached, fresh = held(cached); !fresh {
				continue // nothing that a reader would be given as it is
			}
		}
		row, err := e.load(ctx, conn)
		if err != nil {
			return c, nil, err
		}
		c.cached++
		if cached != row {
			c.stale++
			if c.example == "" {
				c.example = fmt.Sprintf("%s holds %q, its row says %q", key, cached, row)
			}
		}
	}
	return c, looked, nil
}

// held reads an entry of the library (docs/protocol.md), without the library: the
// comparison must not trust what it judges. fresh is false for the lease of a reader that is
// loading, and for a value that the daemon has marked as stale.
func held(entry string) (value string, fresh bool) {
	const magic, freshUntil, fixed = "cdc2", 33, 73
	if len(entry) < fixed || !strings.HasPrefix(entry, magic) {
		return entry, true // nobody else writes here: it is counted as stale
	}
	switch kind := entry[len(magic)]; {
	case kind == 'N':
		return absent, true
	case kind != 'V' || entry[freshUntil:freshUntil+12] == "000000000000":
		return "", false
	}
	_, value, _ = strings.Cut(entry[fixed:], "\n")
	return value, true
}

// leftovers counts the keys that the comparison does not know; any of them means that
// it was not complete. Left out are the daemon's own keys and what no reader can
// get at any more: entries of a versioned family under an older version.
func leftovers(ctx context.Context, rdb *redis.Client, ownPrefix string, entries []*entry, looked ...map[string]bool) (int, error) {
	type frame struct{ before, after string }
	var versioned []frame
	versionKeys := make(map[string]bool)
	for _, e := range entries {
		if !e.family.Versioned {
			continue
		}
		const mark = "VERSION"
		key, err := e.family.Key(e.text(map[string]string{mapping.VersionVar: mark}))
		if err != nil {
			return 0, err
		}
		before, after, _ := strings.Cut(key, mark)
		versioned = append(versioned, frame{before, after})
		name, err := e.family.Version(e.text(nil))
		if err != nil {
			return 0, err
		}
		versionKeys[name] = true
	}
	known := func(key string) bool {
		for _, keys := range looked {
			if keys[key] {
				return true
			}
		}
		return versionKeys[key] || strings.HasPrefix(key, ownPrefix) || slices.ContainsFunc(versioned, func(f frame) bool {
			return strings.HasPrefix(key, f.before) && strings.HasSuffix(key, f.after)
		})
	}
	unknown := 0
	keys := rdb.Scan(ctx, 0, "*", 1000).Iterator()
	for keys.Next(ctx) {
		if !known(keys.Val()) {
			unknown++
		}
	}
	return unknown, keys.Err()
}
