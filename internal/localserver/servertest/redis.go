package servertest

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
)

// RedisDatabase is an empty database on the shared server, flushed at the end of its
// test.
type RedisDatabase struct {
	Server *localserver.Redis // shared: do not stop it
	Number int
	URL    string
}

// The shared server has 1024 databases. After so many tests they start again from
// the first, which its test has flushed long ago.
const redisDatabases = 1024

// Redis returns an empty database for t.
func Redis(t testing.TB) *RedisDatabase {
	t.Helper()
	shared.mu.Lock()
	if shared.redis == nil {
		func() {
			defer shared.mu.Unlock() // need ends the test's goroutine when it fails
			shared.need(t, func(ctx context.Context, dir string) (err error) {
				// With a password, so that whoever prints the URL can be caught.
				shared.redis, err = localserver.StartRedis(ctx, localserver.RedisOptions{Containers: Containers{}, Dir: dir, Password: "canary-" + rand.Text()})
				return err
			})
		}()
		shared.mu.Lock()
	}
	server := shared.redis
	shared.nextDB++
	n := shared.nextDB % redisDatabases
	shared.mu.Unlock()

	db := &RedisDatabase{Server: server, Number: n, URL: server.DatabaseURL(n)}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		client := newClient(t, db.URL)
		defer client.Close()
		if err := client.FlushDB(ctx).Err(); err != nil {
			t.Errorf("flush database %d: %v", n, err)
		}
	})
	return db
}

// Client returns a client that is closed at the end of the test.
func (db *RedisDatabase) Client(t testing.TB) *redis.Client {
	t.Helper()
	return RedisClient(t, db.URL)
}

// RedisClient returns a client of any server that is closed at the end of the test.
func RedisClient(t testing.TB, url string) *redis.Client {
	t.Helper()
	client := newClient(t, url)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func newClient(t testing.TB, url string) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	return redis.NewClient(o)
}

// PrivateRedis starts a server for t alone, closed at the end of the test.
func PrivateRedis(t testing.TB, o localserver.RedisOptions) *localserver.Redis {
	t.Helper()
	o.Containers = Containers{}
	r, err := localserver.StartRedis(t.Context(), o)
	if err != nil {
		t.Fatalf("servertest: %v", err)
	}
	t.Cleanup(func() { closeServer(t, r.LogPath(), r.Close) })
	return r
}
