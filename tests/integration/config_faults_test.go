package integration

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// changed is a URL with something else in it.
func changed(t testing.TB, raw string, change func(u *url.URL)) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	change(u)
	return u.String()
}

func account(name, password string) func(*url.URL) {
	return func(u *url.URL) { u.User = url.UserPassword(name, password) }
}

func place(host string) func(*url.URL) { return func(u *url.URL) { u.Host = host } }

// pooler answers as PgBouncer does to a parameter that it does not know.
func pooler(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := pgproto3.NewBackend(c, c)
			if m, err := b.ReceiveStartupMessage(); err == nil {
				if _, ok := m.(*pgproto3.SSLRequest); ok {
					_, _ = c.Write([]byte("N"))
					_, _ = b.ReceiveStartupMessage()
				}
				b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "08P01", Message: "unsupported startup parameter: IntervalStyle"})
				_ = b.Flush()
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// TestEveryFaultOfConfiguration: each ends run at its start, within seconds, with 78 and what to
// correct, and is found by doctor.
func TestEveryFaultOfConfiguration(t *testing.T) {
	t.Parallel()
	hba := "local all all trust\nlocal replication all trust\nhost all postgres all scram-sha-256\nhost all daemon all scram-sha-256\nhost replication postgres all scram-sha-256\n"
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{Files: map[string][]byte{"pg_hba.conf": []byte(hba)}})
	standby := servertest.Standby(t, pg, localserver.PostgresOptions{})
	replica := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"wal_level": "replica"}})
	cert := servertest.NewCA(t, "an authority").Issue(t, servertest.CertOptions{CommonName: "redis", Hosts: []string{"localhost"}})
	open := servertest.PrivateRedis(t, localserver.RedisOptions{TLS: &localserver.RedisTLS{Cert: cert.Cert, Key: cert.Key}})
	locked := servertest.PrivateRedis(t, localserver.RedisOptions{Password: "canary-redis-password"})
	follower := servertest.PrivateRedis(t, localserver.RedisOptions{Args: []string{"--replicaof", "127.0.0.1", fmt.Sprint(open.Port())}})
	node := servertest.PrivateRedis(t, localserver.RedisOptions{Args: []string{"--cluster-enabled", "yes"}})
	sentinel := servertest.Sentinel(t, open)
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	web, secureWeb := httptest.NewServer(hello), httptest.NewTLSServer(hello)
	defer web.Close()
	defer secureWeb.Close()

	good := newWorldOn(t, servertest.NewDatabase(t, pg, "shop").URL, open.URL(), tlsSchema, reloadMappings("k:{id}", mapsA))
	good.exec(`CREATE ROLE daemon LOGIN PASSWORD 'canary-source-password'`, `CREATE ROLE stranger LOGIN PASSWORD 'canary-source-password'`,
		`GRANT SELECT ON a TO daemon`)
	if err := good.rdb.Do(t.Context(), "ACL", "SETUSER", "poor", "on", ">canary-redis-password", "~*", "+info", "+ping", "+get").Err(); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"canary-redis-password", "canary-source-password", "TOPSECRET", "canary-wrong"} {
		good.secrets.addText(secret, "a password")
	}
	source := func(change func(*url.URL)) string { return changed(t, good.url, change) }
	redis := func(change func(*url.URL)) string { return changed(t, open.URL(), change) }
	option := func(name, value string) func(*url.URL) {
		return func(u *url.URL) { q := u.Query(); q.Set(name, value); u.RawQuery = q.Encode() }
	}
	address := func(u string) string { return u[strings.LastIndex(u, "/")+1:] }
	for _, c := range []struct {
		name, source, redis string
		says                []string
	}{
		{"source: a second @", strings.Replace(good.url, "@", "x@TOPSECRET@", 1), "", keys("source.url has two @", "%40")},
		{"source: a / in the password", "postgres://u:1/TOPSECRET@127.0.0.1:5432/db", "", keys("source.url has a / before its @", "%2F")},
		{"source: a blank in a host", "postgres://u:x@127.0.0 .1:5432/db", "", keys("the URL has white space in it")},
		{"source: no port", "postgres://u:x@127.0.0.1:canary-wrong/db", "", keys("source.url has a port that is no number", "correct the port")},
		{"source: a blank in a password", "host=127.0.0.1 password=a TOPSECRET dbname=x", "", keys("source.url", "postgres://user:password@host:5432/database")},
		{"source: a standby is asked for", source(option("target_session_attrs", "prefer-standby")), "", keys("asks for a standby", "target_session_attrs=read-write")},
		{"source: no such attribute", source(option("target_session_attrs", "TOPSECRET")), "", keys("has a target_session_attrs that there is not")},
		{"source: no such parameter", source(option("no_such_parameter", "1")), "", keys("does not take a setting that source.url has", `"no_such_parameter"`)},
		{"source: no such user", source(account("nobody", "canary-wrong")), "", keys("no pg_hba.conf entry")},
		{"source: a wrong password", source(account("daemon", "canary-wrong")), "", keys("password authentication failed", "check the user and password in source.url")},
		{"source: no such database", source(func(u *url.URL) { u.Path = "/nowhere" }), "", keys("the database does not exist", "correct the database name in source.url")},
		{"source: no line in pg_hba.conf", source(account("stranger", "canary-source-password")), "", keys("no pg_hba.conf entry", "pg_hba.conf has a line")},
		{"source: no TLS", source(option("sslmode", "require")), "", keys("the server does not speak TLS there", "sslmode=disable")},
		{"source: a standby", source(place(standby.Address())), "", keys("a standby's tables", "point source.url at the primary")},
		{"source: only a standby of several", source(func(u *url.URL) { u.Host = standby.Address(); u.RawQuery += "&target_session_attrs=read-write" }), "", keys("no server in source.url is a primary")},
		{"source: a pooler", source(place(pooler(t))), "", keys("a pooler in front of it", "give the server's own address")},
		{"source: a web server", source(func(u *url.URL) { u.Host = address(web.URL); u.RawQuery = "" }), "", keys("speaks HTTP, and is no Postgres", "correct the host and port in source.url")},
		{"source: a web server with TLS", source(func(u *url.URL) { u.Host = address(secureWeb.URL); u.RawQuery = "connect_timeout=2" }), "", keys("speaks TLS from the first byte on")},
		{"source: a Redis", source(func(u *url.URL) { u.Host = open.Address(); u.RawQuery = "connect_timeout=2" }), "", keys("is a Redis, and no Postgres", "redis.url")},
		{"source: not REPLICATION", source(account("daemon", "canary-source-password")), "", keys("REPLICATION")},
		{"source: wal_level", replica.URL(), "", keys("wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'")},

		{"redis: an @ behind the host", "", "redis://u:1/TOPSECRET@127.0.0.1:6379/0", keys("an @ behind the host", "%2F")},
		{"redis: a group that is a password's end", "", "redis+sentinel://u:1/TOPSECRET@127.0.0.1:26379", keys("an @ behind the host")},
		{"redis: a blank in a host", "", "redis://u:x@127.0.0 .1:6379/0", keys("the URL has white space in it")},
		{"redis: no such database", "", redis(func(u *url.URL) { u.Path = "/99999" }), keys("DB index is out of range", "the server has no database of that number")},
		{"redis: a wrong password", "", changed(t, locked.URL(), account("", "canary-wrong")), keys("WRONGPASS", "user or password in redis.url")},
		{"redis: no password where one is needed", "", "redis://" + locked.Address(), keys("NOAUTH", "put it into redis.url")},
		{"redis: no such user", "", redis(account("nobody", "canary-wrong")), keys("WRONGPASS")},
		{"redis: rights are missing", "", redis(account("poor", "canary-redis-password")), keys("may not run", "ACL SETUSER")},
		{"redis: a replica", "", follower.URL(), keys("replica", "redis.url")},
		{"redis: a node of a cluster", "", node.URL(), keys("it is a node of a cluster", "redis+cluster://")},
		{"redis: no cluster", "", "redis+cluster://" + open.Address(), keys("it is not a cluster", "use redis:// in redis.url")},
		{"redis: no such group", "", "redis+sentinel://" + sentinel + "/nobody", keys(`knows no group "nobody"`, "the name after the last /")},
		{"redis: a sentinel", "", "redis://" + sentinel, keys("it is a sentinel", "redis+sentinel://")},
		{"redis: no sentinel", "", "redis+sentinel://" + open.Address() + "/" + servertest.SentinelGroup, keys("does not know of sentinels", "redis://host:port")},
		{"redis: no TLS", "", "rediss://" + open.Address(), keys("TLS", "redis://")},
		{"redis: TLS", "", fmt.Sprintf("redis://127.0.0.1:%d", open.TLSPort()), keys("the server speaks TLS there", "rediss://")},
		{"redis: a web server", "", "redis://" + address(web.URL), keys("speaks HTTP, and is no Redis")},
		{"redis: a web server with TLS", "", "redis://" + address(secureWeb.URL), keys("the server speaks TLS there")},
		{"redis: a Postgres", "", "redis://" + pg.Address(), keys("is a Postgres, and no Redis", "redis.url")},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := *good
			w.t = t
			w.config = filepath.Join(t.TempDir(), "mappings.yaml")
			if c.source != "" {
				w.url = c.source
			}
			if c.redis != "" {
				w.redisURL = c.redis
			}
			w.writeConfig(reloadMappings("k:{id}", mapsA))
			w.ends(c.says)
		})
	}
}

