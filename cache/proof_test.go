package cache

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

func (b *bench) token() Token {
	b.Helper()
	token, err := TokenAfterCommit(b.Context(), b.pool)
	if err != nil {
		b.Fatal(err)
	}
	return token
}

func TestTokenMakesTheWritersNextReadSeeItsWrite(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	b.get(v, 1, "one")
	b.write(1, "two")
	token := b.token()
	b.get(v, 1, "one") // it is still cached, and others may have it
	b.get(v, 1, "two", AtLeast(token))
	b.get(v, 1, "two") // and what the token made load is there for all
	b.get(v, 1, "two", AtLeast(token))
	b.count("cache_loads_total", 2)

	text, err := ParseToken(token.String())
	if err != nil {
		t.Fatal(err)
	}
	b.get(v, 1, "two", AtLeast(text))
	b.count("cache_loads_total", 2)
}

// What the daemon has applied is not there any more, so what is there is new enough,
// without a look at its snapshot. But not where values are only marked, or held back.
func TestTokenAndTheDaemonsPosition(t *testing.T) {
	b := newBench(t)
	for _, family := range []string{"item", "soft", "page"} { // page's class is one that is held back
		b.get(view(b, family), 1, "one")
	}
	b.write(7, "elsewhere")
	token := b.token()
	b.daemon.reach(token.at)
	b.seen()
	b.get(view(b, "item"), 1, "one", AtLeast(token))
	b.get(view(b, "soft"), 1, "one", AtLeast(token))
	b.count("cache_loads_total", 3)
	b.get(view(b, "page"), 1, "one", AtLeast(token))
	b.count("cache_loads_total", 2, "page")

	// Now the write is this row's, and the daemon has only marked the value.
	b.write(1, "two")
	token = b.token()
	b.soften("soft:1", time.Minute)
	b.daemon.reach(token.at)
	b.seen()
	b.get(view(b, "soft"), 1, "two", AtLeast(token))
}

// The value was read before the daemon removed it, and the position that says so was
// read after: the two prove nothing together.
func TestPositionThatIsKnownLaterProvesNothing(t *testing.T) {
	b := newBench(t)
	c, tap := b.tapped()
	v := viewOf(b, c, "item")
	b.get(v, 1, "one")
	b.write(1, "two")
	token := b.token()
	tap.once("get", "item:1", func() {
		b.invalidate("item:1")
		b.daemon.reach(token.at)
		b.seen()
	})
	b.get(v, 1, "two", AtLeast(token))
}

// So it is with the budget: a value that Redis has answered with long ago is as old as
// that, whatever is known since.
func TestProofHoldsAtTheReturn(t *testing.T) {
	b := newBench(t)
	c, tap := b.tapped()
	v := viewOf(b, c, "quick") // 400 ms
	b.get(v, 1, "one")
	b.write(1, "two")
	tap.once("get", "quick:1", func() {
		b.invalidate("quick:1")
		late := time.Now().Add(v.f.Class.Staleness)
		eventually(t, "the budget is over", func() bool { return time.Now().After(late) })
		b.seen()
	})
	b.get(v, 1, "two")
	b.count("cache_bypasses_total", 1, doubtLate)
}

func TestProofOfManyHoldsAtTheReturn(t *testing.T) {
	b := newBench(t)
	c, tap := b.tapped()
	v := viewOf(b, c, "quick")
	b.get(v, 1, "one")
	b.write(1, "two")
	tap.once("get", "quick:1", func() {
		b.invalidate("quick:1")
		late := time.Now().Add(v.f.Class.Staleness)
		eventually(t, "the budget is over", func() bool { return time.Now().After(late) })
		b.seen()
	})
	items, err := v.GetMany(t.Context(), []Vars{{"id": 1}}, func(ctx context.Context, tx pgx.Tx, missing []Vars) ([]Item[string], error) {
		s, err := item(1)(ctx, tx)
		return []Item[string]{{s, true}}, err
	})
	if err != nil || items[0].Value != "two" {
		t.Errorf("%v, %v", items, err)
	}
}

// A version that is read before what is known of the daemon could have moved since.
func TestVersionIsReadUnderTheProof(t *testing.T) {
	b := newBench(t)
	c, tap := b.tapped()
	v := viewOf(b, c, "fast")
	get := func(want string) {
		t.Helper()
		if s, err := v.Get(t.Context(), Vars{"shop": 1, "q": "x"}, item(1)); err != nil || s != want {
			t.Fatalf("%q, %v, want %q", s, err, want)
		}
	}
	get("one")
	b.write(1, "two")
	tap.once("get", "fast:1", func() {
		if err := b.rdb.Set(t.Context(), "fast:1", strings.Repeat("1", 40), 0).Err(); err != nil {
			t.Error(err)
		}
		late := time.Now().Add(v.f.Class.Staleness)
		eventually(t, "the budget is over", func() bool { return time.Now().After(late) })
		b.seen()
	})
	get("two")
}

// The fill of a versioned family is accepted although the version has moved: that proves
// nothing of a slow load.
func TestSlowLoadOfAVersionedFamilyIsLoadedAgain(t *testing.T) {
	b := newBench(t)
	v := view(b, "fast")
	loads := 0
	s, err := v.Get(t.Context(), Vars{"shop": 1, "q": "x"}, func(ctx context.Context, tx pgx.Tx) (string, error) {
		value, err := item(1)(ctx, tx)
		if loads++; loads == 1 {
			b.write(1, "two")
			if err := b.rdb.Set(ctx, "fast:1", strings.Repeat("1", 40), 0).Err(); err != nil {
				return "", err
			}
			if _, err := tx.Exec(ctx, `SELECT pg_sleep(0.5)`); err != nil {
				return "", err
			}
		}
		return value, err
	})
	if err != nil || s != "two" {
		t.Errorf("%q, %v", s, err)
	}
}

