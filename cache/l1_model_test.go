package cache

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

func bareL1(t interface{ Fatal(...any) }, entries int, base time.Time) (*l1, *l1Stream) {
	clock := &sourceClock{}
	clock.observe(&clockReading{asked: base, theirs: base.UnixMicro()}, base)
	l, err := newL1(entries, clock, newL1Metrics())
	if err != nil {
		t.Fatal(err)
	}
	return l, &l1Stream{l1: l}
}

// l1Model is everything from the source's rows to one process's memory. A value is the
// number of times that its row has changed.
type l1Model struct {
	rt  *rapid.T
	l   *l1
	s   *l1Stream
	now time.Time

	rows     map[string][]time.Time // when each value was replaced, by value
	redis    map[string]int         // cached
	changed  []string               // committed, not applied
	removed  []string               // applied, not told
	fresh    time.Time              // of what is applied; zero: not known
	session  int
	n        int
	messages []redis.XMessage // told, not handled

	readers []l1Reader
}

type l1Reader struct {
	mark  l1Mark
	value int
	read  bool
}

func (m *l1Model) tell(all bool) {
	m.n++
	values := map[string]any{"s": fmt.Sprintf("%016x", m.session), "n": fmt.Sprintf("%016x", m.n), "f": "0000000000000000"}
	if !m.fresh.IsZero() {
		values["f"] = fmt.Sprintf("%016x", m.fresh.UnixMicro())
	}
	keys := ""
	for i, k := range m.removed {
		if i > 0 {
			keys += "\n"
		}
		keys += k
	}
	switch {
	case all:
		values["p"] = "1"
	case keys != "":
		values["k"] = keys
	}
	m.messages = append(m.messages, redis.XMessage{ID: "1-1", Values: values})
	m.removed = nil
}

func (m *l1Model) step(key string) {
	d := func(n int, label string) int { return rapid.IntRange(0, n-1).Draw(m.rt, label) }
	switch step := rapid.SampledFrom([]string{"wait", "change", "apply", "tell", "tell", "crash", "handle", "handle", "handle", "lose", "doubt", "mark", "mark", "read", "read", "store", "store"}).Draw(m.rt, "step"); step {
	case "wait":
		m.now = m.now.Add(time.Duration(1+d(40, "seconds")) * time.Second)
	case "change":
		m.rows[key] = append(m.rows[key], m.now)
		m.changed = append(m.changed, key)
	case "apply":
		for _, k := range m.changed {
			delete(m.redis, k)
		}
		m.removed = append(m.removed, m.changed...)
		m.changed, m.fresh = nil, m.now
	case "tell":
		m.tell(d(8, "purge") == 0)
	case "crash": // and what was removed is never told
		m.session++
		m.n, m.removed, m.fresh = 0, nil, time.Time{}
	case "handle":
		if len(m.messages) > 0 {
			if err := m.s.handle(m.messages[0]); err != nil {
				m.rt.Fatal(err)
			}
			m.messages = m.messages[1:]
		}
	case "lose": // trimmed before it was read
		if len(m.messages) > 0 {
			m.messages = m.messages[1:]
		}
	case "doubt":
		m.l.doubt()
	case "mark":
		m.readers = append(m.readers, l1Reader{mark: m.l.mark(key)})
	case "read", "store":
		if len(m.readers) == 0 {
			return
		}
		i := d(len(m.readers), "reader")
		r := &m.readers[i]
		if step == "read" && !r.read {
			if _, ok := m.redis[r.mark.key]; !ok {
				m.redis[r.mark.key] = len(m.rows[r.mark.key])
			}
			r.value, r.read = m.redis[r.mark.key], true
		}
		if step == "store" && r.read {
			m.l.store(r.mark, r.value, entryMeta{}, "", 1e6*time.Hour)
			m.readers = append(m.readers[:i], m.readers[i+1:]...)
		}
	}
}

// Whatever comes in whatever order, and whatever is lost: no value is served from memory
// that was replaced longer ago than its class allows.
func TestL1NeverServesBeyondTheBudget(t *testing.T) {
	f := &family{Family: &mapping.Family{Name: "item", Class: &mapping.Class{Name: "critical", Staleness: time.Minute}}}
	keys := []string{"a", "b", "c"}
	hits := 0
	check := func() {
		rapid.Check(t, func(rt *rapid.T) {
			base := time.Now()
			m := &l1Model{rt: rt, now: base, rows: map[string][]time.Time{}, redis: map[string]int{}}
			m.l, m.s = bareL1(rt, 4, base)
			m.l.order = make([]string, 2) // forgets soon
			for range rapid.IntRange(1, 150).Draw(rt, "steps") {
				m.step(rapid.SampledFrom(keys).Draw(rt, "key"))
				for _, key := range keys {
					e, ok := m.l.get(f, key, m.l.look(), m.now)
					if !ok {
						continue
					}
					hits++
					if v := e.value.(int); v < len(m.rows[key]) && m.now.Sub(m.rows[key][v]) > f.Class.Staleness {
						rt.Fatalf("%s is %d, which was replaced %v ago", key, v, m.now.Sub(m.rows[key][v]))
					}
				}
			}
		})
	}
	for range 20 { // chance may have it that nothing is kept in a hundred histories
		if check(); hits > 0 || t.Failed() {
			return
		}
	}
	t.Error("nothing was ever served")
}

