package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// rotation is a world whose passwords lie in files, for accounts that the test
// itself does not use.
type rotation struct {
	*world
	sourceFile, redisFile string
	n                     int
}

func newRotation(t *testing.T) *rotation {
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	rd := servertest.PrivateRedis(t, localserver.RedisOptions{})
	w := newWorldOn(t, pg.SocketURL(), rd.URL(), tlsSchema, reloadMappings("k:{id}", mapsA))
	dir := t.TempDir()
	r := &rotation{world: w, sourceFile: filepath.Join(dir, "source"), redisFile: filepath.Join(dir, "redis")}
	w.exec(`CREATE ROLE daemon LOGIN SUPERUSER`)
	r.writeSource(r.rotateSource())
	r.writeRedis(r.rotateRedis())
	w.url = fmt.Sprintf("postgres://daemon:${file:%s}@%s/postgres?sslmode=disable", r.sourceFile, pg.Address())
	w.redisURL = fmt.Sprintf("redis://daemon:${file:%s}@%s/0", r.redisFile, rd.Address())
	w.writeConfig(reloadMappings("k:{id}", mapsA))
	return r
}

// rotateSource gives the account another password and returns it.
func (r *rotation) rotateSource() string {
	password := r.password("source")
	r.exec(`ALTER ROLE daemon PASSWORD '` + password + `'`)
	return password
}

func (r *rotation) rotateRedis() string {
	r.t.Helper()
	password := r.password("redis")
	if err := r.rdb.Do(r.t.Context(), "ACL", "SETUSER", "daemon", "on", "resetpass", ">"+password, "~*", "&*", "+@all").Err(); err != nil {
		r.t.Fatal(err)
	}
	return password
}

func (r *rotation) password(of string) string {
	r.n++
	p := fmt.Sprintf("canary-%s-%d", of, r.n)
	r.secrets.addText(p, "a password")
	return p
}

func (r *rotation) writeSource(password string) { writeFile(r.t, r.sourceFile, password+"\n") }
func (r *rotation) writeRedis(password string)  { writeFile(r.t, r.redisFile, password+"\n") }

// dropSessions ends the daemon's connections, which an old password does not.
func (r *rotation) dropSessions() {
	r.t.Helper()
	r.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'daemon'`)
}

func (r *rotation) dropClients() {
	r.t.Helper()
	if err := r.rdb.Do(r.t.Context(), "CLIENT", "KILL", "USER", "daemon").Err(); err != nil {
		r.t.Fatal(err)
	}
}

func TestRotatedPasswordsNeedNoRestart(t *testing.T) {
	w := newRotation(t)
	p, address := w.startHTTP()
	works := func(name string) {
		t.Helper()
		w.step(p, name, keys("k:1"), keys("k:2"), `UPDATE a SET v = v WHERE id = 1`)
	}
	fails := func(condition, reason string) {
		t.Helper()
		w.eventually(condition+" fails with "+reason, func() bool {
			c := w.condition(address, condition)
			return !c.OK && strings.Contains(c.Reason, reason)
		})
	}
	works("before")

	w.writeSource(w.rotateSource())
	works("the old connections go on")
	w.dropSessions()
	works("Postgres: the file came first")

	late := w.rotateSource()
	w.dropSessions()
	fails("streaming", "28P01")
	w.writeSource(late)
	works("Postgres: the file came late")

	w.writeSource(w.rotateSource())
	p.reload(reloaded) // makes a connection
	works("Postgres: after a reload")

	w.writeRedis(w.rotateRedis())
	works("the old connections to Redis go on")
	w.dropClients()
	works("Redis: the file came first")

	late = w.rotateRedis()
	w.dropClients()
	fails("redis", "WRONGPASS")
	w.writeRedis(late)
	works("Redis: the file came late")

	if p.logged("source.url has other credentials") != 3 || p.logged("redis.url has other credentials") != 2 {
		t.Errorf("the log does not tell of each rotation")
	}
	p.stop()
}

// Another server is not taken for a rotated password.
func TestAReloadKeepsItsServers(t *testing.T) {
	w := newRotation(t)
	p := w.start()
	source, redis := w.url, w.redisURL
	const says = "read at start only, but for passwords and certificates"
	w.redisURL = strings.TrimSuffix(redis, "/0") + "/5"
	w.writeConfig(reloadMappings("k:{id}", mapsA))
	p.reload(says)
	w.url, w.redisURL = strings.Replace(source, "/postgres?", "/template1?", 1), redis
	w.writeConfig(reloadMappings("k:{id}", mapsA))
	p.reload(says)
	w.dropSessions()
	w.dropClients()
	w.step(p, "the same servers", keys("k:1"), keys("k:2"), `UPDATE a SET v = v WHERE id = 1`)
	p.stop()
}
