package cache

import (
	"context"
	"fmt"
	"net"
	"sync"
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
	b.tell(tell{session: "bb", n: 6, fresh: fresh}) // another session, although the number goes on
	now("five")
	b.count("cache_l1_flushes_total", 2, flushGap)
	b.fromMemory(v, 1, "five")

	// The stream is lost, and begins anew below the place that is followed.
	b.write(1, "six")
	b.invalidate("item:1")
	if err := b.rdb.Del(t.Context(), testStreamKey).Err(); err != nil {
		t.Fatal(err)
	}
	if err := b.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: testStreamKey, ID: "1-1", Values: []any{"s", "bb", "n", "0000000000000007", "f", fmt.Sprintf("%016x", fresh.UnixMicro())}}).Err(); err != nil {
		t.Fatal(err)
	}
	now("six")
	b.fromMemory(v, 1, "six")

	// Memory that is not proved is not served.
	b.write(1, "seven")
	b.invalidate("item:1")
	b.tell(tell{session: "bb", n: 8, fresh: time.Now().Add(-2 * time.Minute)})
	now("seven")
	b.tell(tell{session: "bb", n: 9})
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
		l, err := newL1(4, &sourceClock{}, newL1Metrics())
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
						l.store(readers[i].m, readers[i].value, entryMeta{}, "", time.Hour)
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

// hole is a proxy in front of Redis that can stop to let anything through, without closing
// a connection.
type hole struct {
	listener net.Listener
	target   string

	mu      sync.Mutex
	open    chan struct{} // closed while it lets things through
	conns   []net.Conn
	running sync.WaitGroup
}

func newHole(t testing.TB, target string) *hole {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hole{listener: l, target: target, open: make(chan struct{})}
	close(h.open)
	h.running.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				_ = in.Close()
				continue
			}
			h.mu.Lock()
			h.conns = append(h.conns, in, out)
			h.mu.Unlock()
			h.running.Go(func() { h.copy(out, in) })
			h.running.Go(func() { h.copy(in, out) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		h.pass(true)
		h.cut()
		h.running.Wait()
	})
	return h
}

func (h *hole) copy(dst, src net.Conn) {
	defer dst.Close()
	buf := make([]byte, 4096)
	for {
		n, err := src.Read(buf)
		h.mu.Lock()
		open := h.open
		h.mu.Unlock()
		<-open
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (h *hole) pass(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.open:
		if !on {
			h.open = make(chan struct{})
		}
	default:
		if on {
			close(h.open)
		}
	}
}

func (h *hole) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		_ = c.Close()
	}
	h.conns = nil
}

// holed is a client that reaches Redis through a hole.
func (b *bench) holed(family string) (*hole, *View[string]) {
	b.Helper()
	o := *b.rdb.Options()
	h := newHole(b, o.Addr)
	o.Addr = h.listener.Addr().String()
	direct := b.rdb
	b.rdb = redis.NewClient(&o)
	through := b.rdb
	b.Cleanup(func() { _ = through.Close() })
	b.c, b.registry = b.open(WithL1(100), WithRedisTimeout(200*time.Millisecond))
	b.rdb = direct
	return h, view(b, family)
}

// beats tells heartbeats until the test ends, or stop is called.
func (b *bench) beats(session string, n int) (stop func() int) {
	done, ended, rdb := make(chan struct{}), make(chan struct{}), b.rdb
	go func() {
		defer close(ended)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case now := <-tick.C:
				n++
				_ = rdb.XAdd(context.Background(), &redis.XAddArgs{Stream: testStreamKey, Values: []any{"s", session,
					"n", fmt.Sprintf("%016x", n), "f", fmt.Sprintf("%016x", now.UnixMicro())}}).Err()
			}
		}
	}()
	once := sync.OnceValue(func() int { close(done); <-ended; return n })
	b.Cleanup(func() { once() })
	return once
}

// The connection to Redis hangs, and nobody says so. Memory stops to be proved by itself,
// and is proved again, without a flush, once the messages come through.
func TestL1InABlackHole(t *testing.T) {
	b := newBench(t)
	stop := b.beats("aa", 0)
	h, v := b.holed("quick") // 400 ms
	b.fromMemory(v, 1, "one")
	flushes := counted(t, b.registry, "cache_l1_flushes_total")
	h.pass(false)
	b.write(1, "two")
	written := time.Now()
	for {
		got, err := v.Get(t.Context(), Vars{"id": 1}, item(1))
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(written); got == "one" && took > time.Second { // and what the source takes
			t.Fatalf("the old value is served %v after it was replaced", took)
		}
		if got == "two" {
			break
		}
	}
	b.invalidate("quick:1")
	n := stop()
	b.tell(tell{session: "aa", n: n + 1, fresh: time.Now(), keys: "quick:1"})
	h.pass(true)
	b.beats("aa", n+1)
	b.fromMemory(v, 1, "two")
	if got := counted(t, b.registry, "cache_l1_flushes_total"); got != flushes {
		t.Errorf("%v flushes although no message was missed", got-flushes)
	}
}

