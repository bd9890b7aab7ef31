package cache

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// l1 keeps values in this process's memory. The daemon's invalidation stream tells which
// keys to drop (stream.go), and how fresh what is left is.
//
// A value may be kept only if no message that concerns it was handled between the moment it
// was read from Redis and the moment it is stored here: the message comes after the
// removal in Redis, so a value that is read later is a new one. That is what marks are
// for. They are numbers of messages, not registrations: who drops one leaves nothing behind.
type l1 struct {
	entries *lru.Cache[string, *l1Entry]
	clock   *sourceClock
	metrics *l1Metrics

	fresh atomic.Int64  // us since 1970, by the source's clock: nothing older is missing; 0 unknown
	seq   atomic.Uint64 // of the newest dropped key

	mu     sync.Mutex
	floor  uint64            // marks below it are too old to be judged
	recent map[string]uint64 // the keys dropped since floor
	order  []string          // the same in their order, a ring
	next   int
}

// recentKeys is how many dropped keys are remembered for marks.
const recentKeys = 1 << 14

type l1Entry struct {
	value any
	meta  entryMeta
	stamp string // of the family; "" of a version
	until time.Time
}

// l1Mark is taken before a value is read from Redis.
type l1Mark struct {
	key   string
	seq   uint64
	at    time.Time
	epoch uint64 // of the connections to Redis
}

func newL1(entries int, clock *sourceClock, m *l1Metrics) (*l1, error) {
	l := &l1{clock: clock, metrics: m, recent: make(map[string]uint64), order: make([]string, recentKeys)}
	var err error
	l.entries, err = lru.New[string, *l1Entry](entries)
	return l, err
}

// look is how fresh all is that is found here from now on. Before a version is read, or an
// entry is looked up, that is: what is found first and proved later may have been dropped
// in between, by the very message that brought the proof. 0, which proves nothing, without an L1.
func (l *l1) look() int64 {
	if l == nil {
		return 0
	}
	return l.fresh.Load()
}

// proves says whether what was found after told was known is within the class's budget.
func (l *l1) proves(class *mapping.Class, told int64, now time.Time) bool {
	at, known := l.clock.now(now)
	// Fresh to a time that has not come: the source's clock was set, see clockWasSet.
	return told > 0 && known && at >= told && time.Duration(at-told)*time.Microsecond+class.Hold() <= class.Staleness
}

// get returns an entry that may be served.
func (l *l1) get(f *family, key string, told int64, now time.Time) (*l1Entry, bool) {
	e, ok := l.entries.Get(key)
	if !ok || now.After(e.until) || !l.proves(f.Class, told, now) {
		return nil, false
	}
	return e, true
}

func (l *l1) mark(key string) l1Mark { return l1Mark{key: key, seq: l.seq.Load(), at: time.Now()} }

// store keeps a value that was read after the mark, for a time that bounds what no message
// tells of, such as an UNLINK by hand.
func (l *l1) store(m l1Mark, value any, meta entryMeta, stamp string, keep time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.seq < l.floor || l.recent[m.key] > m.seq {
		l.metrics.late.Inc()
		return
	}
	l.entries.Add(m.key, &l1Entry{value, meta, stamp, m.at.Add(keep)})
}

// drop removes keys, and revokes the marks that are out for them.
func (l *l1) drop(keys ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range keys {
		seq := l.seq.Add(1)
		if _, again := l.recent[key]; !again {
			if old := l.order[l.next]; old != "" {
				// The oldest is forgotten, and with it all marks from before it.
				l.floor = max(l.floor, l.recent[old])
				delete(l.recent, old)
			}
			l.order[l.next] = key
			l.next = (l.next + 1) % len(l.order)
		}
		l.recent[key] = seq
		l.entries.Remove(key)
	}
}

// flush drops everything.
func (l *l1) flush(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.floor = l.seq.Add(1)
	clear(l.recent)
	clear(l.order)
	l.entries.Purge()
	l.metrics.flushes.WithLabelValues(why).Inc()
}

