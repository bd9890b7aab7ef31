package sink

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

func streamed(o *Options) { o.Config.StreamMaxLength = 1000 }

// told is a message as a reader sees it.
type told struct {
	session string
	n       uint64
	fresh   time.Time
	all     bool
	keys    []string
}

func messagesOf(t testing.TB, c redis.Cmdable, key string) []told {
	t.Helper()
	entries, err := c.XRange(t.Context(), key, "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	var list []told
	for _, e := range entries {
		m := told{session: e.Values["s"].(string), all: e.Values["p"] == "1"}
		number := func(name string) uint64 {
			text := e.Values[name].(string)
			v, err := strconv.ParseUint(text, 16, 64)
			if err != nil || len(text) != 16 {
				t.Fatalf("field %s is %q", name, text)
			}
			return v
		}
		m.n, m.fresh = number("n"), timeFromMicros(number("f"))
		if k, ok := e.Values["k"].(string); ok {
			m.keys = strings.Split(k, "\n")
		}
		list = append(list, m)
	}
	return list
}

// breaks says where the numbers break, as readers find out.
func breaks(list []told) (sessions int, holes []int) {
	for i, m := range list {
		switch {
		case i == 0 || list[i-1].session != m.session:
			sessions++
			if m.n != 1 {
				holes = append(holes, i)
			}
		case m.n != list[i-1].n+1:
			holes = append(holes, i)
		}
	}
	return sessions, holes
}

// beating is a batch that proves how fresh all is.
func beating(t testing.TB, at lsn.LSN, fresh time.Time, invs ...mapping.Invalidation) *ordering.Batch {
	t.Helper()
	q := ordering.NewQueue(ordering.Position{})
	q.Lock()
	p := position(at)
	q.Begin(ordering.Txn{XID: uint32(at), CommitLSN: at, CommitTime: p.CommitTime})
	for i := range invs {
		q.Add(&invs[i])
	}
	q.Commit(p, time.Time{})
	q.Unlock()
	b := q.TryTake()
	b.Prove(fresh)
	return b
}

func TestNoStreamUnlessAskedFor(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL)
	if err := r.Apply(t.Context(), beating(t, 100, time.Now(), append(deletes(plain(t), "a"), purgeOf(plain(t), "7"))...)); err != nil {
		t.Fatal(err)
	}
	if err := r.Fresh(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if keys := c.Keys(t.Context(), "inv:*").Val(); !slices.Equal(keys, []string{r.controlKey}) {
		t.Errorf("keys %q", keys)
	}
}

func TestStreamTellsOfABatch(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL, streamed)
	key := mapping.StreamKey("inv:", "shop")
	begun := messagesOf(t, c, key)
	if len(begun) != 1 || !begun[0].all || begun[0].n != 1 || !begun[0].fresh.IsZero() {
		t.Fatalf("a new generation is told as %+v, want one message that drops all and proves nothing", begun)
	}
	send := func(b *ordering.Batch) []told {
		t.Helper()
		before := len(messagesOf(t, c, key))
		if err := r.Apply(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		return messagesOf(t, c, key)[before:]
	}
	got := send(batch(t, 100, append(deletes(plain(t), "a", "b"), mapping.Invalidation{Op: mapping.OpAdvance, Family: versioned(t), Key: []byte("v")})...))
	if len(got) != 1 || got[0].all || !got[0].fresh.IsZero() || !slices.Equal(got[0].keys, []string{"a", "b", "v"}) {
		t.Errorf("a batch is told as %+v", got)
	}
	// Many keys: several messages, and only the last says how fresh all is by then.
	first, second := time.UnixMicro(1_700_000_000_000_001).UTC(), time.UnixMicro(1_700_000_001_000_000).UTC()
	if got = send(beating(t, 200, first, deletes(plain(t), "x")...)); len(got) != 1 || !got[0].fresh.Equal(first) {
		t.Errorf("a heartbeat is told as %+v", got)
	}
	keys := append(numbered("k%d", 5000), strings.Repeat("long", 5000))
	for i := range 20 {
		keys = append(keys, fmt.Sprintf("%d%s", i, strings.Repeat("y", 3000)))
	}
	got = send(beating(t, 300, second, deletes(plain(t), keys...)...))
	var listed []string
	for i, m := range got {
		want := first
		if i == len(got)-1 {
			want = second
		}
		if !m.fresh.Equal(want) {
			t.Errorf("message %d of %d proves %v, want %v", i, len(got), m.fresh, want)
		}
		if size := len(strings.Join(m.keys, "\n")); len(m.keys) > messageKeys || len(m.keys) > 1 && size > messageBytes {
			t.Errorf("message %d has %d keys of %d bytes", i, len(m.keys), size)
		}
		listed = append(listed, m.keys...)
	}
	slices.Sort(keys)
	slices.Sort(listed)
	if !slices.Equal(keys, listed) {
		t.Errorf("%d keys are listed, want %d", len(listed), len(keys))
	}
	// Later ones go on saying it, until it moves.
	if got = send(batch(t, 400, deletes(plain(t), "z")...)); len(got) != 1 || !got[0].fresh.Equal(second) {
		t.Errorf("after a heartbeat: %+v", got)
	}
	if got = send(batch(t, 500, purgeOf(plain(t), "7"), deletes(plain(t), "a")[0])); len(got) == 0 || !got[0].all {
		t.Errorf("a purge is told as %+v", got)
	}
	// A key that cannot be listed, and more than can.
	if got = send(batch(t, 600, deletes(plain(t), "a\nb")...)); len(got) != 1 || !got[0].all {
		t.Errorf("a key with a newline is told as %+v", got)
	}
	if got = send(batch(t, 700, deletes(plain(t), numbered("%d", publishedKeys+1)...)...)); len(got) != 1 || !got[0].all || len(got[0].keys) != 0 {
		t.Errorf("very many keys are told as %d messages", len(got))
	}
	before := c.XLen(t.Context(), key).Val()
	if err := r.Fresh(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if n := c.XLen(t.Context(), key).Val(); n != before {
		t.Error("what is known already was told again")
	}
	third := second.Add(time.Second)
	if err := r.Fresh(t.Context(), third); err != nil {
		t.Fatal(err)
	}
	all := messagesOf(t, c, key)
	if last := all[len(all)-1]; !last.fresh.Equal(third) || len(last.keys) > 0 || last.all {
		t.Errorf("a heartbeat alone is told as %+v", last)
	}
	if sessions, holes := breaks(all); sessions != 1 || len(holes) > 0 {
		t.Errorf("%d sessions, holes at %v, without any error", sessions, holes)
	}
	r.dedicated = true
	if err := r.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all = messagesOf(t, c, key); len(all) != 1 || !all[0].all {
		t.Errorf("after a flush the stream has %+v", all)
	}
}

// A reader that was told drops its value and reads again, so it must not be told before
// the old one is gone.
func TestNothingIsToldBeforeItIsDone(t *testing.T) {
	s, c := server(t)
	if err := c.Do(t.Context(), "acl", "setuser", "cdc", "on", ">hunter2", "+@all", "~t:*", "~inv:*").Err(); err != nil {
		t.Fatal(err)
	}
	r := attached(t, "redis://cdc:hunter2@"+s.Address(), streamed)
	key := mapping.StreamKey("inv:", "shop")
	before := c.XLen(t.Context(), key).Val()
	b := beating(t, 100, time.Now(), deletes(plain(t), "t:7:user:1", "forbidden")...)
	if err := r.Apply(t.Context(), b); err == nil {
		t.Fatal("no error")
	}
	if n := c.XLen(t.Context(), key).Val(); n != before {
		t.Errorf("%d messages of a batch that was not applied", n-before)
	}
	if err := c.Do(t.Context(), "acl", "setuser", "cdc", "~*").Err(); err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if n := c.XLen(t.Context(), key).Val(); n != before+1 {
		t.Errorf("%d messages of a batch", n-before)
	}
	// And it counts as applied only when it was told.
	if err := c.Do(t.Context(), "acl", "setuser", "cdc", "-xadd").Err(); err != nil {
		t.Fatal(err)
	}
	err := r.Apply(t.Context(), batch(t, 200, deletes(plain(t), "t:7:user:1")...))
	contains(t, err, "ACL SETUSER", "+xadd")
}

// The reply to a message is lost. It was written, or not, or will be; the batch is sent
// again, and in the new session nobody can take the one for the other.
func TestALostReplyBeginsASession(t *testing.T) {
	s, c := server(t)
	p := newProxy(t, nil, s.Address())
	r := attached(t, p.url(), streamed)
	key := mapping.StreamKey("inv:", "shop")
	if err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "a")...)); err != nil {
		t.Fatal(err)
	}
	before := messagesOf(t, c, key)
	beat := time.UnixMicro(1_700_000_000_000_000).UTC()
	p.swallow(true)
	if err := r.Fresh(t.Context(), beat); err == nil {
		t.Fatal("no error although the reply was lost")
	}
	p.swallow(false)
	eventually(t, "the message to be written", func() bool { return c.XLen(t.Context(), key).Val() == int64(len(before))+1 })
	b := beating(t, 200, beat, deletes(plain(t), "b")...)
	eventually(t, "Redis to answer again", func() bool { return r.Apply(t.Context(), b) == nil })
	after := messagesOf(t, c, key)[len(before):]
	if len(after) != 2 || after[0].session != before[0].session || after[1].session == before[0].session || after[1].n != 1 ||
		!slices.Equal(after[1].keys, []string{"b"}) {
		t.Errorf("after a lost reply the stream goes on with %+v, began with %+v", after, before)
	}
	// The same where the connection is lost on the way there.
	p.cutAfter(40)
	eventually(t, "an error", func() bool { return r.Fresh(t.Context(), beat.Add(time.Second)) != nil })
	eventually(t, "Redis to answer again", func() bool { return r.Fresh(t.Context(), beat.Add(time.Second)) == nil })
	all := messagesOf(t, c, key)
	if sessions, holes := breaks(all); sessions != 3 || len(holes) > 0 {
		t.Errorf("%d sessions, holes at %v: %+v", sessions, holes, all)
	}
}

