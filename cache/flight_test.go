package cache

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// crowd waits until n readers of this package's tests wait for a flight.
func crowd(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d readers wait", n), func() bool {
		buf := make([]byte, 4<<20)
		waiting := 0
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if head, rest, _ := strings.Cut(g, "\n"); strings.Contains(head, "[select") && strings.HasPrefix(rest, "github.com/cdc-invalidator/cdc-invalidator/cache.(*View[...]).await(") {
				waiting++
			}
		}
		return waiting == n
	})
}

type read struct {
	value string
	err   error
}

func later(f func() (string, error)) chan read {
	c := make(chan read, 1)
	go func() { s, err := f(); c <- read{s, err} }()
	return c
}

// A reader with a token joins a load that has read before the write, and whose fill is
// refused, or goes under a version that nobody reads any more. That the daemon has applied the write by
// then says nothing of what the load brings.
func TestTokenIsNotMetByAnOlderFlight(t *testing.T) {
	for family, c := range map[string]struct {
		vars       Vars
		invalidate func(b *bench)
	}{
		"item": {Vars{"id": 1}, func(b *bench) { b.invalidate("item:1") }},
		"list": {Vars{"shop": 1, "q": "x"}, func(b *bench) {
			if err := b.rdb.Set(b.Context(), "list:1", "0000000100000001000000000000ffff00000000", 0).Err(); err != nil {
				b.Fatal(err)
			}
		}},
	} {
		t.Run(family, func(t *testing.T) {
			b := newBench(t)
			v := view(b, family)
			g := newGated()
			first := later(func() (string, error) { return v.Get(t.Context(), c.vars, g.load(1)) })
			<-g.read
			b.write(1, "two")
			token := mustToken(t, b.pool)
			second := later(func() (string, error) { return v.Get(t.Context(), c.vars, item(1), AtLeast(token)) })
			crowd(t, 2)
			c.invalidate(b)
			b.daemon.reach(token.at + 8)
			b.seen()
			close(g.done)
			if r := <-first; r.err != nil {
				t.Error(r.err)
			}
			if r := <-second; r.value != "two" {
				t.Errorf("with a token: %q, %v", r.value, r.err)
			}
		})
	}
}

// A Refresh, and a Get after Invalidate, wait for no load that has begun before them.
func TestRefreshAndInvalidateLeaveOlderFlights(t *testing.T) {
	for name, c := range map[string]struct {
		first, second func(v *View[string], load loader[string]) (string, error)
	}{
		"Refresh": {
			func(v *View[string], load loader[string]) (string, error) {
				return v.Refresh(t.Context(), Vars{"id": 1}, load)
			},
			func(v *View[string], load loader[string]) (string, error) {
				return v.Refresh(t.Context(), Vars{"id": 1}, load)
			},
		},
		"Invalidate": {
			func(v *View[string], load loader[string]) (string, error) {
				return v.Get(t.Context(), Vars{"id": 1}, load)
			},
			func(v *View[string], load loader[string]) (string, error) {
				if err := v.Invalidate(t.Context(), Vars{"id": 1}); err != nil {
					return "", err
				}
				return v.Get(t.Context(), Vars{"id": 1}, load)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			v := view(b, "item")
			g := newGated()
			first := later(func() (string, error) { return c.first(v, g.load(1)) })
			<-g.read
			b.write(1, "two")
			second := later(func() (string, error) { return c.second(v, item(1)) })
			if name == "Refresh" {
				crowd(t, 2)
				close(g.done)
			}
			if r := <-second; r.value != "two" {
				t.Errorf("%q, %v", r.value, r.err)
			}
			if name != "Refresh" {
				close(g.done)
			}
			if r := <-first; r.err != nil {
				t.Error(r.err)
			}
			b.get(v, 1, "two")
		})
	}
}

// A token of a moment that the source does not know costs one load.
func TestTokenAheadIsSeenAtOnce(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	b.get(v, 1, "one")
	token, err := ParseToken("1.ffffffffffffffff.3-99999999999-")
	if err != nil {
		t.Fatal(err)
	}
	before := counted(t, b.registry, "cache_loads_total")
	if _, err := v.Get(t.Context(), Vars{"id": 1}, item(1), AtLeast(token)); !errors.Is(err, ErrTokenAhead) {
		t.Errorf("%v", err)
	}
	if n := counted(t, b.registry, "cache_loads_total") - before; n != 1 {
		t.Errorf("%v loads", n)
	}
}

// A transaction that the loader has ended is not stored from, also when another one is
// there at the end.
func TestLoaderThatChangesTheTransactionStoresNothing(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	for name, leave := range map[string]func(ctx context.Context, tx pgx.Tx) error{
		"in one text": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `select 1; COMMIT; begin; update items set v = 'ghost' where id = 1`)
			return err
		},
		"in a batch": func(ctx context.Context, tx pgx.Tx) error {
			batch := &pgx.Batch{}
			batch.Queue(`rollback`)
			batch.Queue(`begin`)
			batch.Queue(`update items set v = 'ghost' where id = 1`)
			return tx.SendBatch(ctx, batch).Close()
		},
	} {
		s, err := v.Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (s string, err error) {
			if err := leave(ctx, tx); err != nil {
				return "", err
			}
			err = tx.QueryRow(ctx, `select v from items where id = 1`).Scan(&s)
			return s, err
		})
		if err != nil || s != "ghost" {
			t.Errorf("%s: %q, %v", name, s, err)
		}
		b.get(v, 1, "one")
		b.invalidate("item:1")
	}
}

// Of a family without negative_ttl nothing is left of a row that a load finds gone.
func TestRowThatIsGoneLeavesNoOldValue(t *testing.T) {
	b := newBench(t)
	v := view(b, "never")
	b.get(v, 1, "one")
	b.db.Exec(t, `DELETE FROM items WHERE id = 1`)
	for _, get := range []func() (string, error){
		func() (string, error) { return v.Refresh(t.Context(), Vars{"id": 1}, item(1)) },
		func() (string, error) { return v.Get(t.Context(), Vars{"id": 1}, item(1)) },
	} {
		if s, err := get(); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q, %v", s, err)
		}
	}
}
