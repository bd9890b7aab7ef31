package sink

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

func TestApplyDeletesKeysOfAnyBytes(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL)
	f := plain(t)
	keys := []string{"", "plain", "with space", "new\r\nline", "nul\x00byte", "\xff\xfe", "*?[a]\\{x}", "$5\r\nhello", "%2A", string(make([]byte, 70000))}
	for i := range 2000 {
		keys = append(keys, fmt.Sprintf("t:user:%d", i))
	}
	fill(t, c, keys...)
	fill(t, c, "t:user", "t:user:2000", "other")
	if err := r.Apply(t.Context(), batch(t, 100, deletes(f, keys...)...)); err != nil {
		t.Fatal(err)
	}
	if n := present(t, c, keys...); n != 0 {
		t.Errorf("%d of %d keys are left", n, len(keys))
	}
	if n := present(t, c, "t:user", "t:user:2000", "other"); n != 3 {
		t.Errorf("%d of 3 other keys are left", n)
	}
}

func TestApplyAgainIsHarmless(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL)
	b := batch(t, 0x100, append(deletes(plain(t), numbered("k%d", 1200)...),
		mapping.Invalidation{Op: mapping.OpAdvance, Family: versioned(t), Key: []byte("version")})...)
	if err := r.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	first := c.Get(t.Context(), "version").Val()
	if len(first) != 40 || first[16:32] != "0000000000000100" {
		t.Fatalf("version %q", first)
	}
	fill(t, c, "k7", "k1199")
	if err := r.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if n := present(t, c, "k7", "k1199"); n != 0 {
		t.Errorf("%d keys are left after the resend", n)
	}
	if again := c.Get(t.Context(), "version").Val(); again != first {
		t.Errorf("the resend moved the version from %s to %s", first, again)
	}
}

func TestCheckpointFollowsTheBatch(t *testing.T) {
	db := servertest.Redis(t)
	r := attached(t, db.URL)
	f := plain(t)
	load := func() Control {
		t.Helper()
		return stored(t, r)
	}
	if err := r.Apply(t.Context(), batch(t, 100, deletes(f, "a")...)); err != nil {
		t.Fatal(err)
	}
	if c := load(); c.Applied != 0 || c.Sent != 100 {
		t.Errorf("after the first batch applied is %v, sent %v; want 0 and 100", c.Applied, c.Sent)
	}
	if err := r.Apply(t.Context(), batch(t, 200, deletes(f, "b")...)); err != nil {
		t.Fatal(err)
	}
	if c := load(); c.Applied != 100 || c.End != 148 || c.Sent != 200 {
		t.Errorf("after the second batch applied is %v, end %v, sent %v; want 100, 148, 200", c.Applied, c.End, c.Sent)
	}
	p := Checkpoint{Position: position(200)}
	p.FreshAsOf = time.Unix(1_700_000_123, 456000)
	if err := r.Checkpoint(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	c := load()
	if c.Applied != 200 || !c.FreshAsOf.Equal(p.FreshAsOf) || c.State != StateOK || c.Region != "eu-west-1" || c.Source != testSource {
		t.Errorf("control %+v", c)
	}
	// An idle source: the end moves, the commit does not.
	p.EndLSN, p.FreshAsOf = 5000, time.Time{}
	if err := r.Checkpoint(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if again := load(); again.Applied != 200 || again.End != 5000 || !again.FreshAsOf.Equal(c.FreshAsOf) {
		t.Errorf("control of an idle source %+v", again)
	}
}

func TestUnansweredBatchIsNotApplied(t *testing.T) {
	s, _ := server(t)
	r := attached(t, s.URL())
	if err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "a")...)); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	err := r.Apply(t.Context(), batch(t, 200, deletes(plain(t), "b")...))
	if contErr := s.Signal(syscall.SIGCONT); contErr != nil {
		t.Fatal(contErr)
	}
	contains(t, err, "apply up to 0/C8")
	var e *Error
	if !errors.As(err, &e) || e.Kind != KindUnavailable || !e.Retry() {
		t.Errorf("a timeout is %+v", e)
	}
	if r.shadow.Applied != 0 {
		t.Errorf("applied counts as %v although no checkpoint was acknowledged", r.shadow.Applied)
	}
	eventually(t, "the resend", func() bool {
		return r.Apply(t.Context(), batch(t, 200, deletes(plain(t), "b")...)) == nil
	})
	if applied := stored(t, r).Applied; applied != 100 {
		t.Errorf("applied %v after the resend, want that of the batch before", applied)
	}
}

