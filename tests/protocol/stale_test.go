package protocol

import (
	"strings"
	"testing"
	"time"
)

// Cases of values that are marked stale. A reader that gets the refresh may serve the old
// value while it loads, or load first: a case accepts both of it, and of nobody else.

// refreshing has a refresh under way, of the value "one".
func (s *scene) refreshing(t *testing.T, by reader) *read {
	t.Helper()
	s.seed(t, "page", "one")
	s.write(t, s.id, "two")
	s.soften(t, s.key("page"), time.Minute)
	if e := s.entry(t, s.key("page")); e.Fresh != strings.Repeat("0", 12) || e.Holder != nobody {
		t.Fatalf("a soft mark has left %+v", e)
	}
	r := by.begin(t, s.request("page")).loads(t)
	if e := s.entry(t, s.key("page")); e.Kind != "V" || e.Holder == nobody {
		t.Fatalf("a refresh is under way, and at the key lies %+v", e)
	}
	return r
}

// refreshed lets a refresh go on, of a value that was "one".
func refreshed(t *testing.T, r *read, want string) {
	t.Helper()
	r.step(goRow)
	if got := r.result(t); got != value("one") && got != value(want) {
		t.Errorf("who refreshes got %q, want the old value or %q", got, want)
	}
}

func softWhileLoading(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	r := s.a.begin(t, s.request("page")).loads(t)
	s.write(t, s.id, "two")
	s.soften(t, s.key("page"), time.Minute)
	r.step(goRow)
	r.ends(t, value("one"))
	s.kind(t, s.key("page"), "")
	s.b.begin(t, s.request("page")).loadsRow(t, value("two"))
}

func staleIsServed(t *testing.T, s *scene) {
	r := s.refreshing(t, s.a)
	s.b.begin(t, s.request("page")).ends(t, value("one"))
	refreshed(t, r, "two")
	eventually(t, "the refreshed value", func() bool { return s.entry(t, s.key("page")).Payload == "two" })
	s.b.begin(t, s.request("page")).ends(t, value("two"))
}

func softWhileRefreshing(t *testing.T, s *scene) {
	r := s.refreshing(t, s.a)
	s.write(t, s.id, "three")
	s.soften(t, s.key("page"), time.Minute)
	calls := s.lineA.count(s.scripts["fill"])
	refreshed(t, r, "two")
	eventually(t, "the fill", func() bool { return calls() > 0 })
	other := s.b.begin(t, s.request("page")).loads(t) // the refresh is to be had again
	if e := s.entry(t, s.key("page")); e.Payload != "one" || e.Fresh != strings.Repeat("0", 12) {
		t.Fatalf("the fill has left %+v", e)
	}
	refreshed(t, other, "three")
	eventually(t, "the refreshed value", func() bool { return s.entry(t, s.key("page")).Payload == "three" })
}

func refreshRunsOut(t *testing.T, s *scene) {
	first := s.refreshing(t, s.a)
	if err := s.rdb.SetRange(t.Context(), s.key("page"), 21, "000000000001").Err(); err != nil {
		t.Fatal(err)
	}
	second := s.b.begin(t, s.request("page")).loads(t)
	holder := s.entry(t, s.key("page")).Holder
	calls := s.lineA.count(s.scripts["fill"])
	refreshed(t, first, "two")
	eventually(t, "the fill", func() bool { return calls() > 0 })
	if e := s.entry(t, s.key("page")); e.Payload != "one" || e.Holder != holder {
		t.Fatalf("the first reader's fill has left %+v", e)
	}
	refreshed(t, second, "two")
	eventually(t, "the refreshed value", func() bool { return s.entry(t, s.key("page")).Payload == "two" })
}

// expire puts a value past its staleness.
func (s *scene) expire(t *testing.T, family string) {
	t.Helper()
	s.seed(t, family, "one")
	s.write(t, s.id, "two")
	if err := s.rdb.SetRange(t.Context(), s.key(family), 33, strings.Repeat("0", 24)).Err(); err != nil {
		t.Fatal(err)
	}
}

func expiredIsNotServed(t *testing.T, s *scene) {
	s.expire(t, "item")
	first := s.a.begin(t, s.request("item")).loads(t)
	calls := s.lineB.count(s.scripts["read"])
	second := s.b.begin(t, s.request("item"))
	eventually(t, "the second reader asks again", func() bool { return calls() >= 3 })
	first.step(goRow)
	first.ends(t, value("two"))
	second.ends(t, value("two"))
}

func failSafe(t *testing.T, s *scene) {
	s.expire(t, "kept")
	r := s.a.begin(t, s.request("kept")).loads(t)
	r.step(goDown)
	r.ends(t, value("one"))
	if e := s.entry(t, s.key("kept")); e.Holder != nobody || e.Payload != "one" {
		t.Errorf("the load that failed has left %+v", e)
	}
	// For the source only: a loader that fails by itself has a fault.
	r = s.a.begin(t, s.request("kept")).loads(t)
	r.step(goFail)
	r.ends(t, failed)
	s.b.begin(t, s.request("kept")).loadsRow(t, value("two"))
}

func noFailSafe(t *testing.T, s *scene) {
	s.expire(t, "item")
	r := s.a.begin(t, s.request("item")).loads(t)
	r.step(goDown)
	r.ends(t, failed)
	s.b.begin(t, s.request("item")).loadsRow(t, value("two"))
}