// What is found in memory is proved by what was known before it was looked for: the message
// that brings a better proof may have dropped it since.
func TestL1ProofComesFirst(t *testing.T) {
	base := time.Now()
	l, s := bareL1(t, 4, base)
	f := &family{Family: &mapping.Family{Class: &mapping.Class{Staleness: time.Minute}}}
	tell := func(n int, fresh time.Time, keys string) {
		t.Helper()
		err := s.handle(redis.XMessage{ID: "1-1", Values: map[string]any{"s": "aa", "n": fmt.Sprintf("%016x", n), "f": fmt.Sprintf("%016x", fresh.UnixMicro()), "k": keys}})
		if err != nil {
			t.Fatal(err)
		}
	}
	tell(1, base, "")
	l.store(l.mark("a"), "old", entryMeta{}, "", time.Hour)
	late := base.Add(2 * time.Minute)
	told := l.look()
	if _, ok := l.get(f, "a", told, late); ok {
		t.Error("served without a proof")
	}
	tell(2, late, "")
	if _, ok := l.get(f, "a", told, late); ok {
		t.Error("proved by what came after the look")
	}
	if _, ok := l.get(f, "a", l.look(), late); !ok {
		t.Error("not served although it is proved")
	}
	// What is held back on purpose counts, and a clock that was set proves nothing.
	held := &family{Family: &mapping.Family{Class: &mapping.Class{Staleness: time.Minute, Linger: 59 * time.Second}}}
	if _, ok := l.get(held, "a", l.look(), late.Add(2*time.Second)); ok {
		t.Error("served beyond the budget of a class that waits")
	}
	if _, ok := l.get(f, "a", l.look(), late.Add(-time.Minute)); ok {
		t.Error("proved by a time that has not come")
	}
}

// While it is not known which Redis is followed nothing is served, and nothing kept that was
// read. What was there before stays, if no message was missed.
func TestL1InDoubt(t *testing.T) {
	base := time.Now()
	l, s := bareL1(t, 4, base)
	f := &family{Family: &mapping.Family{Class: &mapping.Class{Staleness: time.Minute}}}
	message := redis.XMessage{ID: "1-1", Values: map[string]any{"s": "aa", "n": "1", "f": fmt.Sprintf("%x", base.UnixMicro())}}
	if err := s.handle(message); err != nil {
		t.Fatal(err)
	}
	l.store(l.mark("a"), "a", entryMeta{}, "", time.Hour)
	mark := l.mark("b")
	l.doubt()
	if _, ok := l.get(f, "a", l.look(), base); ok {
		t.Error("served in doubt")
	}
	l.store(mark, "b", entryMeta{}, "", time.Hour)
	message.Values["n"] = "2"
	if err := s.handle(message); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.get(f, "a", l.look(), base); !ok {
		t.Error("lost although no message was missed")
	}
	if _, ok := l.get(f, "b", l.look(), base); ok {
		t.Error("kept although it was read in doubt")
	}
}

// What was dropped longer ago than is remembered counts as dropped for every mark from
// before.
func TestL1ForgetsNoDrop(t *testing.T) {
	l, _ := bareL1(t, 4, time.Now())
	l.order = make([]string, 2)
	old := l.mark("a")
	l.drop("a")
	l.drop("b")
	l.drop("c") // "a" is forgotten
	l.store(old, "old", entryMeta{}, "", time.Hour)
	if l.entries.Contains("a") {
		t.Error("kept although it was dropped since")
	}
	if l.store(l.mark("a"), "new", entryMeta{}, "", time.Hour); !l.entries.Contains("a") {
		t.Error("not kept although nothing was dropped since")
	}
	if n := len(l.recent); n > len(l.order) {
		t.Errorf("%d dropped keys are remembered, want %d at most", n, len(l.order))
	}
}

// Whatever is proved: no value stays for longer than it was to be kept.
func TestL1KeepsForATime(t *testing.T) {
	base := time.Now()
	l, _ := bareL1(t, 4, base)
	f := &family{Family: &mapping.Family{Class: &mapping.Class{Staleness: time.Hour}}}
	told := base.Add(time.Minute).UnixMicro()
	l.store(l.mark("a"), "a", entryMeta{}, "", time.Minute)
	if _, ok := l.get(f, "a", told, base.Add(61*time.Second)); ok {
		t.Error("served after its time")
	}
}

func TestStreamIDsAreNumbers(t *testing.T) {
	for _, ids := range [][2]string{{"0-0", "1-0"}, {"9-0", "10-0"}, {"5-9", "5-10"}, {"1-18446744073709551614", "1-18446744073709551615"}} {
		if !before(ids[0], ids[1]) || before(ids[1], ids[0]) || before(ids[0], ids[0]) {
			t.Errorf("%s is not before %s, or the other way round", ids[0], ids[1])
		}
	}
}

func TestL1GetDoesNotAllocate(t *testing.T) {
	l, f, now := benchL1(t)
	if n := testing.AllocsPerRun(1000, func() {
		if _, ok := l.get(f, "item:1", l.look(), now); !ok {
			t.Fatal("no hit")
		}
	}); n != 0 {
		t.Errorf("%v allocations a hit", n)
	}
}

func benchL1(t testing.TB) (*l1, *family, time.Time) {
	base := time.Now()
	l, _ := bareL1(t, 1000, base)
	l.fresh.Store(base.UnixMicro())
	for i := range 1000 {
		l.store(l.mark(fmt.Sprintf("item:%d", i)), "value", entryMeta{}, "", time.Hour)
	}
	return l, &family{Family: &mapping.Family{Class: &mapping.Class{Staleness: time.Hour}}}, base
}

func BenchmarkL1Get(b *testing.B) {
	l, f, _ := benchL1(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := l.get(f, "item:1", l.look(), time.Now()); !ok {
			b.Fatal("no hit")
		}
	}
}

func BenchmarkL1GetParallel(b *testing.B) {
	l, f, _ := benchL1(b)
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, ok := l.get(f, "item:1", l.look(), time.Now()); !ok {
				b.Error("no hit")
			}
		}
	})
}
