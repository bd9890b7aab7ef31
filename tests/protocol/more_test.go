package protocol

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// versionKey is the version key of the case's list.
func (s *scene) versionKey() string { return s.key("list") }

func (s *scene) listKey(t *testing.T) string {
	t.Helper()
	version := s.raw(t, s.versionKey())
	if !regexp.MustCompile(`^[0-9a-f]{40}$`).MatchString(version) {
		t.Fatalf("the version is %q", version)
	}
	return fmt.Sprintf("list:%d:%s:%d", s.id, version, s.id)
}

// move moves the version, as the daemon does.
func (s *scene) move(t *testing.T) {
	t.Helper()
	if n := s.run(t, "advance", s.versionKey(), "0000000100000001", "0000000000000010"); n != int64(1) {
		t.Fatalf("advance.lua has moved %v keys", n)
	}
}

func versionIsMade(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	s.a.begin(t, s.request("list")).loadsRow(t, value("one"))
	first := s.listKey(t)
	if !strings.HasPrefix(s.raw(t, s.versionKey()), nobody) {
		t.Errorf("the version is %s: no daemon's may be below it", s.raw(t, s.versionKey()))
	}
	s.kind(t, first, "V")
	s.b.begin(t, s.request("list")).ends(t, value("one"))
	// One that was evicted does not come back as it was.
	s.write(t, s.id, "two")
	s.unlink(t, s.versionKey())
	s.b.begin(t, s.request("list")).loadsRow(t, value("two"))
	if s.listKey(t) == first {
		t.Error("the version is the same again")
	}
}

func versionMoves(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	s.a.begin(t, s.request("list")).loadsRow(t, value("one"))
	s.write(t, s.id, "two")
	s.move(t)
	s.a.begin(t, s.request("list")).loadsRow(t, value("two"))
	s.b.begin(t, s.request("list")).ends(t, value("two"))
}

// A fill under a version that has moved is accepted. Whoever has been loading, or waiting,
// for longer than the class allows must not return it all the same.
func versionMovesWhileLoading(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	began := time.Now()
	first := s.a.begin(t, s.request("list")).loads(t)
	calls := s.lineB.count(s.scripts["read"])
	second := s.b.begin(t, s.request("list"))
	eventually(t, "the second reader waits", func() bool { return calls() >= 2 })
	s.write(t, s.id, "two")
	s.move(t)
	eventually(t, "the class's staleness is over", func() bool { return time.Since(began) > 1200*time.Millisecond })
	first.step(goRow)
	// Either may wait for what the other one is loading now.
	for left := 2; left > 0; {
		var got result
		select {
		case <-first.loading:
			first.step(goRow)
			continue
		case <-second.loading:
			second.step(goRow)
			continue
		case got = <-first.done:
		case got = <-second.done:
		case <-time.After(patience):
			t.Fatal("a read does not end")
		}
		if left--; got != value("two") {
			t.Errorf("a read ended with %q, more than 1s after that was replaced", got)
		}
	}
}

func dependents(t *testing.T, s *scene) {
	set, member := fmt.Sprintf("inv:dep:seller:%d", s.id), "item "+s.key("item")
	score := func() float64 { return s.rdb.ZScore(t.Context(), set, member).Val() }
	s.write(t, s.id, "one")
	r := s.request("item")
	r.DependsOn = [][]any{{"seller", s.id}}

	// The first load tells of the entity. What changes before it is registered is seen by
	// the second one.
	held := s.lineA.hold(t, s.scripts["register"])
	under := s.a.begin(t, r).loads(t)
	under.step(goRow)
	held.waitFor(t)
	s.write(t, s.id, "two") // of the entity: the daemon finds no dependents
	held.release()
	under.loads(t)
	first := score()
	if first == 0 {
		t.Fatal("it loads, and is not registered")
	}
	s.kind(t, s.key("item"), "L")
	under.step(goRow)
	under.ends(t, value("two"))
	s.kind(t, s.key("item"), "V")
	if left := s.rdb.PTTL(t.Context(), set).Val(); left < 10*time.Minute {
		t.Errorf("the set is gone in %v, before the entry may be", left)
	}

	// Registered again after the daemon's UNLINK: the daemon's removal finds another score.
	text := func() string { return fmt.Sprintf("%.0f", score()) }
	before := text()
	s.unlink(t, s.key("item"))
	again := s.b.begin(t, r).loads(t)
	again.step(goRow)
	select { // a reader that has not seen the key yet loads twice
	case <-again.loading:
		again.step(goRow)
		again.ends(t, value("two"))
	case got := <-again.done:
		if got != value("two") {
			t.Fatalf("%q", got)
		}
	case <-time.After(patience):
		t.Fatal("the read does not end")
	}
	if score() <= first {
		t.Errorf("the score was %.0f and is %.0f", first, score())
	}
	if n := s.run(t, "dependents", set, before, member); n != int64(0) || score() == 0 {
		t.Error("what was registered again is forgotten")
	}
	if n := s.run(t, "dependents", set, text(), member); n != int64(1) || score() != 0 {
		t.Error("what has been dealt with is not forgotten")
	}
}

