package sink

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

const everything = ^lsn.LSN(0) // the catalogs have been looked at up to there

// checkpoint stores that all that was put is applied or held, and returns its end.
func (h *held) checkpoint() lsn.LSN {
	h.t.Helper()
	p := ordering.Position{Timeline: 1, CommitLSN: h.at, EndLSN: h.at + 48, CommitTime: h.clock}
	if err := h.Checkpoint(h.t.Context(), Checkpoint{Position: p}); err != nil {
		h.t.Fatal(err)
	}
	return p.EndLSN
}

// settle settles, and returns what the hash says then.
func (h *held) settle(looked lsn.LSN) lsn.LSN {
	h.t.Helper()
	if err := h.Settle(h.t.Context(), looked); err != nil {
		h.t.Fatal(err)
	}
	return stored(h.t, h.Redis).Settled
}

func (h *held) wantSettled(want lsn.LSN) {
	h.t.Helper()
	if got := h.settle(everything); got != want {
		h.t.Fatalf("settled is %v, want %v", got, want)
	}
}

// left lists the keys whose invalidations are in a set and not applied.
func (h *held) left() map[string]bool {
	h.t.Helper()
	left := map[string]bool{}
	for _, set := range []string{h.heldKey("critical"), h.takenKey("critical")} {
		members, err := h.c.ZRangeByScore(h.t.Context(), set, &redis.ZRangeBy{Min: "0", Max: "(+inf"}).Result()
		if err != nil {
			h.t.Fatal(err)
		}
		for _, m := range members {
			left[m[strings.LastIndex(m, " ")+1:]] = true
		}
	}
	return left
}

func TestSettledIsBehindWhatIsHeld(t *testing.T) {
	h := newSharedHeld(t)
	h.drain()
	h.put(h.invs("t:7:user:1")...)
	first := h.checkpoint()
	h.wantSettled(0)
	h.drain() // nothing is due
	h.wantSettled(0)
	h.clock = h.clock.Add(testHold / 2)
	h.put(h.invs("t:7:user:2")...)
	second := h.checkpoint()
	h.drain()
	h.clock = h.clock.Add(testHold / 2)
	if d := h.drain(); d.Applied != 1 || d.Waiting != 1 {
		t.Fatalf("%+v", d)
	}
	h.wantSettled(first)
	h.clock = h.clock.Add(testHold)
	h.drain()
	h.wantSettled(second)

	// What the catalogs have not been looked at for is not settled.
	h.put(h.invs("t:7:user:3")...)
	h.clock = h.clock.Add(testHold)
	h.drain()
	third := h.checkpoint()
	h.drain()
	if got := h.settle(third - 1); got != third-1 {
		t.Errorf("settled is %v with a look at %v", got, third-1)
	}
	h.wantSettled(third)
}

// What was taken by one that did not finish is not applied, and an empty held set says
// nothing of it.
func TestSettledIsBehindWhatIsTaken(t *testing.T) {
	h := newSharedHeld(t)
	h.drain()
	h.put(h.invs(numbered("t:7:user:%d", 300)...)...)
	end := h.checkpoint()
	h.clock = h.clock.Add(testHold)
	for range 2 { // two processes, and late calls at that: no more than one at a time takes
		h.takenBy(h.Redis)
	}
	next := open(t, h.url, h.timed)
	mustAttach(t, next)
	h.Redis = next
	h.keep(testHold, "user", "usher", "search")
	h.wantSettled(0)
	for done := 0; done < 300; {
		h.wantSettled(0)
		d, err := h.Drain(t.Context(), h.take(h.clock))
		if err != nil {
			t.Fatal(err)
		}
		done += d.Applied
	}
	h.drain()
	h.wantSettled(end)
}

