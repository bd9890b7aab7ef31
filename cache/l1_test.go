package cache

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"
)

const testStreamKey = "inv:stream:{shop}"

// tell is a message of the daemon's.
type tell struct {
	session string
	n       int
	fresh   time.Time
	all     bool
	keys    string
}

func (b *bench) tell(m tell) {
	b.Helper()
	values := []any{"s", m.session, "n", fmt.Sprintf("%016x", m.n), "f", fmt.Sprintf("%016x", max(0, m.fresh.UnixMicro()))}
	if m.all {
		values = append(values, "p", "1")
	}
	if m.keys != "" {
		values = append(values, "k", m.keys)
	}
	if err := b.rdb.XAdd(b.Context(), &redis.XAddArgs{Stream: testStreamKey, Values: values}).Err(); err != nil {
		b.Fatal(err)
	}
}

func l1Bench(t *testing.T) (*bench, *View[string]) {
	b := newBench(t, WithL1(100))
	b.tell(tell{session: "aa", n: 1, fresh: time.Now()})
	v := view(b, "item")
	eventually(t, "the stream is followed", func() bool { return b.c.l1.fresh.Load() > 0 })
	return b, v
}

// fromMemory has the value in memory and sees it served from there.
func (b *bench) fromMemory(v *View[string], id int, want string) {
	b.Helper()
	eventually(b.TB, "a hit in memory", func() bool {
		before := counted(b, b.registry, "cache_reads_total", "l1")
		b.get(v, id, want)
		return counted(b, b.registry, "cache_reads_total", "l1") > before
	})
}

func TestL1FollowsTheStream(t *testing.T) {
	b, v := l1Bench(t)
	fresh := time.Now()
	now := func(want string) { // what the next read gets once messages are handled
		t.Helper()
		eventually(t, "a read gets "+want, func() bool {
			s, err := v.Get(t.Context(), Vars{"id": 1}, item(1))
			return err == nil && s == want
		})
	}
	b.fromMemory(v, 1, "one")
	b.write(1, "two")
	b.invalidate("item:1")
	b.get(v, 1, "one") // until the message is there
	b.tell(tell{session: "aa", n: 2, fresh: fresh, keys: "x\nitem:1"})
	now("two")
	b.fromMemory(v, 1, "two")

	b.write(1, "three")
	b.invalidate("item:1")
	b.tell(tell{session: "aa", n: 3, fresh: fresh, all: true})
	now("three")
	b.count("cache_l1_flushes_total", 1, flushPurge)
	b.fromMemory(v, 1, "three")

	b.write(1, "four") // a message is missing: 4
	b.invalidate("item:1")
	b.tell(tell{session: "aa", n: 5, fresh: fresh})
	now("four")
	b.count("cache_l1_flushes_total", 1, flushGap)
	b.fromMemory(v, 1, "four")

	b.write(1, "five")
	b.invalidate("item:1")
	b.tell(tell{session: "bb", n: 1, fresh: fresh})
	now("five")
	b.count("cache_l1_flushes_total", 2, flushGap)
	b.fromMemory(v, 1, "five")

	// The stream is lost, and begins anew below the place that is followed.
	b.write(1, "six")
	b.invalidate("item:1")
	if err := b.rdb.Del(t.Context(), testStreamKey).Err(); err != nil {
		t.Fatal(err)
	}
	if err := b.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: testStreamKey, ID: "1-1", Values: []any{"s", "bb", "n", "0000000000000002", "f", fmt.Sprintf("%016x", fresh.UnixMicro())}}).Err(); err != nil {
		t.Fatal(err)
	}
	now("six")
	b.fromMemory(v, 1, "six")

	// Memory that is not proved is not served.
	b.write(1, "seven")
	b.invalidate("item:1")
	b.tell(tell{session: "bb", n: 3, fresh: time.Now().Add(-2 * time.Minute)})
	now("seven")
	b.tell(tell{session: "bb", n: 4})
	eventually(t, "nothing is known", func() bool { return b.c.l1.fresh.Load() <= 0 })
	before := counted(t, b.registry, "cache_reads_total", "l1")
	b.get(v, 1, "seven")
	if counted(t, b.registry, "cache_reads_total", "l1") != before {
		t.Error("served from memory without a proof")
	}
}