// ends runs the daemon and doctor, which both have to say it.
func (w *world) ends(says []string) {
	w.t.Helper()
	path, err := binary()
	if err != nil {
		w.t.Fatal(err)
	}
	p := w.launch()
	p.wait()
	if code := p.cmd.ProcessState.ExitCode(); code != 78 {
		w.t.Errorf("run: exit code %d, want 78\n%s", code, p.log.String())
	}
	cmd := exec.Command(path, "doctor", "--quiet", "--config", w.config)
	cmd.Env = os.Environ()
	out, _ := cmd.CombinedOutput() // the exit code is looked at below
	if code := cmd.ProcessState.ExitCode(); code != 2 && code != 78 {
		w.t.Errorf("doctor: exit code %d, want 2, or 78 for the file\n%s", code, out)
	}
	for of, text := range map[string]string{"run": p.log.String(), "doctor": string(out)} {
		text = strings.NewReplacer(`\"`, `"`, `\n`, "\n").Replace(text)
		for _, s := range says {
			if !strings.Contains(text, s) {
				w.t.Errorf("%s does not say %q:\n%s", of, s, text)
			}
		}
		for _, l := range w.secrets.leaks(text) {
			w.t.Errorf("%s shows %s", of, l)
		}
		if twice := doubled(text); twice != "" {
			w.t.Errorf("%s says twice %q:\n%s", of, twice, text)
		}
	}
}

var phrases = regexp.MustCompile(`[:;(]\s+|\n|\) `)

// doubled is a phrase that a line says twice in a row, "" without one.
func doubled(text string) string {
	for line := range strings.Lines(text) {
		last := ""
		for _, phrase := range phrases.Split(line, -1) {
			if phrase = strings.Trim(phrase, " )\"\n"); len(phrase) > 8 && phrase == last {
				return phrase
			}
			last = phrase
		}
	}
	return ""
}
