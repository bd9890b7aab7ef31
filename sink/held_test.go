package sink

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

const testHold = 10 * time.Second

// held is a sink that holds the invalidations of class critical for testHold, by a clock
// that the test moves.
type held struct {
	*Redis
	t     *testing.T
	c     redis.UniversalClient
	plan  *mapping.Plan
	clock time.Time
	at    lsn.LSN
	url   string
}

func newHeld(t *testing.T, url string, c redis.UniversalClient) *held {
	t.Helper()
	plan, err := mapping.Compile(load(t, url))
	if err != nil {
		t.Fatal(err)
	}
	h := &held{t: t, c: c, plan: plan, clock: time.UnixMilli(1_700_000_000_000), at: 0x1000, url: url}
	h.Redis = attached(t, url, h.timed)
	h.keep(testHold, "user", "usher", "search")
	return h
}

func (h *held) timed(o *Options) { o.SourceNow = func() time.Time { return h.clock } }

func (h *held) keep(hold time.Duration, families ...string) {
	h.t.Helper()
	classes := []HeldClass{{Name: "critical", Hold: hold, Families: families}}
	if hold == 0 {
		classes = nil
	}
	if err := h.KeepHeld(h.t.Context(), classes); err != nil {
		h.t.Fatal(err)
	}
}

func (h *held) family(name string) *mapping.Family {
	h.t.Helper()
	f, ok := h.plan.Family(name)
	if !ok {
		h.t.Fatalf("no family %s", name)
	}
	return f
}

func (h *held) invs(keys ...string) []mapping.Invalidation { return deletes(h.family("user"), keys...) }

// batch is one transaction that commits now.
func (h *held) batch(invs ...mapping.Invalidation) *ordering.Batch {
	h.at += 0x100
	b := ordering.NewBatch()
	for i := range invs {
		b.Add(&ordering.Txn{XID: uint32(h.at), CommitLSN: h.at, CommitTime: h.clock}, &invs[i])
	}
	return b
}