func TestL1KeepsVersionsAndNegativeAnswers(t *testing.T) {
	b, v := l1Bench(t)
	list := view(b, "list")
	fresh := time.Now()
	for range 2 {
		if s, err := list.Get(t.Context(), Vars{"shop": 1, "q": "x"}, item(1)); err != nil || s != "one" {
			t.Fatalf("%q, %v", s, err)
		}
		if _, err := v.Get(t.Context(), Vars{"id": 99}, item(99)); err == nil {
			t.Fatal("found")
		}
	}
	if counted(t, b.registry, "cache_reads_total", "l1") == 0 {
		t.Error("nothing was served from memory")
	}
	b.write(1, "two")
	b.write(99, "there")
	if err := b.rdb.Set(t.Context(), "list:1", "1111111111111111111111111111111111111111", 0).Err(); err != nil {
		t.Fatal(err)
	}
	b.invalidate("item:99")
	b.tell(tell{session: "aa", n: 2, fresh: fresh, keys: "list:1\nitem:99"})
	eventually(t, "the version has moved", func() bool {
		s, err := list.Get(t.Context(), Vars{"shop": 1, "q": "x"}, item(1))
		return err == nil && s == "two"
	})
	b.get(v, 99, "there")
}

func TestL1NeedsTheStream(t *testing.T) {
	b := newBench(t)
	file := *b.c.o.file
	file.Redis.StreamMaxLength = 0
	if _, err := Open(t.Context(), b.rdb, b.pool, WithMappingFile(&file), WithL1(10)); err == nil {
		t.Error("opened")
	}
}

// The model: a key in Redis has a version; a reader takes a mark, reads, and stores; the
// daemon removes in Redis first, then its message is handled. Whatever the order, and
// however little is remembered: once the message of a change was handled, nothing older
// is in memory.
func TestL1MarksProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m, err := newL1Metrics(nil)
		if err != nil {
			rt.Fatal(err)
		}
		l, err := newL1(4, &sourceClock{}, m)
		if err != nil {
			rt.Fatal(err)
		}
		l.order = make([]string, 2) // forgets soon
		keys := []string{"a", "b", "c", "d"}
		inRedis, told := map[string]int{}, map[string]int{}
		type reading struct {
			m     l1Mark
			value int
			read  bool
		}
		var readers []reading
		var messages []string // removed in Redis, not handled
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			key := rapid.SampledFrom(keys).Draw(rt, "key")
			switch rapid.SampledFrom([]string{"mark", "read", "store", "change", "handle", "flush"}).Draw(rt, "step") {
			case "mark":
				readers = append(readers, reading{m: l.mark(key)})
			case "read":
				for i := range readers {
					if !readers[i].read {
						readers[i].value, readers[i].read = inRedis[readers[i].m.key], true
						break
					}
				}
			case "store":
				for i := range readers {
					if readers[i].read {
						l.store(readers[i].m, readers[i].value, entryMeta{}, time.Hour)
						readers = append(readers[:i], readers[i+1:]...)
						break
					}
				}
			case "change":
				inRedis[key]++
				messages = append(messages, key)
			case "handle":
				if len(messages) > 0 {
					l.drop(messages[0])
					told[messages[0]]++
					messages = messages[1:]
				}
			case "flush":
				l.flush(flushGap)
			}
			for _, key := range keys {
				if e, ok := l.entries.Peek(key); ok && e.value.(int) < told[key] {
					rt.Fatalf("%s has version %v, and the message of %d was handled", key, e.value, told[key])
				}
			}
		}
	})
}
