package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

const testLease = 10 * time.Second

// scriptTest has one key and plays its readers.
type scriptTest struct {
	*testing.T
	rdb *redis.Client
	s   *scripts
}

const (
	testKey   = "page:1"
	testStamp = "00000000000000c1"
)

func newScriptTest(t *testing.T) *scriptTest {
	return &scriptTest{T: t, rdb: servertest.Redis(t).Client(t), s: newScripts()}
}

func (t *scriptTest) read(mode string) readAnswer {
	t.Helper()
	a, err := t.s.callRead(t.Context(), t.rdb, testKey, testLease, mode, testStamp)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (t *scriptTest) expect(mode string, want verdict) readAnswer {
	t.Helper()
	a := t.read(mode)
	if a.verdict != want {
		t.Fatalf("read.lua in mode %s says %s, want %s", mode, a.verdict, want)
	}
	return a
}

var testMeta = entryMeta{loadedAt: 1700000000000, loadTime: 12, snapshot: "10:12:11"}

func (t *scriptTest) fill(token string, l lifetimes, payload string) bool {
	t.Helper()
	ok, err := parseDone(t.s.fill.run(t.Context(), t.rdb, testKey, fillArgs(token, kindValue, l, appendRest(nil, &testMeta, []byte(payload)))...))
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// value puts a value there that is fresh, stale or expired, by what the fill says and
// what the daemon's mark does to it.
func (t *scriptTest) value(f freshness) {
	t.Helper()
	t.must(t.rdb.Unlink(t.Context(), testKey).Err())
	a := t.expect(modeRead, verdictLease)
	if !t.fill(a.token, lifetimes{ttl: time.Hour, stale: time.Hour, failSafe: time.Hour}, "old") {
		t.Fatal("the fill was refused")
	}
	if f != fresh {
		t.must(t.rdb.SetRange(t.Context(), testKey, freshAt, strings.Repeat("0", timeLen)).Err())
	}
	if f == expired {
		t.must(t.rdb.SetRange(t.Context(), testKey, staleAt, strings.Repeat("0", timeLen)).Err())
	}
}

func (t *scriptTest) must(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (t *scriptTest) entry() entry {
	t.Helper()
	raw, err := t.rdb.Get(t.Context(), testKey).Result()
	t.must(err)
	e, ok := parseEntry(raw)
	if !ok {
		t.Fatalf("not an entry: %q", raw)
	}
	return e
}

func TestLeaseIsOneCallers(t *testing.T) {
	s := newScriptTest(t)
	first := s.expect(modeRead, verdictLease)
	for _, mode := range []string{modeRead, modeRefresh} {
		second := s.expect(mode, verdictWait)
		if second.left <= testLease/2 || second.left > testLease {
			t.Errorf("the other one's lease has %s left, want nearly %s", second.left, testLease)
		}
	}
	if ttl := s.rdb.PTTL(t.Context(), testKey).Val(); ttl <= testLease/2 || ttl > testLease {
		t.Errorf("the lease expires in %s, want %s", ttl, testLease)
	}
	if n := len(s.rdb.Get(t.Context(), testKey).Val()); n != headerLen {
		t.Errorf("a lease has %d bytes, want %d", n, headerLen)
	}
	if !s.fill(first.token, lifetimes{time.Minute, time.Second, time.Hour}, "v") {
		t.Fatal("the holder's fill was refused")
	}
	if a := s.expect(modeRead, verdictValue); !strings.HasSuffix(a.entry, "\nv") {
		t.Errorf("the entry is %q", a.entry)
	}
	want := time.Minute + time.Second + time.Hour
	if ttl := s.rdb.PTTL(t.Context(), testKey).Val(); ttl <= want-time.Minute/2 || ttl > want {
		t.Errorf("the value expires in %s, want %s", ttl, want)
	}
	e := s.entry()
	now := s.rdb.Time(t.Context()).Val().UnixMilli()
	if d := e.freshUntil - now; d <= 30_000 || d > 60_000 {
		t.Errorf("fresh for %d ms, want 60000", d)
	}
	if d := e.staleUntil - e.freshUntil; d != 1000 {
		t.Errorf("stale for %d ms, want 1000", d)
	}
	m, err := e.meta()
	if err != nil || m.loadedAt != testMeta.loadedAt || m.loadTime != 12 || m.snapshot != "10:12:11" || e.loadTime() != 12 {
		t.Errorf("meta %+v, %v", m, err)
	}
}

// A call that is sent again with the same token keeps the lease; a client that draws
// one for each attempt waits for the lease of its own first attempt.
func TestLeaseSentAgain(t *testing.T) {
	s := newScriptTest(t)
	const token = "00000000000000aa"
	for range 2 {
		got, err := s.s.read.run(t.Context(), s.rdb, testKey, token, 10000, modeRead, testStamp).Slice()
		if err != nil || len(got) != 1 || got[0] != string(verdictLease) {
			t.Fatalf("answer %v, %v, want the lease", got, err)
		}
	}
	s.expect(modeRead, verdictWait)
}

func TestTokenIsDrawnForEachAttempt(t *testing.T) {
	s := newScriptTest(t)
	var tok token
	cmd := redis.NewCmd(t.Context(), append([]any{"eval", readSource, 1, testKey}, readArgs(&tok, testLease, modeRead, testStamp)...)...)
	s.must(s.rdb.Process(t.Context(), cmd)) // whose reply is lost
	first := tok.text
	s.must(s.rdb.Process(t.Context(), cmd)) // so the client sends it again
	if tok.text == first || len(first) != 16 {
		t.Fatalf("tokens %q and %q of two attempts, want two", first, tok.text)
	}
	if a, err := parseRead(cmd, &tok); err != nil || a.verdict != verdictWait {
		t.Fatalf("the second attempt got %v, %v, want to wait for the first", a.verdict, err)
	}
}

func TestFillIsRefused(t *testing.T) {
	minute := lifetimes{ttl: time.Minute}
	tests := []struct {
		name   string
		before func(s *scriptTest, token string)
	}{
		{"unlinked", func(s *scriptTest, _ string) { s.must(s.rdb.Unlink(s.Context(), testKey).Err()) }},
		{"unlinked, and leased again", func(s *scriptTest, _ string) {
			s.must(s.rdb.Unlink(s.Context(), testKey).Err())
			s.expect(modeRead, verdictLease)
		}},
		{"filled already: a copy of the same call", func(s *scriptTest, token string) {
			if !s.fill(token, minute, "first") {
				s.Fatal("the first fill was refused")
			}
		}},
		{"deadline passed", func(s *scriptTest, token string) {
			s.must(s.rdb.SetRange(s.Context(), testKey, 21, fmt.Sprintf("%012x", s.rdb.Time(s.Context()).Val().UnixMilli())).Err())
		}},
		{"another type", func(s *scriptTest, _ string) {
			s.must(s.rdb.Unlink(s.Context(), testKey).Err())
			s.must(s.rdb.HSet(s.Context(), testKey, "a", 1).Err())
		}},
		{"released", func(s *scriptTest, token string) {
			s.must(s.s.callRelease(s.Context(), s.rdb, testKey, token, false))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScriptTest(t)
			a := s.expect(modeRead, verdictLease)
			tt.before(s, a.token)
			before := s.rdb.Dump(t.Context(), testKey).Val()
			if s.fill(a.token, minute, "late") {
				t.Error("the fill was accepted")
			}
			if after := s.rdb.Dump(t.Context(), testKey).Val(); after != before {
				t.Error("the refused fill changed the key")
			}
		})
	}
}

func TestExpiredLeaseIsNobodys(t *testing.T) {
	s := newScriptTest(t)
	first, err := s.s.callRead(t.Context(), s.rdb, testKey, time.Millisecond, modeRead, testStamp)
	s.must(err)
	waitFor(t, "the lease to expire", func() bool { return s.rdb.Exists(t.Context(), testKey).Val() == 0 })
	s.expect(modeRead, verdictLease)
	if s.fill(first.token, lifetimes{ttl: time.Minute}, "late") {
		t.Error("the fill of an expired lease was accepted")
	}
}

func TestReadOfValues(t *testing.T) {
	tests := []struct {
		state      freshness
		mode       string
		want       verdict // the first caller
		then       verdict // the next in mode read
		thenAnew   verdict // the next in mode refresh
		afterAlone verdict // mode read once the holder's deadline has passed
	}{
		{fresh, modeRead, verdictValue, verdictValue, verdictRefresh, verdictValue},
		{fresh, modeRefresh, verdictRefresh, verdictValue, verdictValue, verdictValue},
		{stale, modeRead, verdictRefresh, verdictStale, verdictStale, verdictRefresh},
		{stale, modeRefresh, verdictRefresh, verdictStale, verdictStale, verdictRefresh},
		{expired, modeRead, verdictExpired, verdictHeld, verdictHeld, verdictExpired},
		{expired, modeRefresh, verdictExpired, verdictHeld, verdictHeld, verdictExpired},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%d %s", tt.state, tt.mode), func(t *testing.T) {
			s := newScriptTest(t)
			s.value(tt.state)
			ttl := s.rdb.PTTL(t.Context(), testKey).Val()
			a := s.expect(tt.mode, tt.want)
			if !strings.HasSuffix(a.entry, "\nold") {
				t.Errorf("the entry is %q", a.entry)
			}
			if next := s.expect(modeRead, tt.then); next.verdict == verdictHeld && (next.left <= testLease/2 || next.left > testLease) {
				t.Errorf("%s left of the holder's time, want nearly %s", next.left, testLease)
			}
			s.expect(modeRefresh, tt.thenAnew)
			if after := s.rdb.PTTL(t.Context(), testKey).Val(); after > ttl || after < ttl-time.Minute {
				t.Errorf("expires in %s, before in %s", after, ttl)
			}
			if a.verdict.mine() {
				if !s.fill(a.token, lifetimes{ttl: time.Minute}, "new") {
					t.Error("the refresher's fill was refused")
				}
				if e := s.expect(modeRead, verdictValue); !strings.HasSuffix(e.entry, "\nnew") {
					t.Errorf("the entry is %q", e.entry)
				}
			}
			s.value(tt.state)
			s.read(tt.mode)
			s.must(s.rdb.SetRange(t.Context(), testKey, 21, strings.Repeat("0", timeLen)).Err())
			s.expect(modeRead, tt.afterAlone)
		})
	}
}

func TestForeignValuesCountAsAbsent(t *testing.T) {
	put := map[string]func(s *scriptTest) error{
		"a hash":          func(s *scriptTest) error { return s.rdb.HSet(s.Context(), testKey, "a", 1).Err() },
		"a list":          func(s *scriptTest) error { return s.rdb.RPush(s.Context(), testKey, "a").Err() },
		"another's value": func(s *scriptTest) error { return s.rdb.Set(s.Context(), testKey, `{"a":1}`, 0).Err() },
		"empty":           func(s *scriptTest) error { return s.rdb.Set(s.Context(), testKey, "", 0).Err() },
		"cut off":         func(s *scriptTest) error { return s.rdb.Set(s.Context(), testKey, "cdc2V00", 0).Err() },
		"a kind of later": func(s *scriptTest) error {
			return s.rdb.Set(s.Context(), testKey, "cdc2X"+strings.Repeat("f", 52)+testStamp+" \n", 0).Err()
		},
		"times are no digits": func(s *scriptTest) error {
			return s.rdb.Set(s.Context(), testKey, "cdc2V"+strings.Repeat("z", 52)+testStamp+" \n", 0).Err()
		},
		"a value without end": func(s *scriptTest) error {
			return s.rdb.Set(s.Context(), testKey, "cdc2V"+strings.Repeat("f", 52)+testStamp+" ", 0).Err()
		},
	}
	for name, set := range put {
		t.Run(name, func(t *testing.T) {
			s := newScriptTest(t)
			s.must(set(s))
			if raw, err := s.rdb.Get(t.Context(), testKey).Result(); err == nil {
				if _, ok := parseEntry(raw); ok {
					t.Error("parseEntry takes it for an entry")
				}
			}
			a := s.expect(modeRead, verdictLease)
			if !s.fill(a.token, lifetimes{ttl: time.Minute}, "v") {
				t.Error("the fill was refused")
			}
		})
	}
}

func TestRelease(t *testing.T) {
	t.Run("a lease", func(t *testing.T) {
		s := newScriptTest(t)
		a := s.expect(modeRead, verdictLease)
		s.must(s.s.callRelease(t.Context(), s.rdb, testKey, "00000000000000aa", false))
		s.expect(modeRead, verdictWait) // somebody else's token releases nothing
		s.must(s.s.callRelease(t.Context(), s.rdb, testKey, a.token, false))
		s.expect(modeRead, verdictLease)
	})
	t.Run("a refresh", func(t *testing.T) {
		s := newScriptTest(t)
		s.value(stale)
		a := s.expect(modeRead, verdictRefresh)
		s.must(s.s.callRelease(t.Context(), s.rdb, testKey, a.token, false))
		b := s.expect(modeRead, verdictRefresh)
		s.must(s.s.callRelease(t.Context(), s.rdb, testKey, b.token, true))
		s.expect(modeRead, verdictLease)
	})
	t.Run("another type", func(t *testing.T) {
		s := newScriptTest(t)
		s.must(s.rdb.HSet(t.Context(), testKey, "a", 1).Err())
		s.must(s.s.callRelease(t.Context(), s.rdb, testKey, "00000000000000aa", true))
		if n := s.rdb.Exists(t.Context(), testKey).Val(); n != 1 {
			t.Error("the key is gone")
		}
	})
}

func TestRegisterRaisesTheScore(t *testing.T) {
	s := newScriptTest(t)
	const set, member = "inv:dep:seller:1", "product_page page:1"
	register := func(expiry time.Duration, member string) float64 {
		t.Helper()
		text, err := s.s.register.run(t.Context(), s.rdb, set, millis(expiry), member).Text()
		s.must(err)
		score, err := s.rdb.ZScore(t.Context(), set, member).Result()
		s.must(err)
		if fmt.Sprintf("%.0f", score) != text {
			t.Fatalf("the answer is %s, the score %.0f", text, score)
		}
		return score
	}
	now := float64(s.rdb.Time(t.Context()).Val().UnixMilli())
	last := register(time.Hour, member)
	if d := last - now; d < 3600_000 || d > 3700_000 {
		t.Errorf("the score is %.0f ms from now, want an hour", d)
	}
	for range 20 { // several a millisecond
		if next := register(time.Hour, member); next <= last {
			t.Fatalf("registered again, the score went from %.0f to %.0f", last, next)
		} else {
			last = next
		}
	}
	if next := register(time.Minute, member); next <= last {
		t.Errorf("a shorter life took the score from %.0f to %.0f", last, next)
	}
	register(time.Minute, "product_page page:2")
	if ttl := s.rdb.PTTL(t.Context(), set).Val(); ttl < 50*time.Minute {
		t.Errorf("a shorter life took the set's expiry to %s", ttl)
	}
	register(3*time.Hour, "product_page page:3")
	if ttl := s.rdb.PTTL(t.Context(), set).Val(); ttl < 2*time.Hour {
		t.Errorf("the set expires in %s, before its last member", ttl)
	}
	// What is past is forgotten, and the caller's own registration is not.
	s.must(s.rdb.ZAdd(t.Context(), set, redis.Z{Score: now - 1, Member: "product_page page:2"}, redis.Z{Score: now - 1, Member: member}).Err())
	if next := register(time.Hour, member); next < now {
		t.Errorf("the score is %.0f, past", next)
	}
	if err := s.rdb.ZScore(t.Context(), set, "product_page page:2").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("what is past was not pruned: %v", err)
	}
	s.must(s.rdb.Set(t.Context(), set, "foreign", 0).Err())
	register(time.Hour, member)
}