// What this process has told belongs to the Redis that it was attached to.
func TestAttachingBeginsASession(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL, streamed)
	key := mapping.StreamKey("inv:", "shop")
	if err := r.Apply(t.Context(), beating(t, 100, time.Now(), deletes(plain(t), "a")...)); err != nil {
		t.Fatal(err)
	}
	before := messagesOf(t, c, key)
	mustAttach(t, r)
	if err := r.Apply(t.Context(), batch(t, 200, deletes(plain(t), "a")...)); err != nil {
		t.Fatal(err)
	}
	all := messagesOf(t, c, key)
	if last := all[len(all)-1]; last.session == before[0].session || last.n != 1 || !last.fresh.IsZero() {
		t.Errorf("after another attachment: %+v; the session before was %s", last, before[0].session)
	}
}

func TestNothingIsToldToAnotherHistory(t *testing.T) {
	a, ac := server(t)
	b, bc := server(t)
	fill(t, bc, "x")
	r := attached(t, a.URL(), streamed)
	now := r.now()
	r.now = func() time.Time { return now } // no periodic check comes to the rescue
	replicate(t, ac, b)
	if err := ac.Do(t.Context(), "replicaof", "no", "one").Err(); err != nil {
		t.Fatal(err)
	}
	if err := r.Fresh(t.Context(), now); !errors.Is(err, ErrNodeChanged) {
		t.Errorf("got %v", err)
	}
	if n := ac.Exists(t.Context(), r.news.key).Val(); n != 0 {
		t.Error("a proof was written to a node that may have lost what it is about")
	}
}