func (h *held) put(invs ...mapping.Invalidation) {
	h.t.Helper()
	if err := h.Apply(h.t.Context(), h.batch(invs...)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *held) take(due time.Time) Take {
	return Take{Class: "critical", Due: due, Limit: MaxTake, Plan: h.plan, Budget: time.Minute}
}

// drain applies all that is due by now.
func (h *held) drain() (total Drained) {
	h.t.Helper()
	for {
		d, err := h.Drain(h.t.Context(), h.take(h.clock))
		if err != nil {
			h.t.Fatal(err)
		}
		total.Applied, total.Late, total.Waiting = total.Applied+d.Applied, total.Late+d.Late, d.Waiting
		total.Again, total.Lost = total.Again || d.Again, total.Lost || d.Lost
		if d.Applied == 0 {
			return total
		}
	}
}

func (h *held) want(gone bool, keys ...string) {
	h.t.Helper()
	n := len(keys)
	if gone {
		n = 0
	}
	if got := present(h.t, h.c, keys...); got != n {
		h.t.Fatalf("%d of %d keys are cached, want %d", got, len(keys), n)
	}
}

func newSharedHeld(t *testing.T) *held {
	t.Helper()
	db := servertest.Redis(t)
	return newHeld(t, db.URL, db.Client(t))
}

// longAgo is a clock by which what batch makes is not overdue.
func longAgo(o *Options) { o.SourceNow = func() time.Time { return position(0).CommitTime } }

// holdAndDrain does everything once that is done for what is held.
func holdAndDrain(t *testing.T, r *Redis) error {
	plan, err := mapping.Compile(load(t, "redis://127.0.0.1:6379"))
	if err != nil {
		t.Fatal(err)
	}
	class := HeldClass{Name: "critical", Hold: testHold, Families: []string{"user"}}
	for _, classes := range [][]HeldClass{{class}, nil} {
		if err := r.KeepHeld(t.Context(), classes); err != nil {
			return err
		}
		if err := r.Apply(t.Context(), batch(t, 200, deletes(plain(t), "t:7:user:2")...)); err != nil {
			return err
		}
		for range 2 { // the second one finds the set empty
			if _, err := r.Drain(t.Context(), Take{Class: "critical", Due: time.Now(), Limit: MaxTake, Plan: plan}); err != nil {
				return err
			}
		}
	}
	return r.KeepHeld(t.Context(), nil)
}

// takenBy moves what is due to the taken set, as a process does that dies then.
func (h *held) takenBy(r *Redis) taken {
	h.t.Helper()
	out, err := r.take(h.t.Context(), r.backend.Load(), r.sets["critical"], h.take(h.clock))
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

func TestHeldUntilTheDeadlineOfTheFirstChange(t *testing.T) {
	h := newSharedHeld(t)
	keys := numbered("t:1:user:%d", 450)
	fill(t, h.c, keys...)
	first := h.batch(h.invs(keys...)...)
	if err := h.Apply(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	for i := range first.Len() {
		if !first.Entry(i).Held {
			t.Fatal("an entry does not say that it is held")
		}
	}
	if c := stored(t, h.Redis); c.Sent != h.at {
		t.Errorf("sent %v does not cover what is held, %v", c.Sent, h.at)
	}
	h.clock = h.clock.Add(testHold - time.Second)
	h.put(h.invs(keys...)...) // the first one's deadline stands
	if d := h.drain(); d.Applied != 0 || d.Waiting != 450 {
		t.Fatalf("before the deadline: %+v", d)
	}
	h.want(false, keys...)
	h.clock = h.clock.Add(time.Second)
	if d := h.drain(); d.Applied != 450 || d.Waiting != 0 || d.Again || d.Late != 0 {
		t.Fatalf("at the deadline: %+v", d)
	}
	h.want(true, keys...)
	if n := testutil.ToFloat64(h.metrics.held.coalesced.WithLabelValues("critical")); n != 450 {
		t.Errorf("%v coalesced, want 450", n)
	}
	if n := h.c.ZCard(t.Context(), h.takenKey("critical")).Val(); n != 1 {
		t.Errorf("%d members of the taken set, want the sentinel", n)
	}
}

func TestOverdueIsAppliedWithItsBatch(t *testing.T) {
	h := newSharedHeld(t)
	fill(t, h.c, "t:1:user:1", "t:1:user:2")
	late, soon := h.batch(h.invs("t:1:user:1")...), h.batch(h.invs("t:1:user:2")...)
	h.clock = h.clock.Add(testHold)
	if err := h.Apply(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	h.want(true, "t:1:user:1")
	h.clock = h.clock.Add(-time.Millisecond)
	if err := h.Apply(t.Context(), soon); err != nil {
		t.Fatal(err)
	}
	h.want(false, "t:1:user:2")
}

// Purges, families that the mark does not name, and other classes' families go at once.
func TestWhatIsNotHeld(t *testing.T) {
	h := newSharedHeld(t)
	h.keep(testHold, "user") // names are added only: a new sink has these alone
	fill(t, h.c, "t:1:user:1", "t:1:usher:1")
	h.put(mapping.Invalidation{Op: mapping.OpPurge, Family: h.family("user")})
	h.want(true, "t:1:user:1")

	other := open(t, "redis://127.0.0.1:1", h.timed)
	other.sets["critical"] = &heldSet{class: "critical", hold: testHold, families: []string{"user"}}
	for name, want := range map[string]bool{"user": true, "usher": false} {
		e := h.batch(deletes(h.family(name), "k")...).Entry(0)
		if s, _ := other.holds(&e, h.clock.UnixMilli()); (s != nil) != want {
			t.Errorf("an entry of %s is held: %v", name, s != nil)
		}
	}
}

// What changes again between take and removal is not lost.
func TestChangedWhileItIsTaken(t *testing.T) {
	h := newSharedHeld(t)
	h.put(h.invs("t:1:user:1")...)
	h.clock = h.clock.Add(testHold)
	got := h.takenBy(h.Redis)
	h.put(h.invs("t:1:user:1")...)
	if err := h.done(t.Context(), h.backend.Load(), h.sets["critical"], got.members); err != nil {
		t.Fatal(err)
	}
	fill(t, h.c, "t:1:user:1")
	h.clock = h.clock.Add(testHold)
	if d := h.drain(); d.Applied != 1 {
		t.Fatalf("%+v", d)
	}
	h.want(true, "t:1:user:1")
}

// A process dies with members taken; the next one applies them first, whatever is due.
func TestTakenByOneThatDied(t *testing.T) {
	h := newSharedHeld(t)
	keys := numbered("t:1:user:%d", 300)
	fill(t, h.c, keys...)
	h.put(h.invs(keys...)...)
	h.clock = h.clock.Add(testHold)
	h.takenBy(h.Redis)
	h.clock = h.clock.Add(-testHold) // nothing is due any more

	next := *h
	next.Redis = open(t, h.url, next.timed)
	mustAttach(t, next.Redis)
	if d := next.drain(); d.Applied != 200 || !d.Again || d.Waiting != 100 {
		t.Fatalf("%+v", d)
	}
	if n := present(t, h.c, keys...); n != 100 {
		t.Errorf("%d keys are left, want those that were not taken", n)
	}
}

// A late removal of a process that was superseded does not touch a later take.
func TestLateRemoval(t *testing.T) {
	h := newSharedHeld(t)
	h.put(h.invs("t:1:user:1")...)
	h.clock = h.clock.Add(testHold)
	old := h.takenBy(h.Redis)
	next := *h
	next.Redis = open(t, h.url, next.timed)
	mustAttach(t, next.Redis)
	next.drain()
	h.clock = h.clock.Add(-testHold) // a commit in the same millisecond: the same member
	next.clock = h.clock
	next.put(h.invs("t:1:user:1")...)
	next.clock = next.clock.Add(testHold)
	next.takenBy(next.Redis)
	if err := h.done(t.Context(), h.backend.Load(), h.sets["critical"], old.members); err != nil {
		t.Fatal(err)
	}
	fill(t, h.c, "t:1:user:1")
	if d := next.drain(); d.Applied != 1 {
		t.Fatalf("%+v", d)
	}
	h.want(true, "t:1:user:1")
}

// A reply that is lost leaves nothing behind, at any byte of what goes to the server.
func TestHeldThroughABadConnection(t *testing.T) {
	s, c := server(t)
	p := newProxy(t, nil, s.Address())
	h := newHeld(t, p.url(), c)
	lost := 0
	for limit := 100; limit < 6000; limit += 97 {
		keys := numbered(fmt.Sprintf("t:%d:user:%%d", limit), 30)
		fill(t, c, keys...)
		h.put(h.invs(keys...)...)
		h.clock = h.clock.Add(testHold)
		p.cutAfter(limit)
		_, err := h.Drain(t.Context(), h.take(h.clock))
		p.cutAfter(0)
		if err != nil {
			lost++
		}
		eventually(t, "all to be applied", func() bool {
			d, err := h.Drain(t.Context(), h.take(h.clock))
			return err == nil && d.Applied == 0 && d.Waiting == 0
		})
		h.want(true, keys...)
	}
	if lost < 10 {
		t.Errorf("%d connections were cut at a bad moment only", lost)
	}
}

// A version moves to a value that it never had, also when no commit was sent since.
func TestHeldVersions(t *testing.T) {
	h := newSharedHeld(t)
	seen := map[string]bool{}
	move := func() {
		t.Helper()
		h.put(mapping.Invalidation{Op: mapping.OpAdvance, Family: h.family("search"), Key: []byte("t:1:search")})
		before := h.c.Get(t.Context(), "t:1:search").Val()
		h.clock = h.clock.Add(testHold)
		h.drain()
		v := h.c.Get(t.Context(), "t:1:search").Val()
		if v == "" || seen[v] || v == before {
			t.Fatalf("version %q, was %q", v, before)
		}
		seen[v] = true
	}
	move()
	move()
	h.at -= 0x100 // the same commit again, as after a restart
	move()
	if err := h.StartGeneration(t.Context(), testSource); err != nil {
		t.Fatal(err)
	}
	move()
	h.c.Set(t.Context(), "t:1:search", strings.Repeat("f", 39)+"0", 0) // of a stream above
	move()
}

// An eviction of either set is noticed, and settled by purging what it may have held.
func TestEvictedSets(t *testing.T) {
	for _, which := range []string{"", ":taken"} {
		h := newSharedHeld(t)
		fill(t, h.c, "t:1:user:1", "t:1:usher:9", "t:1:shelf:s:0:q", "other")
		h.put(h.invs("t:1:user:1")...)
		h.c.Unlink(t.Context(), h.heldKey("critical")+which)
		h.put(h.invs("t:1:user:2")...) // puts a set there again
		if d := h.drain(); !d.Lost {
			t.Fatalf("%q: %+v", which, d)
		}
		h.want(true, "t:1:user:1", "t:1:usher:9")
		h.want(false, "t:1:shelf:s:0:q", "other")
		if d := h.drain(); d.Lost {
			t.Errorf("%q: lost twice", which)
		}
		fill(t, h.c, "t:1:user:2")
		h.clock = h.clock.Add(testHold)
		h.drain()
		h.want(true, "t:1:user:2")
		if n := testutil.ToFloat64(h.metrics.held.lost.WithLabelValues("critical")); n != 1 {
			t.Errorf("%q: %v counted", which, n)
		}
	}
}

// Everything flushed: the control hash comes back with its marks, and the set's loss shows.
func TestHeldAndFlushed(t *testing.T) {
	h := newSharedHeld(t)
	h.put(h.invs("t:1:user:1")...)
	h.c.FlushDB(t.Context())
	if d := h.drain(); !d.Lost {
		t.Fatalf("%+v", d)
	}
	h.put(h.invs("t:1:user:1")...)
	fill(t, h.c, "t:1:user:1")
	h.clock = h.clock.Add(testHold)
	if d := h.drain(); d.Lost || d.Applied != 1 {
		t.Fatalf("%+v", d)
	}
	h.want(true, "t:1:user:1")
}

// At maxmemory nothing can be held: it goes at once.
func TestHoldingRefused(t *testing.T) {
	s, c := server(t)
	h := newHeld(t, s.URL(), c)
	fill(t, c, "t:1:user:1", "t:1:user:2")
	h.put(h.invs("t:1:user:1")...)
	c.ConfigSet(t.Context(), "maxmemory", "1")
	b := h.batch(h.invs("t:1:user:2")...)
	if err := h.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	h.want(true, "t:1:user:2")
	if b.Entry(0).Held {
		t.Error("the entry says that it is held")
	}
	h.clock = h.clock.Add(testHold)
	if d := h.drain(); d.Applied != 1 {
		t.Fatalf("above maxmemory: %+v", d)
	}
	h.want(true, "t:1:user:1")
	h.keep(testHold+time.Second, "user", "usher", "search")
	if n := testutil.ToFloat64(h.metrics.held.refused); n != 1 {
		t.Errorf("%v batches refused, want 1", n)
	}
	c.ConfigSet(t.Context(), "maxmemory", "0")
	c.Unlink(t.Context(), h.heldKey("critical"))
	fill(t, c, h.heldKey("critical"), "t:1:user:3") // a string where the set should be
	h.put(h.invs("t:1:user:3")...)
	h.want(true, "t:1:user:3")
	if d := h.drain(); !d.Lost {
		t.Errorf("%+v", d)
	}
}

// A class that is gone, or holds for less, gives all of it out; then the set is given up.
func TestHeldClassChanges(t *testing.T) {
	h := newSharedHeld(t)
	fill(t, h.c, "t:1:user:1", "t:1:user:2", "gone:1")
	h.put(h.invs("t:1:user:1")...)
	h.put(deletes(&mapping.Family{Name: "gone", Class: h.family("user").Class}, "gone:1")...)
	h.want(true, "gone:1") // never named by the mark

	h.keep(testHold+time.Second, "user", "extra")
	if s := h.sets["critical"]; s.hold != testHold+time.Second || len(s.families) != 4 || s.leaving {
		t.Fatalf("a longer hold: %+v", s)
	}
	h.keep(time.Second, "user")
	h.put(h.invs("t:1:user:2")...)
	h.want(true, "t:1:user:2") // nothing more is put into a set that is being given up
	if d := h.drain(); d.Applied != 1 {
		t.Fatalf("a shorter hold: %+v", d)
	}
	h.want(true, "t:1:user:1")
	h.keep(time.Second, "user")
	if s := h.sets["critical"]; s.hold != time.Second || len(s.families) != 1 || s.leaving {
		t.Fatalf("a shorter hold, emptied: %+v", s)
	}

	extra := &mapping.Family{Name: "user", Class: h.family("user").Class}
	h.put(deletes(extra, "t:1:user:1")...)
	fill(t, h.c, "t:1:user:1")
	empty, err := mapping.Compile(&mapping.File{})
	if err != nil {
		t.Fatal(err)
	}
	h.plan = empty // families are unknown by now: their keys are removed
	h.keep(0)
	if got := h.HeldSets(); len(got) != 1 {
		t.Fatalf("given up with something in it: %v", got)
	}
	h.drain()
	h.want(true, "t:1:user:1")
	h.keep(0)
	if got := h.HeldSets(); len(got) != 0 {
		t.Errorf("still in use: %v", got)
	}
	if n := h.c.Exists(t.Context(), h.heldKey("critical"), h.takenKey("critical")).Val(); n != 0 {
		t.Errorf("%d sets are left", n)
	}
	if c := stored(t, h.Redis); len(c.held) != 0 {
		t.Errorf("marks are left: %v", c.held)
	}
}

// Another generation, or another process behind the address: nothing is taken.
func TestDrainIsRefused(t *testing.T) {
	s, c := server(t)
	h := newHeld(t, s.URL(), c)
	h.put(h.invs("t:1:user:1")...)
	other := *h
	other.Redis = open(t, s.URL(), other.timed)
	mustAttach(t, other.Redis)
	if err := other.StartGeneration(t.Context(), testSource); err != nil {
		t.Fatal(err)
	}
	h.clock = h.clock.Add(testHold)
	other.clock = h.clock
	if _, err := h.Drain(t.Context(), h.take(h.clock)); !errors.Is(err, ErrSuperseded) {
		t.Errorf("of an earlier generation: %v", err)
	}
	if n := c.ZCard(t.Context(), h.takenKey("critical")).Val(); n != 1 {
		t.Error("one of an earlier generation has taken something")
	}
	if got := other.HeldSets(); len(got) != 1 {
		t.Fatalf("the new generation does not know the set: %v", got)
	}
	got := other.takenBy(other.Redis)
	if len(got.members) != 1 {
		t.Fatalf("%+v", got)
	}
	if err := h.done(t.Context(), h.backend.Load(), h.sets["critical"], got.members); !errors.Is(err, ErrSuperseded) {
		t.Errorf("a removal of an earlier generation: %v", err)
	}
	if err := c.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the restart to be noticed", func() bool {
		_, err := other.Drain(t.Context(), other.take(h.clock))
		return errors.Is(err, ErrNodeChanged)
	})
	fill(t, c, "t:1:user:1")
	mustAttach(t, other.Redis)
	if d := other.drain(); d.Applied != 1 || !d.Again {
		t.Errorf("after the restart: %+v", d)
	}
	h.want(true, "t:1:user:1")
}

// What is held of a soft family is marked, and for no longer than since its commit.
func TestHeldSoft(t *testing.T) {
	db := servertest.Redis(t)
	h := newHeld(t, db.URL, db.Client(t))
	h.clock = time.Now()
	f := h.family("kept")
	if err := h.KeepHeld(t.Context(), []HeldClass{{Name: "kept", Hold: 4 * time.Second, Families: []string{"kept"}}}); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(time.Hour)
	set(t, h.c, "kept:1", entry("V", nobody, long, long), time.Hour)
	h.put(mapping.Invalidation{Op: mapping.OpSoft, Family: f, Key: []byte("kept:1")})
	committed := h.clock
	h.clock = h.clock.Add(7 * time.Second) // late
	take := h.take(h.clock)
	take.Class = "kept"
	if d, err := h.Drain(t.Context(), take); err != nil || d.Applied != 1 {
		t.Fatalf("%+v, %v", d, err)
	}
	v := get(t, h.c, "kept:1")
	if len(v) < 57 || v[33:45] != "000000000000" {
		t.Fatalf("not marked: %q", v)
	}
	until, err := strconv.ParseInt(v[45:57], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	// Of the 10 s of stale_for 3 are left, by Redis' clock, which does not know of our 7.
	if left := time.UnixMilli(until).Sub(time.Now()); left > 3*time.Second || left < time.Second {
		t.Errorf("it may be served for %v more after a commit at %v, want 3s", left, committed)
	}
}

// Readers of the stream are told of a key when it is applied, not when it is put away.
func TestStreamTellsOfHeldWhenApplied(t *testing.T) {
	db := servertest.Redis(t)
	h := newHeld(t, db.URL, db.Client(t))
	h.Redis = attached(t, db.URL, h.timed, streamed)
	h.keep(testHold, "user", "usher", "search")
	keys := func() (all []string) {
		for _, m := range messagesOf(t, h.c, h.news.key) {
			all = append(all, m.keys...)
		}
		return all
	}
	h.put(append(h.invs("t:1:user:1"), mapping.Invalidation{Op: mapping.OpDelete, Family: h.family("kept"), Key: []byte("kept:1")})...)
	if got := keys(); len(got) != 1 || got[0] != "kept:1" {
		t.Fatalf("told of %q, want what was applied", got)
	}
	h.clock = h.clock.Add(testHold)
	h.drain()
	if got := keys(); len(got) != 2 || got[1] != "t:1:user:1" {
		t.Fatalf("told of %q", got)
	}
	h.c.Unlink(t.Context(), h.heldKey("critical"))
	h.drain()
	list := messagesOf(t, h.c, h.news.key)
	if !list[len(list)-1].all {
		t.Error("readers were not told of the purge")
	}
}

// A database that is flushed for a gap has its sets, and loses nothing that was held.
func TestHeldAndDedicatedPurge(t *testing.T) {
	h := newSharedHeld(t)
	h.dedicated = true
	h.put(h.invs("t:1:user:1")...)
	if err := h.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.put(h.invs("t:1:user:2")...)
	fill(t, h.c, "t:1:user:2")
	h.clock = h.clock.Add(testHold)
	if d := h.drain(); d.Lost || d.Applied != 1 {
		t.Fatalf("%+v", d)
	}
	h.want(true, "t:1:user:2")
}

// A node whose history changed under a connection that stayed up may have lost what was
// just applied, and must not lose what is to be applied again.
func TestHeldScriptsKnowTheirHistory(t *testing.T) {
	h := newSharedHeld(t)
	h.put(h.invs("t:1:user:1", "t:1:user:2")...)
	h.clock = h.clock.Add(testHold)
	h.takenBy(h.Redis)
	h.put(h.invs("t:1:user:3")...)
	look := func() string {
		return fmt.Sprint(h.c.ZRange(t.Context(), h.heldKey("critical"), 0, -1).Val(), h.c.ZRange(t.Context(), h.takenKey("critical"), 0, -1).Val(),
			h.c.HGetAll(t.Context(), h.controlKey).Val())
	}
	before := look()
	const other = "0123456789abcdef0123456789abcdef01234567"
	s := h.sets["critical"]
	g := hex32(stored(t, h.Redis).Generation)
	control, held, taken := h.controlKey, h.heldKey("critical"), h.takenKey("critical")
	members := []any{g, other, ""}
	for _, m := range h.c.ZRange(t.Context(), taken, 0, -1).Val() {
		members = append(members, m)
	}
	for name, cmd := range map[string]*redis.Cmd{
		"hold": h.scripts.hold.command(t.Context(), []any{control, held, taken}, []any{g, other, "held:critical", "", "", ""}),
		"take": h.scripts.take.command(t.Context(), []any{control, held, taken}, []any{g, other, s.nonce, nonce(), "0", "(+inf", 200, ""}),
		"done": h.scripts.done.command(t.Context(), []any{control, taken}, members),
	} {
		if err := h.c.Process(t.Context(), cmd); err != nil {
			t.Fatal(err)
		}
		if answer := fmt.Sprint(cmd.Val()); strings.Trim(answer, "[]") != "node" {
			t.Errorf("%s answered %q", name, answer)
		}
		if after := look(); after != before {
			t.Errorf("%s changed\n%s\nto\n%s", name, before, after)
		}
	}
}
