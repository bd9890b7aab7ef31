package cli

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

func TestStatusOfARunningDaemon(t *testing.T) {
	db := servertest.Postgres(t)
	redis := servertest.PrivateRedis(t, localserver.RedisOptions{Password: "canary-password"})
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY, name text)", "INSERT INTO users SELECT i FROM generate_series(1, 10) i")
	r := startRun(t, writeRunTestFile(t, fmt.Sprintf(runTestFile, db.URL, db.Name+"_slot", redis.URL())))
	eventually(t, "healthy", func() bool { code, _ := r.page(t, "/healthz"); return code == 200 })
	client := servertest.RedisClient(t, redis.URL())
	if err := client.Set(t.Context(), "user:7", "cached", 0).Err(); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "UPDATE users SET name = 'canary-name' WHERE id IN (7, 8)")
	var s admin.Status
	get := func() int {
		code, out, errOut := runMain(t, "status", "--json", "--url", r.http)
		if err := json.Unmarshal([]byte(out), &s); err != nil || errOut != "" {
			t.Fatalf("exit code %d, %v, stderr %s: %s", code, err, errOut, out)
		}
		return code
	}
	eventually(t, "the update is applied", func() bool { get(); return s.Counters.Applied >= 2 && s.Redis.State == "ok" })
	if code := get(); code != exitOK || s.Status != "ok" {
		t.Errorf("exit code %d: %+v", code, s)
	}

	// Each value against what the servers themselves say.
	conn := db.Conn(t)
	var version, system string
	var timeline uint32
	if err := conn.QueryRow(t.Context(), `SELECT split_part(current_setting('server_version'), ' ', 1), system_identifier::text,
		('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int FROM pg_control_system()`).Scan(&version, &system, &timeline); err != nil {
		t.Fatal(err)
	}
	if src := s.Source; src.ServerVersion != version || src.SystemID != system || src.Timeline != timeline || src.Database != db.Name ||
		src.Slot != db.Name+"_slot" || src.Publication != "pub" || src.AttachedSince.IsZero() {
		t.Errorf("source %+v, want version %s system %s timeline %d", src, version, system, timeline)
	}
	info := client.Info(t.Context(), "server").Val()
	if len(s.Redis.Primaries) != 1 || !strings.Contains(info, "run_id:"+s.Redis.Primaries[0].RunID) || s.Redis.Primaries[0].Addr != redis.Address() ||
		s.Redis.Kind != "standalone" || s.Redis.State != "ok" {
		t.Errorf("redis %+v", s.Redis)
	}
	if c := s.Counters; c.Rows < 2 || c.Transactions < 1 || c.Gaps != 0 || c.Invalidations < 2 {
		t.Errorf("counters %+v", c)
	}
	if len(s.Freshness.Classes) != 1 || s.Freshness.Classes[0].Name != "critical" || s.Freshness.Classes[0].Within == nil || !*s.Freshness.Classes[0].Within ||
		s.Freshness.Classes[0].StalenessSeconds != 1 || s.Freshness.Classes[0].Families != 1 || s.Freshness.LagSeconds == nil {
		t.Errorf("freshness %+v", s.Freshness)
	}
	eventually(t, "positions in order, and not far behind the source", func() bool {
		var text string
		if err := conn.QueryRow(t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&text); err != nil {
			t.Fatal(err)
		}
		get()
		at := func(p string) lsn.LSN {
			l, err := lsn.Parse(p)
			if err != nil {
				t.Fatalf("position %q: %v", p, err)
			}
			return l
		}
		p := s.Positions
		if at(p.Confirmed) > at(p.Applied) || at(p.Applied) > at(p.Received) || at(p.Received) > at(p.LogEnd) || p.LagBytes < 0 || p.UnconfirmedBytes < p.LagBytes {
			t.Fatalf("positions %+v", p)
		}
		return at(p.Applied) >= at(text)
	})

	code, text, _ := runMain(t, "status", "--url", r.http)
	for _, want := range []string{"status       ok\n", "Postgres " + version, "system " + system, "slot " + db.Name + "_slot", "budget 1s", "kept (1 families)",
		"standalone, state ok", redis.Address(), "ok    streaming", "0 gaps"} {
		if code != exitOK || !strings.Contains(text, want) {
			t.Errorf("exit code %d, %q is not in\n%s", code, want, text)
		}
	}

	// A server that is away is shown with its reason and what to do.
	redis.Kill()
	eventually(t, "the status says so", func() bool {
		db.Exec(t, "UPDATE users SET name = 'y'")
		return get() == exitDifferences && s.Status == "failed"
	})
	eventually(t, "the condition is shown", func() bool {
		code, text, _ = runMain(t, "status", "--url", strings.TrimPrefix(r.http, "http://"))
		return code == exitDifferences && regexp.MustCompile(`FAIL  redis +since \d{4}`).MatchString(text) && strings.Contains(text, "fix: ") && strings.Contains(text, "reachable")
	})
	eventually(t, "what waits is shown", func() bool { // behind what is being applied all the time
		db.Exec(t, "UPDATE users SET name = 'z'")
		get()
		return s.Positions.LagBytes > 0 && s.Queue.Invalidations > 0 && s.Queue.Bytes > 0
	})
	eventually(t, "the budget is broken", func() bool { get(); return !*s.Freshness.Classes[0].Within })
	_, raw := r.page(t, "/status")
	if err := redis.Start(t.Context()); err != nil { // or the daemon's end would wait for it
		t.Fatal(err)
	}
	for _, secret := range []string{"canary", "password", db.Server.URL()} {
		if strings.Contains(raw+text, secret) {
			t.Errorf("%s is shown:\n%s\n%s", secret, raw, text)
		}
	}
}

// A daemon that has never attached has a status too.
func TestStatusBeforeTheFirstSession(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY, name text)")
	r := startRun(t, writeRunTestFile(t, fmt.Sprintf(runTestFile, db.URL, db.Name+"_slot", "redis://127.0.0.1:1")))
	eventually(t, "it says that it does not stream", func() bool {
		code, text, _ := runMain(t, "status", "--url", r.http)
		return code == exitDifferences && strings.Contains(text, "not attached yet") && strings.Contains(text, "FAIL  streaming") &&
			strings.Contains(text, "connection refused") && strings.Contains(text, "not known: no heartbeat")
	})
}

func TestStatusWithoutADaemon(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"status": "UP"}`) }))
	defer other.Close()
	missing := httptest.NewServer(http.NotFoundHandler())
	defer missing.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--url", "http://" + closed}, exitUnavailable, "no daemon answers at http://" + closed},
		{[]string{"--url", other.URL}, exitUnavailable, "is no cdc-invalidator"},
		{[]string{"--url", missing.URL}, exitUnavailable, "(HTTP 404) is no cdc-invalidator"},
		{[]string{"--url", "http://" + silent.Addr().String(), "--timeout", "50ms"}, exitUnavailable, "deadline exceeded"},
		{[]string{"--url", "http://me:canary@" + closed}, exitUnavailable, "no daemon answers at http://me:xxxxx@"},
		{[]string{"--url", "ftp://x"}, exitUsage, "--url"},
		{[]string{"--timeout", "0s"}, exitUsage, "--timeout"},
	} {
		code, out, errOut := runMain(t, append([]string{"status"}, c.args...)...)
		if code != c.code || out != "" || !strings.Contains(errOut, c.want) || strings.Contains(errOut, "canary") {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", c.args, code, out, errOut)
		}
	}
}
