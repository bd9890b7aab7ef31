package cache

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

const (
	testControlKey = "inv:source:{shop}"
	testStampsKey  = "inv:stamps:{shop}"
)

// publish writes a control hash as the daemon does.
func publish(t *testing.T, rdb *redis.Client, state string, freshAsOf time.Time, applied, end lsn.LSN) {
	t.Helper()
	if err := rdb.HSet(t.Context(), testControlKey, "state", state, "fresh_as_of", fmt.Sprintf("%016x", freshAsOf.UnixMicro()),
		"applied", applied.Hex(), "end", end.Hex(), "sent", applied.Hex()).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestControlProves(t *testing.T) {
	rdb := servertest.Redis(t).Client(t)
	conn := servertest.Postgres(t).Conn(t)
	clock := &sourceClock{}
	c := newControl(testControlKey, conn, clock, time.Hour, slog.New(slog.DiscardHandler))
	c.rdb = rdb
	class := &mapping.Class{Name: "critical", Staleness: time.Minute}
	slow := &mapping.Class{Name: "slow", Staleness: time.Minute, Linger: 30 * time.Second}
	now := time.Now()
	expect := func(class *mapping.Class, at time.Time, want string) {
		t.Helper()
		if ok, why := c.look().proves(c.clock, class, at, 0); why != want || ok != (want == "") {
			t.Errorf("proved: %v %q, want %q", ok, why, want)
		}
	}
	poll := func() {
		t.Helper()
		if err := c.poll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	expect(class, now, doubtUnknown)
	if err := c.poll(t.Context()); err == nil {
		t.Error("a missing hash is no error")
	}
	publish(t, rdb, "ok", now.Add(-40*time.Second), 16, 24)
	poll()
	expect(class, now, doubtUnknown) // the clock of the source is not known
	if err := clock.measure(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	expect(class, now, "")
	expect(slow, now, doubtLate) // what is held back may be 30 s older
	expect(class, now.Add(21*time.Second), doubtLate)
	for state, why := range map[string]string{"catching_up": "", "gap": doubtGap, "paused": doubtPaused, "what": doubtUnknown} {
		publish(t, rdb, state, now.Add(-40*time.Second), 16, 24)
		poll()
		expect(class, now, why)
	}
	publish(t, rdb, "ok", now, 16, 24)
	poll()
	expect(slow, now, "")
	for at, want := range map[lsn.LSN]bool{8: true, 16: true, 24: true, 25: false} {
		if got := c.look().includes(&Token{at: at}); got != want {
			t.Errorf("position %s is reached: %v", at, got)
		}
	}
	if sent, err := c.sent(t.Context()); err != nil || sent != 16 {
		t.Errorf("sent %s, %v", sent, err)
	}
	// An error leaves the last look, which ages; a hash that is gone proves nothing.
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.poll(canceled); err == nil {
		t.Error("polled without a context")
	}
	expect(class, now, "")
	if err := rdb.Del(t.Context(), testControlKey).Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.poll(t.Context()); err == nil {
		t.Error("a missing hash is no error")
	}
	expect(class, now, doubtUnknown)
}

func TestControlRunFollows(t *testing.T) {
	rdb := servertest.Redis(t).Client(t)
	clock := &sourceClock{}
	c := newControl(testControlKey, servertest.Postgres(t).Conn(t), clock, time.Millisecond, slog.New(slog.DiscardHandler))
	c.rdb = rdb
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.run(ctx) }()
	class := &mapping.Class{Staleness: time.Minute}
	until := func(want string) {
		t.Helper()
		for {
			if _, why := c.look().proves(c.clock, class, time.Now(), 0); why == want {
				return
			}
			if t.Context().Err() != nil {
				t.Fatal("never")
			}
		}
	}
	until(doubtUnknown)
	publish(t, rdb, "ok", time.Now(), 16, 24)
	until("")
	publish(t, rdb, "gap", time.Now(), 16, 24)
	until(doubtGap)
	cancel()
	<-done
}

// The bound is never below the source's clock, and not far above it.
func TestSourceClockBounds(t *testing.T) {
	conn := servertest.Postgres(t).Conn(t)
	var c sourceClock
	for range 50 {
		if err := c.measure(t.Context(), conn); err != nil {
			t.Fatal(err)
		}
		var theirs time.Time
		if err := conn.QueryRow(t.Context(), `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
			t.Fatal(err)
		}
		bound, ok := c.now(time.Now())
		if over := bound - theirs.UnixMicro(); !ok || over < 0 || over > 5_000_000 {
			t.Fatalf("the bound is %d us above the clock", over)
		}
	}
}