// Whoever closes a client can open another one with the same registry.
func TestL1UnregistersItsMetrics(t *testing.T) {
	b := newBench(t, WithL1(100))
	if err := b.c.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), b.rdb, b.pool, WithMappings(b.mappings), WithRegisterer(b.registry), WithL1(100))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// A client can be closed while its connections hang.
func TestL1ClosesInABlackHole(t *testing.T) {
	b := newBench(t)
	b.beats("aa", 0)
	h, v := b.holed("quick")
	b.fromMemory(v, 1, "one")
	h.pass(false)
	began := time.Now()
	if err := b.c.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// The control hash says that something is wrong before the stream does.
func TestL1ObeysTheControlHash(t *testing.T) {
	b, v := l1Bench(t)
	b.fromMemory(v, 1, "one")
	b.daemon.set("gap", 0)
	b.seen()
	before := counted(t, b.registry, "cache_reads_total", "l1")
	b.get(v, 1, "one")
	if counted(t, b.registry, "cache_reads_total", "l1") != before {
		t.Error("served from memory in a gap")
	}
	b.daemon.set("ok", 0)
	b.seen()
	b.fromMemory(v, 1, "one")
}

// A version from memory is no younger than memory, also when the value under it comes from
// Redis.
func TestL1VersionUnderARead(t *testing.T) {
	b := newBench(t)
	stop := b.beats("aa", 0)
	c, h := b.tapped(WithL1(100))
	v := viewOf(b, c, "fast") // 400 ms
	vars := Vars{"shop": 1, "q": "x"}
	get := func() string {
		t.Helper()
		got, err := v.Get(t.Context(), vars, item(1))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	eventually(t, "a hit in memory", func() bool {
		before := counted(t, b.registry, "cache_reads_total", "l1")
		get()
		return counted(t, b.registry, "cache_reads_total", "l1") > before
	})
	version := b.rdb.Get(t.Context(), "fast:1").Val()
	key := "fast:1:" + version + ":x"
	// The last message says how fresh all is; right after it the row changes, and of that no
	// message comes.
	n := stop()
	fresh := time.Now()
	b.tell(tell{session: "aa", n: n + 1, fresh: fresh})
	b.write(1, "two")
	if err := b.rdb.Set(t.Context(), "fast:1", "1111111111111111111111111111111111111111", 0).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the message is handled", func() bool { return c.l1.look() == fresh.UnixMicro() })
	c.l1.drop(key) // the value, not the version
	// The version is within the budget when it is looked up, and is not any more once the
	// value has come. The control hash is within it all the time.
	eventually(t, "half of the budget is used up", func() bool { return time.Since(fresh) > 250*time.Millisecond })
	asked := false
	h.once("get", key, func() {
		asked = true
		eventually(t, "the budget is used up", func() bool { return time.Since(fresh) > 450*time.Millisecond })
	})
	if got := get(); got != "two" {
		t.Errorf("%q, which was replaced %v ago", got, time.Since(fresh))
	}
	if !asked {
		t.Error("the value was not read from Redis under the version from memory")
	}
}

// A connection that breaks is noticed at once: the next one may lead to another Redis.
func TestL1NoticesABrokenConnection(t *testing.T) {
	b := newBench(t)
	h, v := b.holed("item")
	b.tell(tell{session: "aa", n: 1, fresh: time.Now()})
	b.fromMemory(v, 1, "one")
	h.cut()
	eventually(t, "nothing is proved", func() bool { return b.c.l1.look() == 0 })
	b.tell(tell{session: "aa", n: 2, fresh: time.Now()})
	eventually(t, "memory is proved again", func() bool { return b.c.l1.look() != 0 })
}

// A place that is behind the newest message is no lost one.
func TestL1KeepsItsPlace(t *testing.T) {
	b := newBench(t)
	b.tell(tell{session: "aa", n: 1, fresh: time.Now()})
	l, s := bareL1(t, 4, time.Now())
	s.rdb, s.key = b.rdb, testStreamKey
	if moved, err := s.place(t.Context(), true); err != nil || !moved || l.look() == 0 {
		t.Fatalf("moved %v, %v, fresh %d", moved, err, l.look())
	}
	l.store(l.mark("a"), "a", entryMeta{}, "", time.Hour)
	b.tell(tell{session: "aa", n: 2, fresh: time.Now()})
	if moved, err := s.place(t.Context(), false); err != nil || moved || l.entries.Len() != 1 {
		t.Errorf("moved %v, %v, %d entries", moved, err, l.entries.Len())
	}
	if err := b.rdb.Del(t.Context(), testStreamKey).Err(); err != nil {
		t.Fatal(err)
	}
	if moved, err := s.place(t.Context(), false); err != nil || !moved || l.entries.Len() != 0 || l.look() != 0 {
		t.Errorf("a stream that is gone: moved %v, %v, %d entries", moved, err, l.entries.Len())
	}
	// What was told and lost before the first message that is seen is not known.
	l.store(l.mark("a"), "a", entryMeta{}, "", time.Hour)
	if err := s.handle(redis.XMessage{ID: "9-9", Values: map[string]any{"s": "aa", "n": "4", "f": "1"}}); err != nil || l.entries.Len() != 0 {
		t.Errorf("%v, %d entries", err, l.entries.Len())
	}
}