// At maxmemory leases and fills fail, and say so; nothing else breaks.
func TestScriptsWithoutMemory(t *testing.T) {
	server := servertest.PrivateRedis(t, localserver.RedisOptions{Args: []string{"--maxmemory-policy", "noeviction"}})
	s := &scriptTest{T: t, rdb: servertest.RedisClient(t, server.URL()), s: newScripts()}
	held := s.expect(modeRead, verdictLease)
	full := func(limit string) { s.must(s.rdb.ConfigSet(t.Context(), "maxmemory", limit).Err()) }
	full("1")
	if _, err := parseDone(s.s.fill.run(t.Context(), s.rdb, testKey, fillArgs(held.token, kindValue, lifetimes{ttl: time.Minute}, appendRest(nil, &testMeta, nil))...)); !redis.HasErrorPrefix(err, "OOM") {
		t.Errorf("fill: %v, want OOM", err)
	}
	s.must(s.s.callRelease(t.Context(), s.rdb, testKey, held.token, false))
	if _, err := s.s.callRead(t.Context(), s.rdb, testKey, testLease, modeRead, testStamp); !redis.HasErrorPrefix(err, "OOM") {
		t.Errorf("read: %v, want OOM", err)
	}
	full("0")
	s.value(fresh)
	full("1")
	s.expect(modeRead, verdictValue) // a value can still be read
}