// Two processes on one slot: whatever the order, the position never goes back.
func TestCheckpointForwardOnly(t *testing.T) {
	db := servertest.Redis(t)
	a := attached(t, db.URL)
	b := open(t, db.URL)
	mustAttach(t, b)
	var wg sync.WaitGroup
	for i, r := range []*Redis{a, b} {
		wg.Go(func() {
			for n := range 200 {
				if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(lsn.LSN(2*n + i + 1))}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	last := lsn.LSN(0)
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		c := stored(t, b)
		if c.Applied < last || c.End != c.Applied+48 && c.Applied != 0 {
			t.Fatalf("applied went from %v to %v (end %v)", last, c.Applied, c.End)
		}
		last = c.Applied
	}
	if last != 400 {
		t.Errorf("ended at %v, want 400", last)
	}
}

func TestGenerations(t *testing.T) {
	db := servertest.Redis(t)
	r := attached(t, db.URL)
	v := []mapping.Invalidation{{Op: mapping.OpAdvance, Family: versioned(t), Key: []byte("v")}}
	for _, at := range []lsn.LSN{0xffff_ffff_0000, 0xffff_ffff_1000} {
		if err := r.Apply(t.Context(), batch(t, at, v...)); err != nil {
			t.Fatal(err)
		}
	}
	before := stored(t, r)
	version := db.Client(t).Get(t.Context(), "v").Val()

	old := open(t, db.URL) // a process that does not know of the new generation
	mustAttach(t, old)
	if err := r.StartGeneration(t.Context(), Source{SystemID: "8", Timeline: 3}); err != nil {
		t.Fatal(err)
	}
	after := stored(t, r)
	if after.Generation <= before.Generation || after.Applied != 0 || after.Sent != 0 || after.State != StateGap || after.Source.SystemID != "8" {
		t.Errorf("after a new generation: %+v", after)
	}
	if err := old.Checkpoint(t.Context(), Checkpoint{Position: position(0xffff_ffff_ffff)}); !errors.Is(err, ErrSuperseded) {
		t.Errorf("a checkpoint of the old generation: %v", err)
	}
	if err := old.Apply(t.Context(), batch(t, 5, deletes(plain(t), "a")...)); !errors.Is(err, ErrSuperseded) {
		t.Errorf("a batch of the old generation: %v", err)
	}
	if err := r.Apply(t.Context(), batch(t, 16, v...)); err != nil {
		t.Fatal(err)
	}
	if now := db.Client(t).Get(t.Context(), "v").Val(); now <= version {
		t.Errorf("LSNs began anew and the version went from %s to %s", version, now)
	}
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(16), SystemID: testSource.SystemID}); err == nil {
		t.Error("the position of another system id was stored")
	}
	// The counter of generations is lost with the hash, the versions are not.
	db.Client(t).Del(t.Context(), r.controlKey)
	fresh := open(t, db.URL)
	if c := mustAttach(t, fresh); c.Found {
		t.Fatalf("found %+v", c)
	}
	if err := fresh.Apply(t.Context(), batch(t, 20, v...)); !errors.Is(err, ErrNotAttached) {
		t.Errorf("a batch without a generation: %v", err)
	}
	if err := fresh.StartGeneration(t.Context(), testSource); err != nil {
		t.Fatal(err)
	}
	version = db.Client(t).Get(t.Context(), "v").Val()
	if err := fresh.Apply(t.Context(), batch(t, 1, v...)); err != nil {
		t.Fatal(err)
	}
	if now := db.Client(t).Get(t.Context(), "v").Val(); now <= version {
		t.Errorf("after a lost control hash the version went from %s to %s", version, now)
	}
}

