package integration

import (
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
)

// A condition shows one fix, that of the error which it shows, and none inside of the reason.
func TestTheFixIsThatOfTheError(t *testing.T) {
	t.Parallel()
	w, _, _ := privateWorld(t, 10, nil)
	w.exec(`CREATE ROLE daemon SUPERUSER LOGIN PASSWORD 'canary-daemon'`)
	admins := w.url
	w.url = changed(t, w.url, account("daemon", "canary-daemon"))
	w.secrets.addURL(w.url)
	w.writeConfig(itemsMappings)
	w.url = admins
	p, address := w.startHTTP()
	redis := func(args ...any) {
		t.Helper()
		if err := w.rdb.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	again := func() { // its connections
		w.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'daemon'`)
		_ = w.rdb.Do(t.Context(), "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Err()
	}
	for _, c := range []struct {
		name, condition, fix string
		spoil, mend          func()
	}{
		{"NOPERM", "redis", "ACL SETUSER default +evalsha",
			func() { redis("ACL", "SETUSER", "default", "-evalsha") }, func() { redis("ACL", "SETUSER", "default", "+evalsha") }},
		{"NOAUTH", "redis", "put it into redis.url",
			func() { redis("CONFIG", "SET", "requirepass", "canary-new"); again() },
			func() { redis("AUTH", "canary-new"); redis("CONFIG", "SET", "requirepass", "") }},
		{"READONLY", "redis", "redis.url must lead to the primary",
			func() { redis("REPLICAOF", "127.0.0.1", "1") }, func() { redis("REPLICAOF", "NO", "ONE") }},
		{"the control keys are evicted", "redis", "raise maxmemory",
			func() { redis("CONFIG", "SET", "maxmemory-policy", "allkeys-random", "maxmemory", "1") },
			func() { redis("CONFIG", "SET", "maxmemory", "0") }},
		{"the role may not log in", "source", "ALTER ROLE ... LOGIN",
			func() { w.exec(`ALTER ROLE daemon NOLOGIN`); again() }, func() { w.exec(`ALTER ROLE daemon LOGIN`) }},
		{"no connection to spare", "source", "CONNECTION LIMIT",
			func() { w.exec(`ALTER ROLE daemon NOSUPERUSER CONNECTION LIMIT 0`); again() }, func() { w.exec(`ALTER ROLE daemon SUPERUSER CONNECTION LIMIT -1`) }},
	} {
		w.settle(p)
		c.spoil()
		w.exec(`UPDATE items SET v = v + 1`)
		w.eventually(c.name+": the condition "+c.condition+" has its fix", func() bool {
			got := w.condition(address, c.condition)
			return got.State == admin.StateFailed && strings.Contains(got.Fix, c.fix)
		})
		got := w.condition(address, c.condition)
		if strings.Contains(got.Fix, "reachable and takes writes") || strings.Contains(got.Fix, "accepts ordinary connections") ||
			strings.Contains(got.Reason, got.Fix) || strings.Contains(got.Reason, "fix:") {
			t.Errorf("%s: %+v", c.name, got)
		}
		c.mend()
		w.eventually(c.name+": all is well again", func() bool { code, _ := w.answered(address, "/healthz"); return code == 200 })
	}
	w.settle(p)
	p.stop()
}