// The claim holds at each step of a long random run, and under steady load it is behind
// by the hold and a step of the marks at most.
func TestSettledUnderLoad(t *testing.T) {
	h := newSharedHeld(t)
	rng := rand.New(rand.NewPCG(1, 2))
	since := map[string]lsn.LSN{} // the first position of what is held of a key
	ends := []heldMark{}          // and when it was checkpointed, by the clock
	latest := lsn.LSN(0)
	for step := range 600 {
		h.clock = h.clock.Add(time.Duration(rng.IntN(400)) * time.Millisecond)
		keys := numbered(fmt.Sprintf("t:7:user:%d-%%d", rng.IntN(20)), 1+rng.IntN(3))
		h.put(h.invs(keys...)...)
		for _, k := range keys {
			if since[k] == 0 {
				since[k] = h.at + 48
			}
		}
		if rng.IntN(3) > 0 {
			ends = append(ends, heldMark{h.checkpoint(), h.clock.UnixMilli()})
		}
		event := rng.IntN(10)
		if step >= 400 { // nothing but the load, which has to be enough
			event = 9
		}
		switch event {
		case 0:
			h.takenBy(h.Redis)
		case 1: // ahead of the deadline, as the rate allows
			ahead := h.take(h.clock.Add(testHold / 2))
			ahead.Limit = 1 + rng.IntN(3)
			if _, err := h.Drain(t.Context(), ahead); err != nil {
				t.Fatal(err)
			}
		case 2:
			next := open(t, h.url, h.timed)
			mustAttach(t, next)
			h.Redis = next
			h.keep(testHold, "user", "usher", "search")
		default:
			h.drain()
		}
		latest = h.settle(everything)
		left := h.left()
		for k, at := range since {
			switch {
			case !left[k]:
				delete(since, k)
			case at <= latest:
				t.Fatalf("step %d: settled is %v, and %s of %v is held", step, latest, k, at)
			}
		}
	}
	slack := testHold + testHold/markSteps + 2*time.Second // and what the steps leave undone
	for _, m := range ends {
		if age := h.clock.Sub(time.UnixMilli(m.newest)); m.end > latest && age > slack {
			t.Fatalf("%v is not settled %v later", m.end, age)
		}
	}
}

// What the hash says is believed only while the primaries are those that it is about.
func TestSettledOfOtherNodes(t *testing.T) {
	s, c := server(t)
	h := newHeld(t, s.URL(), c)
	h.drain()
	h.put(h.invs("t:7:user:1")...)
	end := h.checkpoint()
	h.clock = h.clock.Add(testHold)
	h.drain()
	h.wantSettled(end)
	w, err := OpenWatch(load(t, h.url).Redis, h.slot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	look := func() Settling {
		t.Helper()
		var s Settling
		eventually(t, "an answer", func() bool { s, err = w.Look(t.Context()); return err == nil })
		return s
	}
	if s := look(); !s.Settled(end) || s.Settled(end+1) || len(s.Held) != 0 {
		t.Fatalf("%+v", s)
	}
	h.put(h.invs("t:7:user:2")...)
	if s := look(); len(s.Held) != 1 || s.Held[0].Waiting != 1 || !s.Held[0].Until.Equal(h.clock.Add(testHold)) {
		t.Fatalf("%+v", s)
	}
	if err := c.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := look(); s.Settled(end) || !s.NodesChanged {
		t.Fatalf("after a restart: %+v", s)
	}
	mustAttach(t, h.Redis)
	h.keep(testHold, "user", "usher", "search")
	h.drain()
	if err := h.Settle(t.Context(), everything); err != nil {
		t.Fatal(err)
	}
	if s := look(); s.Settled(1) {
		t.Fatalf("settled before the replay has come back to where it was: %+v", s)
	}
	h.put(h.invs("t:7:user:3")...)
	h.checkpoint()
	if s := look(); s.Settled(1) || s.NodesChanged {
		t.Fatalf("what is held has not been looked at: %+v", s)
	}
	h.clock = h.clock.Add(testHold)
	h.drain()
	h.settle(everything)
	if s := look(); !s.Settled(end) {
		t.Fatalf("%+v", s)
	}

	if err := c.HSet(t.Context(), h.controlKey, "purging", "user").Err(); err != nil {
		t.Fatal(err)
	}
	if s := look(); s.Settled(end) {
		t.Fatal("settled while a family is being purged")
	}
	if err := c.HSet(t.Context(), h.controlKey, "purging", "").Err(); err != nil {
		t.Fatal(err)
	}
	if err := h.SetState(t.Context(), StateGap, "test"); err != nil {
		t.Fatal(err)
	}
	if s := look(); s.Settled(end) {
		t.Fatal("settled in a gap")
	}
	if err := h.StartGeneration(t.Context(), testSource); err != nil {
		t.Fatal(err)
	}
	if s := look(); s.Control.Settled != 0 {
		t.Fatalf("a new generation has settled %v", s.Control.Settled)
	}
}