// A version never goes back, never takes a value it had, and moves with each
// commit that is new to its stream, whoever else writes it.
func TestAdvanceProperty(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	s := newScripts()
	if err := c.ScriptLoad(t.Context(), s.advance.source).Err(); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		c.Del(t.Context(), "v")
		if rapid.Bool().Draw(rt, "foreign") {
			c.RPush(t.Context(), "v", "a list")
		}
		applied := map[string]lsn.LSN{} // per stream
		last := ""
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			stream := rapid.SampledFrom([]string{"0000000100000001", "00000001ffffffff", "000000ff00000001"}).Draw(rt, "stream")
			at := lsn.LSN(rapid.Uint64().Draw(rt, "lsn"))
			if rapid.Bool().Draw(rt, "near") {
				at = applied[stream] + lsn.LSN(rapid.IntRange(0, 2).Draw(rt, "step"))
			}
			cmd := s.advance.command(t.Context(), []any{"v"}, []any{stream, at.Hex()})
			if err := c.Process(t.Context(), cmd); err != nil {
				rt.Fatal(err)
			}
			now := c.Get(t.Context(), "v").Val()
			if len(now) != 40 || now < last {
				rt.Fatalf("the version went from %q to %q", last, now)
			}
			if prev, ok := applied[stream]; (!ok || at > prev) && now == last {
				rt.Fatalf("a commit at %v, new to stream %s, left the version at %q", at, stream, now)
			}
			applied[stream] = max(applied[stream], at)
			last = now
		}
	})
}

func TestStateOfALateCommandIsRefused(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL)
	control := stored(t, r)
	if err := r.SetState(t.Context(), StateGap, "slot lost"); err != nil {
		t.Fatal(err)
	}
	// The ok that was published before arrives only now.
	late := r.scripts.state.command(t.Context(), []any{r.controlKey},
		[]any{hex32(control.Generation), "", hex64(control.revision), "ok", "late", hexTime(time.Now())})
	if err := c.Process(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	if got, _ := late.Text(); got != "revision" {
		t.Errorf("the script answered %q", got)
	}
	if now := stored(t, r); now.State != StateGap || now.Reason != "slot lost" {
		t.Errorf("state %s, %s", now.State, now.Reason)
	}
	// So does the generation.
	lateGeneration := r.installCommand(t.Context(), "", "")
	if err := r.StartGeneration(t.Context(), testSource); err != nil {
		t.Fatal(err)
	}
	if err := c.Process(t.Context(), lateGeneration); err != nil {
		t.Fatal(err)
	}
	if got, _ := lateGeneration.Text(); got != "generation" {
		t.Errorf("the script answered %q", got)
	}
}

func TestStateBeforeAnyGeneration(t *testing.T) {
	db := servertest.Redis(t)
	r := open(t, db.URL)
	if err := r.SetState(t.Context(), StateGap, "new"); !errors.Is(err, ErrNotAttached) {
		t.Errorf("before Attach: %v", err)
	}
	mustAttach(t, r)
	if err := r.SetState(t.Context(), StateGap, "new"); err != nil {
		t.Fatal(err)
	}
	if c := stored(t, r); !c.Found || c.State != StateGap {
		t.Errorf("%+v", c)
	}
	if err := r.StartGeneration(t.Context(), testSource); err != nil {
		t.Fatal(err)
	}
	if err := r.SetState(t.Context(), StateOK, ""); err != nil {
		t.Fatal(err)
	}
	if c := stored(t, r); c.State != StateOK || c.Generation == 0 {
		t.Errorf("%+v", c)
	}
}

func TestScriptFlush(t *testing.T) {
	s, c := server(t)
	r := attached(t, s.URL())
	flush := func() {
		t.Helper()
		if err := c.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
	inv := append(deletes(plain(t), "a"), mapping.Invalidation{Op: mapping.OpAdvance, Family: versioned(t), Key: []byte("v")})
	flush()
	if err := r.Apply(t.Context(), batch(t, 100, inv...)); err != nil {
		t.Fatal(err)
	}
	if v := c.Get(t.Context(), "v").Val(); len(v) != 40 {
		t.Errorf("version %q", v)
	}
	flush()
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(100)}); err != nil {
		t.Fatal(err)
	}
	flush()
	if err := r.SetState(t.Context(), StateCatchingUp, "x"); err != nil {
		t.Fatal(err)
	}
	flush()
	if err := r.StartGeneration(t.Context(), testSource); err != nil {
		t.Fatal(err)
	}
	flush()
	c.FlushAll(t.Context())
	if err := r.Apply(t.Context(), batch(t, 100, inv...)); err != nil {
		t.Fatal(err)
	}
}

