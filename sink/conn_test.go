package sink

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

func TestParseURL(t *testing.T) {
	for _, c := range []struct {
		url   string
		kind  serverKind
		addrs string
		user  string
		pass  string
		db    int
		tls   bool
	}{
		{"redis://localhost", standalone, "localhost:6379", "", "", 0, false},
		{"redis://10.0.0.1:7000/3", standalone, "10.0.0.1:7000", "", "", 3, false},
		{"redis://h?db=4", standalone, "h:6379", "", "", 4, false},
		{"redis://user:p%40ss%2F@h:1", standalone, "h:1", "user", "p@ss/", 0, false},
		{"redis://:secret@[::1]:7000/1", standalone, "[::1]:7000", "", "secret", 1, false},
		{"redis://:a@b@h:1", standalone, "h:1", "", "a@b", 0, false},
		{"redis://[fe80::1]", standalone, "[fe80::1]:6379", "", "", 0, false},
		{"rediss://h:1?server_name=cache.example&insecure_skip_verify=true", standalone, "h:1", "", "", 0, true},
		{"unix:///run/redis.sock?db=2", standalone, "/run/redis.sock", "", "", 2, false},
		{"unix://u:p@/run/redis.sock", standalone, "/run/redis.sock", "u", "p", 0, false},
		{"redis+sentinel://u:p@a:1,b/main/5?sentinel_password=x", sentinel, "a:1 b:26379", "u", "p", 5, false},
		{"rediss+sentinel://a/main", sentinel, "a:26379", "", "", 0, true},
		{"redis+cluster://a,b:7001,c", cluster, "a:6379 b:7001 c:6379", "", "", 0, false},
		{"rediss+cluster://:p@a", cluster, "a:6379", "", "p", 0, true},
	} {
		e, err := parseURL(c.url)
		if err != nil {
			t.Errorf("%s: %v", c.url, err)
			continue
		}
		if e.kind != c.kind || strings.Join(e.addrs, " ") != c.addrs || e.username != c.user || e.password != c.pass || e.db != c.db || (e.tls != nil) != c.tls {
			t.Errorf("%s: %+v", c.url, e)
		}
	}
}

func TestBadURLs(t *testing.T) {
	const secret = "hunter2"
	for _, url := range []string{
		"", "localhost", "hunter2", "user:hunter2@host", "http://u:hunter2@h", "hunter2://h", "redis+x://u:hunter2@h", "unix+cluster:///x",
		"redis://", "redis://u:hunter2@", "redis://u:hunter2@h:99999", "redis://u:hunter2@h:x", "redis://u:hunter2/x@h:1",
		"redis://u:hunter2%zz@h", "redis://u:hunter2@h/x", "redis://u:hunter2@h/-1", "redis://u:hunter2@h/%zz",
		"redis://u:x?hunter2@h", "redis://u:x?hunter2&y@h", "redis://h?hunter2=1", "redis://h?db=hunter2", "redis://h?%zzhunter2",
		"redis://u:hunter2@a,b", "redis://h?ca_file=/etc/ssl/x", "redis://h?sentinel_password=hunter2", "rediss://u:hunter2@h?ca_file=/does/not/exist",
		"rediss://u:hunter2@h?insecure_skip_verify=hunter2maybe", "rediss://h?cert_file=/does/not/exist",
		"redis+sentinel://u:hunter2@h", "redis+sentinel://u:hunter2@h/", "redis+cluster://u:hunter2@h/1", "redis+cluster://u:hunter2@,",
		"unix://u:hunter2@", "unix://relative",
	} {
		r, err := Open(Options{Config: mapping.Redis{URL: mapping.NewSecret(url)}, Slot: "s"})
		if err == nil {
			r.Close()
			t.Errorf("%q is taken", url)
			continue
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%q: the error tells the password: %v", url, err)
		}
		var e *Error
		if !errors.As(err, &e) || !e.Configuration() {
			t.Errorf("%q: %#v", url, err)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	s, c := server(t)
	r := attached(t, s.SocketURL())
	fill(t, c, "a")
	if err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "a")...)); err != nil {
		t.Fatal(err)
	}
	if present(t, c, "a") != 0 {
		t.Error("the key is left")
	}
}