// doubt says that it is not known any more which Redis is followed: nothing is proved until
// the next message, and what is being read meanwhile is not kept. What is here already stays:
// if no message was missed by then, it is as good as before.
func (l *l1) doubt() {
	l.fresh.Store(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.floor = l.seq.Add(1)
}

// Why everything was dropped.
const (
	flushStart = "start" // the stream is followed from here on
	flushGap   = "gap"   // messages were missed, or another session began
	flushPurge = "purge" // the daemon said so
)

type l1Metrics struct {
	flushes  *prometheus.CounterVec
	messages prometheus.Counter
	late     prometheus.Counter
}

func newL1Metrics() *l1Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "cache", Subsystem: "l1", Name: name, Help: help})
	}
	m := &l1Metrics{
		messages: counter("messages_total", "Messages of the invalidation stream that were handled."),
		late:     counter("stores_refused_total", "Values that were not kept in memory, because they were invalidated while they were read."),
		flushes: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "cache", Subsystem: "l1", Name: "flushes_total",
			Help: "Times that everything in memory was dropped: start, gap (messages were missed, or the daemon began another session) or purge."}, []string{"reason"}),
	}
	for _, why := range []string{flushStart, flushGap, flushPurge} {
		m.flushes.WithLabelValues(why)
	}
	return m
}

func (m *l1Metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.flushes, m.messages, m.late}
}

// openL1 begins to follow the stream, if there is to be an L1.
func (c *Client) openL1() error {
	if c.o.l1 == 0 {
		return nil
	}
	redisConfig := c.o.file.Redis
	if redisConfig.StreamMaxLength == 0 {
		return errors.New("WithL1 needs the daemon's invalidation stream: set redis.stream_max_length in the mappings, for example to 4096, and restart the daemon")
	}
	var err error
	if c.l1, err = newL1(c.o.l1, c.clock, c.metrics.l1); err != nil {
		return err
	}
	s := &l1Stream{l1: c.l1, rdb: c.rdb, key: mapping.StreamKey(c.prefix, c.o.file.Source.Slot.Name), log: c.log}
	c.do(s.run)
	return nil
}

// mark comes before a read from Redis whose value may be kept.
func (v *View[T]) mark(key string) l1Mark {
	var m l1Mark
	if v.c.l1 != nil {
		m = v.c.l1.mark(key)
	}
	m.epoch = v.c.control.epoch.Load()
	return m
}

// elsewhere says whether Redis is another server than when a mark was taken: the lease that was
// taken after it means nothing there, nor does what was read there meanwhile say anything of it.
func (v *View[T]) elsewhere(m l1Mark) bool { return m.epoch != v.c.control.epoch.Load() }

func (v *View[T]) fromL1(key string, token *Token, told int64, now time.Time, known *controlState) (out outcome[T], ok bool) {
	if v.c.l1 == nil {
		return out, false
	}
	e, ok := v.c.l1.get(v.f, key, told, now)
	if !ok || !v.f.believes(known, e.stamp) || e.meta.freshUntil <= millisOf(now) || !v.c.meets(v.f, &e.meta, token, nil) { // the stream may be behind the control hash
		return out, false
	}
	out.meta, out.stamp, out.result = e.meta, e.stamp, resultL1
	if !e.meta.negative {
		if out.value, ok = e.value.(T); !ok {
			return out, false // of a view with another type
		}
	}
	return out, true
}

// keep is for how long a value stays in memory: no longer than may pass between a
// change and its being seen.
func (v *View[T]) keep() time.Duration { return min(v.f.life.ttl, v.f.Class.Staleness) }

func (v *View[T]) storeL1(m l1Mark, out *outcome[T]) {
	if v.c.l1 == nil {
		return
	}
	v.c.l1.store(m, any(out.value), out.meta, out.stamp, v.keep())
}

func (v *View[T]) dropL1(key string) {
	if v.c.l1 != nil {
		v.c.l1.drop(key)
	}
}

func (v *View[T]) versionFromL1(name string, told int64) (string, bool) {
	if v.c.l1 == nil {
		return "", false
	}
	e, ok := v.c.l1.get(v.f, name, told, time.Now())
	if !ok {
		return "", false
	}
	version, ok := e.value.(string)
	return version, ok
}

func (v *View[T]) storeVersion(m l1Mark, version string) {
	if v.c.l1 != nil {
		v.c.l1.store(m, version, entryMeta{}, "", v.keep())
	}
}