func tokens(t *testing.T, s *scene) {
	s.seed(t, "item", "one")
	s.write(t, s.id, "two") // its invalidation is still to come
	r := s.request("item")
	r.AtLeast = s.a.token(t)
	s.b.begin(t, s.request("item")).ends(t, value("one"))
	s.b.begin(t, r).loadsRow(t, value("two"))
	s.a.begin(t, r).ends(t, value("two"))
}

func tokenWhileRefreshing(t *testing.T, s *scene) {
	first := s.refreshing(t, s.a) // its snapshot has "two"
	s.write(t, s.id, "three")
	r := s.request("page")
	r.AtLeast = s.b.token(t)
	second := s.b.begin(t, r)
	refreshed(t, first, "two")
	second.loads(t).step(goRow)
	second.ends(t, value("three"))
}

func doubt(t *testing.T, s *scene) {
	for _, d := range []struct {
		state  string
		behind time.Duration
	}{{"gap", 0}, {"paused", 0}, {"unheard of", 0}, {"ok", 2 * time.Minute}} {
		s.publish(t, "ok", 0)
		s.id++
		s.write(t, s.id, "one")
		s.readUntil(t, "is served", func(r *read) bool { return s.cached(t, r, "one") })
		s.write(t, s.id, "two")
		s.publish(t, d.state, d.behind)
		s.readUntil(t, "is not served in state "+d.state, func(r *read) bool { return !s.cached(t, r, "one") })
		if e := s.entry(t, s.key("item")); e.Payload != "one" {
			t.Errorf("in state %s a read past the cache has left %+v", d.state, e)
		}
	}
	s.publish(t, "ok", 0)
	s.readUntil(t, "is served again", func(r *read) bool { return s.cached(t, r, "one") })
	s.said.Store(nil)
	eventually(t, "the control hash is gone", func() bool { // the last heartbeat may be under way
		return s.rdb.Unlink(t.Context(), s.control).Val() == 0
	})
	s.readUntil(t, "is not served without a control hash", func(r *read) bool { return !s.cached(t, r, "one") })
}

// readUntil reads until a read is as it should be: readers may look at the control hash a
// few times a second only.
func (s *scene) readUntil(t *testing.T, what string, ok func(*read) bool) {
	t.Helper()
	for _, by := range []reader{s.a, s.b} {
		eventually(t, "what is cached "+what, func() bool { return ok(by.begin(t, s.request("item"))) })
	}
}

// cached says whether a read ends without a load, and lets it load else.
func (s *scene) cached(t *testing.T, r *read, want string) bool {
	t.Helper()
	select {
	case <-r.loading:
		r.step(goRow)
		r.result(t)
		return false
	case got := <-r.done:
		if got != value(want) {
			t.Errorf("served: %q, want %q", got, want)
		}
		return true
	case <-time.After(patience):
		t.Fatal("the read does not end")
		return false
	}
}

func doubtServed(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	s.readUntil(t, "is served", func(r *read) bool { return s.cached(t, r, "one") }) // the case before has left a doubt
	s.kind(t, s.key("item"), "V")
	s.seed(t, "loose", "one")
	s.publish(t, "gap", 0)
	s.readUntil(t, "is not served", func(r *read) bool { return !s.cached(t, r, "one") })
	s.a.begin(t, s.request("loose")).ends(t, value("one"))
	s.b.begin(t, s.request("loose")).ends(t, value("one"))
}

func tooOldToReturn(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	began := time.Now()
	r := s.a.begin(t, s.request("quick")).loads(t)
	s.write(t, s.id, "two")
	s.unlink(t, s.key("quick"))
	eventually(t, "the class's staleness is over", func() bool { return time.Since(began) > 1200*time.Millisecond })
	r.step(goRow)
	r.loadsRow(t, value("two"))
}

func redisDown(t *testing.T, s *scene) {
	s.seed(t, "item", "one")
	s.write(t, s.id, "two")
	s.lineA.cut(true)
	s.a.begin(t, s.request("item")).loadsRow(t, value("two"))
	s.lineA.cut(false)
	s.b.begin(t, s.request("item")).ends(t, value("one"))
	eventually(t, "Redis is used again", func() bool { return s.cached(t, s.a.begin(t, s.request("item")), "one") })
}