func TestTLS(t *testing.T) {
	s, c := server(t)
	cert, caFile := certificate(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, l, s.Address())
	url := "rediss" + strings.TrimPrefix(p.url(), "redis")
	r := attached(t, url+"?ca_file="+caFile)
	fill(t, c, "a")
	if err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "a")...)); err != nil {
		t.Fatal(err)
	}
	if present(t, c, "a") != 0 {
		t.Error("the key is left")
	}
	_, err = open(t, url).Attach(t.Context())
	contains(t, err, "certificate")
	_, err = open(t, url+"?server_name=elsewhere.example&ca_file="+caFile).Attach(t.Context())
	contains(t, err, "elsewhere.example")
}

func certificate(t testing.TB) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, path
}

// neededRights is the rule that docs/operations.md gives.
const neededRights = "resetkeys ~t:* ~top ~top:*:* ~page:* ~kept:* ~inv:* resetchannels -@all " +
	"+unlink +evalsha +script|load +info +scan +get +set +hmget +hset +hgetall +persist" +
	" +time +getrange +setrange +pttl +pexpire +zrevrange +zrangebyscore +zscore +zrem +hdel +zadd +zcount +select +flushdb"

// streamRight comes on top of them with a stream.
const streamRight = " +xadd"

// clusterRights come on top of them in a cluster.
const clusterRights = "+cluster|slots +cluster|nodes +asking"

