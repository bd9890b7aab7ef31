package cache

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v, want an error that says %q", err, part)
		}
	}
}

// newPrivateBench has a source of its own, which the test may stop.
func newPrivateBench(t *testing.T, options ...Option) (*bench, *localserver.Postgres) {
	t.Helper()
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	b := newBenchOn(t, servertest.NewDatabase(t, server, "shop"), options...)
	return b, server
}

func TestFailSafe(t *testing.T) {
	b, server := newPrivateBench(t)
	safe, item1 := view(b, "safe"), view(b, "item")
	b.get(safe, 1, "one")
	b.get(safe, 2, "one")
	b.get(item1, 1, "one")
	b.write(2, "two")
	token := b.token()
	if err := server.Stop(t.Context(), localserver.Immediate); err != nil {
		t.Fatal(err)
	}
	// With the source the daemon stands still, and soon nothing is proved any more.
	b.daemon.away(true)
	eventually(t, "it is late", func() bool { return b.doubt(safe) == doubtLate })
	b.get(safe, 1, "one")
	b.count("cache_reads_total", 1, "fail_safe")

	// Not where the class does not allow it, where there is nothing, or where it is too old
	// for the token; and not where invalidations may be lost.
	if _, err := view(b, "never").Get(t.Context(), Vars{"id": 1}, item(1)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	if _, err := safe.Get(t.Context(), Vars{"id": 9}, item(9)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	if s, err := safe.Get(t.Context(), Vars{"id": 2}, item(2), AtLeast(token)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%q, %v, want ErrUnavailable", s, err)
	}
	b.daemon.away(false)
	b.daemon.set("gap", 0)
	eventually(t, "the gap is seen", func() bool { return b.doubt(safe) == doubtGap })
	if s, err := safe.Get(t.Context(), Vars{"id": 1}, item(1)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%q, %v, want ErrUnavailable", s, err)
	}
	// Beyond staleness and fail_safe together.
	b.daemon.set("ok", 2*time.Hour)
	b.seen()
	if s, err := safe.Get(t.Context(), Vars{"id": 1}, item(1)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%q, %v, want ErrUnavailable", s, err)
	}
}

// The value is there still, though its time to be served is over.
func TestFailSafeOfAnExpiredValue(t *testing.T) {
	b, server := newPrivateBench(t)
	v := view(b, "kept")
	b.get(v, 1, "one")
	b.get(v, 2, "one")
	for _, key := range []string{"kept:1", "kept:2"} {
		if err := b.rdb.SetRange(t.Context(), key, freshAt, strings.Repeat("0", 2*timeLen)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	other, _ := b.open()
	g := newGated()
	go func() { _, _ = viewOf(b, other, "kept").Get(t.Context(), Vars{"id": 2}, g.load(2)) }()
	<-g.read // it holds the second one
	if err := server.Stop(t.Context(), localserver.Immediate); err != nil {
		t.Fatal(err)
	}
	b.get(v, 1, "one")
	b.c.o.wait = time.Millisecond
	b.get(v, 2, "one")
	b.count("cache_reads_total", 2, "fail_safe")
	close(g.done)
}

// A source that is down is found out once in a while, not by each read.
func TestSourceBreaker(t *testing.T) {
	b, server := newPrivateBench(t)
	v := view(b, "item")
	wrong := errors.New("the loader's own")
	for range 2 * breakerFailures {
		if _, err := v.Get(t.Context(), Vars{"id": 1}, func(context.Context, pgx.Tx) (string, error) { return "", wrong }); !errors.Is(err, wrong) {
			t.Fatal(err) // errors of loaders do not open it
		}
		_, _ = v.Get(t.Context(), Vars{"id": 99}, item(99))
		b.invalidate("item:99")
	}
	if err := server.Stop(t.Context(), localserver.Immediate); err != nil {
		t.Fatal(err)
	}
	var err error
	for range breakerFailures + 1 {
		_, err = v.Get(t.Context(), Vars{"id": 2}, item(2))
	}
	if !errors.Is(err, errBreaker) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want one of the breaker", err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is tried again", func() bool {
		s, err := v.Get(t.Context(), Vars{"id": 2}, item(2))
		return err == nil && s == "one"
	})
}

func TestLoadsAreBounded(t *testing.T) {
	b := newBench(t, WithSourceConcurrency(2), WithLoadTimeout(100*time.Millisecond))
	v := view(b, "item")
	g := newGated()
	for id := 1; id <= 2; id++ {
		go func() { _, _ = v.Get(t.Context(), Vars{"id": id}, g.load(id)) }()
		<-g.read
	}
	_, err := v.Get(t.Context(), Vars{"id": 3}, item(3))
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	close(g.done)
	eventually(t, "there is room again", func() bool { _, err := v.Get(t.Context(), Vars{"id": 3}, item(3)); return err == nil })
}
