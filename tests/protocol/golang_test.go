package protocol

import (
	"context"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

// goReader is the library, package cache.
type goReader struct {
	client *cache.Client
	pool   *pgxpool.Pool
	views  map[string]*cache.View[string]
}

func newGoReader(t *testing.T, w *world, redisURL string) reader {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), w.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	o, err := redis.ParseURL(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	o.MaxRetries, o.ContextTimeoutEnabled = -1, true
	rdb := redis.NewClient(o)
	t.Cleanup(func() { _ = rdb.Close() })
	client, err := cache.Open(t.Context(), rdb, pool, cache.WithMappingFile(w.file), cache.WithCodec(cache.Raw),
		cache.WithLease(lease), cache.WithWait(lease))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	g := &goReader{client: client, pool: pool, views: make(map[string]*cache.View[string])}
	for _, k := range w.file.Keys {
		if g.views[k.Name], err = cache.Family[string](client, k.Name); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func (g *goReader) token(t *testing.T) string {
	t.Helper()
	token, err := cache.TokenAfterCommit(t.Context(), g.pool)
	if err != nil {
		t.Fatal(err)
	}
	return token.String()
}

func (g *goReader) begin(t *testing.T, r request) *read {
	t.Helper()
	token, err := cache.ParseToken(r.AtLeast)
	if err != nil {
		t.Fatal(err)
	}
	vars := cache.Vars{}
	for name, v := range r.Vars {
		if raw, ok := v.(rawBytes); ok {
			v = []byte(raw)
		}
		if g, ok := v.(given); ok {
			v = g.value(t)
		}
		vars[name] = v
	}
	steps := make(chan string, 16)
	under := newRead(func(s string) { steps <- s })
	load := func(ctx context.Context, tx pgx.Tx) (string, error) {
		under.loading <- struct{}{}
		var step string
		select {
		case step = <-steps:
		case <-ctx.Done():
			return "", ctx.Err()
		}
		for _, e := range r.DependsOn {
			if err := cache.DependsOn(ctx, e[0].(string), e[1:]...); err != nil {
				return "", err
			}
		}
		return loadRow(ctx, tx, step, r.Row)
	}
	go func() {
		// Not the test's context: it ends with the test, when the reader still has to give up its leases.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		v, err := g.views[r.Family].Get(ctx, vars, load, cache.AtLeast(token))
		switch {
		case errors.Is(err, cache.ErrNotFound):
			under.done <- missing
		case err != nil:
			under.done <- result{"error", err.Error()}
		default:
			under.done <- value(v)
		}
	}()
	return under
}

func loadRow(ctx context.Context, tx pgx.Tx, step string, row int) (v string, err error) {
	const write = `UPDATE items SET v = 'written' WHERE id = $1`
	switch step {
	case goFail:
		return "", errors.New("the loader fails, as it was told")
	case goDown:
		if _, err := tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`); err != nil {
			return "", err
		}
	case goWrite:
		if _, err := tx.Exec(ctx, write, row); err != nil {
			return "", err
		}
	case goSwallow:
		if _, err := tx.Exec(ctx, write, row); err != nil {
			return "swallowed", nil
		}
	}
	err = tx.QueryRow(ctx, `SELECT v FROM items WHERE id = $1`, row).Scan(&v)
	if errors.Is(err, pgx.ErrNoRows) {
		err = cache.ErrNotFound
	}
	return v, err
}

// rawBytes are a variable's value that need not be text.
type rawBytes []byte

// MarshalJSON is for readers in other languages.
func (b rawBytes) MarshalJSON() ([]byte, error) {
	return []byte(`{"bytes":"` + hex.EncodeToString(b) + `"}`), nil
}