func TestStreamOnAServerWithoutMemory(t *testing.T) {
	_, c := server(t, "--maxmemory-policy", "noeviction")
	r := attached(t, "redis://"+c.Options().Addr, streamed)
	if err := c.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(t.Context(), beating(t, 100, time.Now(), deletes(plain(t), "a")...)); err != nil {
		t.Fatal(err)
	}
	c.ConfigSet(t.Context(), "maxmemory", "0")
	if got := messagesOf(t, c, r.news.key); !slices.Equal(got[len(got)-1].keys, []string{"a"}) {
		t.Errorf("the stream ends with %+v", got[len(got)-1])
	}
}

func TestStreamReplacesAnotherType(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL, streamed)
	c.Set(t.Context(), r.news.key, "x", 0)
	c.ScriptFlush(t.Context())
	if err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "a")...)); err != nil {
		t.Fatal(err)
	}
	if got := messagesOf(t, c, r.news.key); len(got) != 1 || !slices.Equal(got[0].keys, []string{"a"}) {
		t.Errorf("the stream is %+v", got)
	}
}

func TestStreamIsBounded(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL, streamed)
	at := time.Now()
	for range 1500 {
		at = at.Add(time.Millisecond)
		if err := r.Fresh(t.Context(), at); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.XLen(t.Context(), r.news.key).Val(); n < 1000 || n > 1200 {
		t.Errorf("%d messages are kept, want about 1000", n)
	}
}

func TestStreamInACluster(t *testing.T) {
	c := newCluster(t)
	r := attached(t, c.url(), streamed)
	if r.news.key != "inv:stream:{shop}" || c.owner(t, r.news.key) != c.owner(t, r.controlKey) {
		t.Fatalf("the stream %s is not where the control hash is", r.news.key)
	}
	keys := numbered("t:7:user:%d", 300)
	if err := r.Apply(t.Context(), beating(t, 100, time.Now(), deletes(plain(t), keys...)...)); err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, m := range messagesOf(t, c.client, r.news.key) {
		listed = append(listed, m.keys...)
	}
	slices.Sort(keys)
	slices.Sort(listed)
	if !slices.Equal(keys, listed) {
		t.Errorf("%d keys are listed, want %d", len(listed), len(keys))
	}
}