// A flush or an eviction on the same node took nothing but values away.
func TestControlHashLostOnTheSameNode(t *testing.T) {
	s, c := server(t)
	r := attached(t, s.URL())
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(100)}); err != nil {
		t.Fatal(err)
	}
	before := stored(t, r)
	for _, lose := range []func(){
		func() { c.FlushAll(t.Context()) },
		func() { c.Del(t.Context(), r.controlKey) },
		func() { c.Del(t.Context(), r.controlKey); c.SAdd(t.Context(), r.controlKey, "somebody else's") },
	} {
		lose()
		fill(t, c, "a")
		if err := r.Apply(t.Context(), batch(t, 200, deletes(plain(t), "a")...)); err != nil {
			t.Fatal(err)
		}
		after := stored(t, r)
		if after.Generation != before.Generation || after.Applied < 100 || after.Sent != 200 || after.State != StateOK || after.Source != testSource {
			t.Errorf("restored as %+v", after)
		}
		if present(t, c, "a") != 0 {
			t.Error("the key of the batch is left")
		}
	}
}

func TestOutOfMemoryStillInvalidates(t *testing.T) {
	s, c := server(t, "--maxmemory-policy", "noeviction")
	r := attached(t, s.URL())
	keys := numbered("t:user:%d", 5000)
	fill(t, c, keys...)
	v := mapping.Invalidation{Op: mapping.OpAdvance, Family: versioned(t), Key: []byte("v")}
	fill(t, c, "v")
	if err := c.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(t.Context(), "x", "y", 0).Err(); replyCode(err) != "OOM" {
		t.Fatalf("the server is not out of memory: %v", err)
	}
	c.ScriptFlush(t.Context())
	if err := r.Apply(t.Context(), batch(t, 100, append(deletes(plain(t), keys...), v)...)); err != nil {
		t.Fatal(err)
	}
	if n := present(t, c, keys...); n != 0 {
		t.Errorf("%d keys are left", n)
	}
	if got := c.Get(t.Context(), "v").Val(); len(got) != 40 {
		t.Errorf("version %q", got)
	}
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(100)}); err != nil {
		t.Fatal(err)
	}
	if err := r.SetState(t.Context(), StateGap, "x"); err != nil {
		t.Fatal(err)
	}
	if err := r.StartGeneration(t.Context(), testSource); err != nil {
		t.Fatal(err)
	}
	if control := stored(t, r); control.State != StateGap {
		t.Errorf("%+v", control)
	}
}

func TestKilledInTheMiddleOfABatch(t *testing.T) {
	s, _ := server(t)
	p := newProxy(t, nil, s.Address())
	r := attached(t, p.url())
	keys := numbered("t:user:%d", 3000)
	for i, after := range []int{1, 200, 5000, 30000} {
		c := servertest.RedisClient(t, s.URL())
		fill(t, c, keys...)
		b := batch(t, lsn.LSN(100+i), deletes(plain(t), keys...)...)
		p.cutAfter(after)
		if err := r.Apply(t.Context(), b); err == nil {
			t.Fatalf("cut after %d bytes, no error", after)
		}
		if applied := stored(t, r).Applied; applied >= lsn.LSN(100+i) {
			t.Errorf("applied %v while the batch is unacknowledged", applied)
		}
		if err := r.Apply(t.Context(), b); err != nil {
			t.Fatalf("resend after %d bytes: %v", after, err)
		}
		if n := present(t, c, keys...); n != 0 {
			t.Errorf("%d keys are left", n)
		}
	}
	p.cutAfter(20000)
	if err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), keys...)...)); err == nil {
		t.Fatal("no error")
	}
	s.Kill()
	b := batch(t, 200, deletes(plain(t), keys...)...)
	err := r.Apply(t.Context(), b)
	var e *Error
	if !errors.As(err, &e) || e.Kind != KindUnavailable {
		t.Errorf("Redis is away: %v", err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(t.Context(), b); !errors.Is(err, ErrNodeChanged) {
		t.Fatalf("restarted empty: %v", err)
	}
	if c := mustAttach(t, r); c.Found {
		t.Errorf("found %+v on an empty server", c)
	}
}