// An accepted fill proves a slow load only as long as the daemon is known to work.
func TestSlowLoadWithoutTheDaemonIsTooSlow(t *testing.T) {
	b := newBench(t)
	_, err := view(b, "quick").Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
		b.daemon.away(true)
		if _, err := tx.Exec(ctx, `SELECT pg_sleep(0.5)`); err != nil {
			return "", err
		}
		return item(1)(ctx, tx)
	})
	if !errors.Is(err, ErrTooSlow) {
		t.Errorf("%v, want ErrTooSlow", err)
	}
}

func TestTokenOfAnotherDatabaseIsAnError(t *testing.T) {
	b := newBench(t)
	token, err := ParseToken("1.00ffffffffffffff.1000000000-1000000000-")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := view(b, "item").Get(t.Context(), Vars{"id": 1}, item(1), AtLeast(token)); !errors.Is(err, ErrTokenAhead) {
		t.Errorf("%v, want ErrTokenAhead", err)
	}
}

// A reader that joins a load which had read before the token's commit takes another one.
func TestTokenAndALoadUnderWay(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	g := newGated()
	go func() { _, _ = v.Get(t.Context(), Vars{"id": 1}, g.load(1)) }()
	<-g.read
	b.write(1, "two")
	token := b.token()
	got := make(chan string)
	go func() {
		s, err := v.Get(t.Context(), Vars{"id": 1}, item(1), AtLeast(token))
		if err != nil {
			s = err.Error()
		}
		got <- s
	}()
	close(g.done)
	if s := <-got; s != "two" {
		t.Errorf("%q", s)
	}
}

func TestClockThatWasSetForwardProvesNothing(t *testing.T) {
	now := time.Now()
	clock := &sourceClock{}
	clock.observe(&clockReading{asked: now, theirs: now.UnixMicro()}, now)
	s := &controlState{state: "ok", freshAsOf: now.Add(time.Minute).UnixMicro()}
	b := newBench(t)
	class := view(b, "item").f.Class
	if ok, why := s.proves(clock, class, now, 0); ok {
		t.Errorf("what is fresh to a time to come is proved (%q)", why)
	}
	// The next answer mends it, though the bound of the last one was tighter.
	clock.observe(&clockReading{asked: now, theirs: now.Add(2 * time.Minute).UnixMicro()}, now.Add(time.Millisecond))
	if ok, why := s.proves(clock, class, now, 0); !ok && why != doubtLate {
		t.Errorf("in doubt: %q", why)
	}
	if at, _ := clock.now(now); at < now.Add(2*time.Minute).UnixMicro() {
		t.Error("an answer that disproves a bound has not replaced it")
	}
	// And one that is only slow does not.
	quick := now.Add(time.Second)
	clock.observe(&clockReading{asked: quick, theirs: quick.Add(2 * time.Minute).UnixMicro()}, quick)
	clock.observe(&clockReading{asked: quick.Add(-10 * time.Second), theirs: quick.Add(2 * time.Minute).UnixMicro()}, quick)
	if at, _ := clock.now(quick); at > quick.Add(2*time.Minute+time.Second).UnixMicro() {
		t.Error("a slow answer has spoiled the bound")
	}
}

func TestReadsInsideALoaderAreRefused(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	many := func(context.Context, pgx.Tx, []Vars) ([]Item[string], error) { return nil, nil }
	for name, read := range map[string]func(context.Context) error{
		"Get":     func(ctx context.Context) error { _, err := v.Get(ctx, Vars{"id": 2}, item(2)); return err },
		"GetMany": func(ctx context.Context) error { _, err := v.GetMany(ctx, []Vars{{"id": 2}}, many); return err },
		"Refresh": func(ctx context.Context) error { _, err := v.Refresh(ctx, Vars{"id": 2}, item(2)); return err },
	} {
		_, err := v.Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, _ pgx.Tx) (string, error) { return "", read(ctx) })
		if !errors.Is(err, errNested) {
			t.Errorf("%s: %v, want errNested", name, err)
		}
	}
}

func TestOpenRefusesReadersOfReplicas(t *testing.T) {
	b := newBench(t)
	for name, rdb := range map[string]redis.UniversalClient{
		"ReadOnly": redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}, RouteRandomly: true}),
		"Ring":     redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}}),
	} {
		_, err := Open(t.Context(), rdb, b.pool, WithMappings(b.mappings))
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want an error about %s", err, name)
		}
		if err := rdb.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Nobody reads, nobody looks; and the first read after that looks before it reads.
func TestControlSleeps(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	b.get(v, 1, "one")
	c := newControl(testControlKey, b.pool, b.c.clock, time.Hour, b.c.log)
	c.stamps = b.c.control.stamps
	c.rdb = b.rdb
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.sleep(ctx) }()
	eventually(t, "it sleeps", c.sleeping.Load)
	if c.look() != nil {
		t.Fatal("it has looked")
	}
	c.use(t.Context())
	if s := c.look(); s == nil || s.state != "ok" {
		t.Errorf("the first read has not looked: %+v", s)
	}
	<-done
	cancel()
	if c.sleeping.Load() {
		t.Error("it still sleeps")
	}
}