func TestACL(t *testing.T) {
	s, c := server(t)
	setUser := func(rights string) {
		t.Helper()
		args := []any{"acl", "setuser", "cdc", "on", ">hunter2"}
		for _, f := range strings.Fields(rights) {
			args = append(args, f)
		}
		if err := c.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	neededRights := neededRights + streamRight
	setUser(neededRights)
	url := "redis://cdc:hunter2@" + s.Address() + "/1"
	r := attached(t, url, streamed, longAgo)
	if err := holdAndDrain(t, r); err != nil {
		t.Fatal(err)
	}
	all := append(deletes(plain(t), "t:7:user:1"), purgeOf(plain(t), "7"), purgeOf(versioned(t), ""),
		mapping.Invalidation{Op: mapping.OpAdvance, Family: versioned(t), Key: []byte("t:7:search")},
		mapping.Invalidation{Op: mapping.OpSoft, Family: family(t, "kept"), Key: []byte("kept:1")},
		mapping.Invalidation{Op: mapping.OpDependents, Family: entityFamily(t), Key: []byte("product:7")})
	other := redis.NewClient(&redis.Options{Addr: s.Address(), DB: 1})
	defer other.Close()
	cached := func() {
		t.Helper()
		set(t, other, "kept:1", entry("V", nobody, time.Now().Add(time.Hour), time.Now().Add(time.Hour)), 2*time.Hour)
		register(t, other, "product:7", 1e12, "user t:7:user:1")
	}
	for _, dedicated := range []bool{false, true} {
		r.dedicated = dedicated
		cached()
		c.ScriptFlush(t.Context())
		if err := r.Apply(t.Context(), batch(t, 100, all...)); err != nil {
			t.Fatal(err)
		}
		if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(100)}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.PurgeBehind(t.Context(), []*mapping.Family{plain(t), versioned(t)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.SetState(t.Context(), StateOK, ""); err != nil {
		t.Fatal(err)
	}
	if err := checked(t, r); err != nil {
		t.Fatal(err)
	}

	// Each right is needed: without it something fails, and the error says which.
	for _, right := range strings.Fields(neededRights) {
		name, isCommand := strings.CutPrefix(right, "+")
		if !isCommand {
			continue
		}
		setUser(neededRights)
		setUser("-" + name)
		c.ScriptFlush(t.Context())
		cached()
		r := open(t, url, func(o *Options) { o.Config.Dedicated = name == "flushdb"; o.Slot = "other" }, streamed, longAgo)
		_, err := r.Attach(t.Context())
		if err == nil {
			err = r.StartGeneration(t.Context(), testSource)
		}
		if err == nil {
			err = r.Apply(t.Context(), batch(t, 100, all...))
		}
		if err == nil {
			err = r.Checkpoint(t.Context(), Checkpoint{Position: position(100)})
		}
		if err == nil {
			if name == "flushdb" {
				err = r.Flush(t.Context())
			} else {
				_, err = r.PurgeBehind(t.Context(), []*mapping.Family{plain(t)}, nil)
			}
		}
		if err == nil {
			err = holdAndDrain(t, r)
		}
		var e *Error
		if !errors.As(err, &e) || !e.Configuration() || !strings.Contains(err.Error(), "ACL SETUSER") {
			t.Errorf("without %s: %v", right, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	setUser(neededRights)
	setUser("resetkeys ~inv:*")
	r = open(t, url, func(o *Options) { o.Slot = "third" })
	mustAttach(t, r)
	if err := r.StartGeneration(t.Context(), testSource); err != nil {
		t.Fatal(err)
	}
	err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "t:7:user:1")...))
	contains(t, err, "NOPERM", "ACL SETUSER")
}

func TestWrongPassword(t *testing.T) {
	s := servertest.PrivateRedis(t, localserver.RedisOptions{Password: "correct"})
	for url, part := range map[string]string{
		"redis://:hunter2@" + s.Address():         "WRONGPASS",
		"redis://bob:hunter2@" + s.Address():      "WRONGPASS",
		"redis://" + s.Address():                  "NOAUTH",
		"redis://:correct@" + s.Address():         "",
		"redis://:hunter2@127.0.0.1:1/0":          "connection refused",
		"redis://:hunter2@host.invalid:1/0":       "host.invalid",
		"redis+cluster://:hunter2@127.0.0.1:1":    "connection refused",
		"redis+cluster://" + s.Address():          "NOAUTH",
		"redis+cluster://:correct@" + s.Address(): "cluster",
	} {
		_, err := open(t, url).Attach(t.Context())
		if part == "" {
			if err != nil {
				t.Errorf("the right password: %v", err)
			}
			continue
		}
		contains(t, err, "redis: attach", part)
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error tells the password: %v", err)
		}
		var e *Error
		if !errors.As(err, &e) || !e.Retry() || e.Hint == "" || e.Configuration() == (part == "connection refused" || part == "host.invalid") {
			t.Errorf("%v: %+v", err, e)
		}
	}
}

func TestDamagedControlHash(t *testing.T) {
	db := servertest.Redis(t)
	r := attached(t, db.URL)
	db.Client(t).HSet(t.Context(), r.controlKey, "applied", "16/B374D848")
	c := mustAttach(t, r)
	if c.Found || !strings.Contains(c.Damaged, "field applied") {
		t.Errorf("%+v", c)
	}
	// A new generation begins from nothing.
	if err := r.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := mustAttach(t, r); c.Found || c.Damaged != "" {
		t.Errorf("%+v", c)
	}
}

func TestMetrics(t *testing.T) {
	db := servertest.Redis(t)
	reg := prometheus.NewRegistry()
	r := attached(t, db.URL, func(o *Options) { o.Registerer = reg })
	fill(t, db.Client(t), "a", "b")
	if err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "a", "b", "c")...)); err != nil {
		t.Fatal(err)
	}
	if keys, removed := testutil.ToFloat64(r.metrics.keys), testutil.ToFloat64(r.metrics.removed); keys != 3 || removed != 2 {
		t.Errorf("%v keys, %v removed; want 3 and 2", keys, removed)
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	if _, err := Open(Options{Config: mapping.Redis{URL: mapping.NewSecret(db.URL)}, Slot: "s", Registerer: reg}); err == nil {
		t.Error("registered twice without an error")
	}
}
