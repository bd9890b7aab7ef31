package protocol

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// restamp publishes other stamps: change is made to a copy of those of now.
func (s *scene) restamp(t *testing.T, change func(*mapping.Stamps)) {
	t.Helper()
	before := s.stamps.Load()
	next, err := mapping.ParseStamps(func() string { text, _ := before.Encode(); return text }())
	if err != nil {
		t.Fatal(err)
	}
	next.Revision = mapping.NewStamp()
	change(next)
	s.stamps.Store(next)
	t.Cleanup(func() {
		s.stamps.Store(before)
		s.publish(t, "ok", 0)
	})
	s.publish(t, "ok", 0)
}

// anew begins to follow a family again.
func (s *scene) anew(t *testing.T, name string) {
	t.Helper()
	s.restamp(t, func(next *mapping.Stamps) {
		f := next.Families[name]
		f.Stamp = mapping.NewStamp()
		next.Families[name] = f
	})
}

// What changed while a family was not followed is in no invalidation: the entry stays.
func stampMoved(t *testing.T, s *scene) {
	s.seed(t, "item", "one")
	s.b.begin(t, s.request("item")).ends(t, value("one"))
	old := s.entry(t, s.key("item")).Stamp
	if old != s.stamps.Load().Families["item"].Stamp {
		t.Errorf("the entry has the stamp %q", old)
	}
	s.write(t, s.id, "two")
	s.anew(t, "item")
	for _, by := range []reader{s.a, s.b} {
		eventually(t, "the change is seen", func() bool { return s.comesTo(t, by.begin(t, s.request("item"))) == value("two") })
		// One that does not know of the new stamp yet may have stored it under the one of before.
		eventually(t, "it is stored under the new stamp", func() bool {
			if got := s.comesTo(t, by.begin(t, s.request("item"))); got != value("two") {
				t.Fatalf("after the change it is %q", got)
			}
			now := s.entry(t, s.key("item"))
			return now.Stamp == s.stamps.Load().Families["item"].Stamp && now.Payload == "two"
		})
	}
}

// A load that began before does not have what changed meanwhile, and nobody takes its lease away.
func leaseOfBefore(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	under := s.a.begin(t, s.request("item")).loads(t)
	s.write(t, s.id, "two")
	s.anew(t, "item")
	s.readUntilBy(t, s.b, "is loaded by the other one", func(r *read) bool { s.cached(t, r, "two"); return s.entry(t, s.key("item")).Payload == "two" })
	under.step(goRow)
	under.ends(t, value("one")) // as old as it may be
	if e := s.entry(t, s.key("item")); e.Payload != "two" {
		t.Errorf("the late load has left %+v", e)
	}
}

// readUntilBy is readUntil of one reader.
func (s *scene) readUntilBy(t *testing.T, by reader, what string, ok func(*read) bool) {
	t.Helper()
	eventually(t, what, func() bool { return ok(by.begin(t, s.request("item"))) })
}

func notFollowed(t *testing.T, s *scene) {
	s.seed(t, "item", "one")
	s.restamp(t, func(next *mapping.Stamps) { delete(next.Families, "item") })
	s.write(t, s.id, "two")
	s.readUntil(t, "is not served", func(r *read) bool { return !s.cached(t, r, "one") })
	if e := s.entry(t, s.key("item")); e.Payload != "one" {
		t.Errorf("a read past the cache has left %+v", e)
	}
}

func otherTerms(t *testing.T, s *scene) {
	for name, change := range map[string]func(*mapping.Stamp){
		"key":   func(f *mapping.Stamp) { f.Key = "item:{id|lower}" },
		"hold":  func(f *mapping.Stamp) { f.Hold = 5_000_000 },
		"types": func(f *mapping.Stamp) { f.Types = "id: pg_catalog.text" },
	} {
		t.Run(name, func(t *testing.T) {
			s.id++
			s.ready(t)
			s.seed(t, "item", "one")
			s.restamp(t, func(next *mapping.Stamps) {
				f := next.Families["item"]
				change(&f)
				next.Families["item"] = f
			})
			s.write(t, s.id, "two")
			s.readUntil(t, "is not served", func(r *read) bool { return !s.cached(t, r, "one") })
		})
	}
}

// The readers know the types of before. What they make keys of has to be what the daemon does, from the moment on at which the
// stamps say so.
func typesMove(t *testing.T, s *scene) {
	i := slices.IndexFunc(typedCases, func(c typedCase) bool { return c.column == "numeric(10,2)" && c.encoded == "2.50" })
	r := request{Family: fmt.Sprintf("typed%d", i), Vars: map[string]any{"v": typedCases[i].value}, Row: s.id}
	before, after := fmt.Sprintf("typed%d:2.50", i), fmt.Sprintf("typed%d:2.500", i)
	become := func(scale int) {
		s.db.Exec(t, fmt.Sprintf(`ALTER TABLE typed ALTER c%d TYPE numeric(10,%d)`, i, scale))
		s.follow(t, s.plan)
	}
	defer func() { become(2); s.unlink(t, before); s.unlink(t, after) }()
	s.unlink(t, before) // of other cases
	s.write(t, s.id, "one")
	s.a.begin(t, r).loadsRow(t, value("one"))
	s.kind(t, before, "V")
	become(3)
	s.write(t, s.id, "two") // the daemon would remove typed:2.500
	for _, by := range []reader{s.a, s.b} {
		eventually(t, "it is stored under the key of now", func() bool {
			return s.comesTo(t, by.begin(t, r)) == value("two") && s.entry(t, after).Stamp == s.stamps.Load().Families[r.Family].Stamp
		})
	}
	s.unlink(t, after)
	s.write(t, s.id, "three")
	for _, by := range []reader{s.b, s.a} {
		if got := s.comesTo(t, by.begin(t, r)); got != value("three") {
			t.Errorf("what the daemon has removed is read as %q", got)
		}
	}
}

func entityNotFollowed(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	s.restamp(t, func(next *mapping.Stamps) { next.Entities = map[string]mapping.EntityTerms{} })
	set := fmt.Sprintf("inv:dep:seller:%d", s.id)
	for _, by := range []reader{s.a, s.b} {
		r := s.request("item")
		r.DependsOn = [][]any{{"seller", s.id}}
		eventually(t, "what is loaded is not stored", func() bool {
			s.unlink(t, s.key("item"))
			under := by.begin(t, r).loads(t)
			under.step(goRow)
			if got := s.comesTo(t, under); got != value("one") {
				t.Fatalf("the read ended with %q", got)
			}
			return s.kindAt(t, s.key("item")) == ""
		})
		s.unlink(t, set)
	}
}

// comesTo is the end of a read that loads, as often as it has to, or does not.
func (s *scene) comesTo(t *testing.T, r *read) result {
	t.Helper()
	for {
		select {
		case <-r.loading:
			r.step(goRow)
		case got := <-r.done:
			return got
		case <-time.After(patience):
			t.Fatal("the read does not end")
		}
	}
}

func (s *scene) kindAt(t *testing.T, key string) string { return s.entry(t, key).Kind }