func TestScriptsAreLoadedWhereTheyAreMissing(t *testing.T) {
	s := newScriptTest(t)
	s.must(s.rdb.ScriptFlush(t.Context()).Err())
	a := s.expect(modeRead, verdictLease)
	s.must(s.rdb.ScriptFlush(t.Context()).Err())
	if !s.fill(a.token, lifetimes{ttl: time.Minute}, "v") {
		t.Fatal("the fill was refused")
	}
	s.must(s.rdb.ScriptFlush(t.Context()).Err())
	var t1, t2 token
	cmds := s.s.read.runAll(t.Context(), s.rdb, []call{{testKey, readArgs(&t1, testLease, modeRead, testStamp)}, {"page:2", readArgs(&t2, testLease, modeRead, testStamp)}})
	for i, want := range []verdict{verdictValue, verdictLease} {
		if a, err := parseRead(cmds[i], []*token{&t1, &t2}[i]); err != nil || a.verdict != want {
			t.Errorf("call %d: %v, %v, want %s", i, a.verdict, err, want)
		}
	}
	if s.rdb.Get(t.Context(), "page:2").Val()[5:21] != t2.text {
		t.Error("the token of the call is not the one in the key")
	}
}

// waitFor polls a condition that others bring about.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited 10 s for %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}
