package cache

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// looked waits until a client knows the stamps that are published.
func (b *bench) looked(c *Client) {
	b.Helper()
	eventually(b, "the client knows the stamps", func() bool {
		s := c.control.look()
		b.daemon.mu.Lock()
		defer b.daemon.mu.Unlock()
		c.control.used.Store(true)
		return s != nil && s.revision == b.daemon.stamps.Revision && (s.stamps != nil || s.err == nil)
	})
}

// Under each way in which a cached value can be given, one from before the family was followed
// anew is not.
func TestNothingOfAnotherStampIsGiven(t *testing.T) {
	b := newBench(t, WithL1(100))
	for _, family := range []string{"item", "safe", "soft", "kept", "list"} {
		t.Run(family, func(t *testing.T) {
			b := *b
			b.TB = t
			v := view(&b, family)
			vars := func(id int) Vars {
				if family == "list" {
					return Vars{"shop": 1, "q": id}
				}
				return Vars{"id": id}
			}
			get := func(id int) (string, error) { return v.Get(t.Context(), vars(id), item(id)) }
			for id := 1; id <= 4; id++ {
				b.write(id, "one")
				if got, err := get(id); err != nil || got != "one" {
					t.Fatal(got, err)
				}
				b.write(id, "two") // and nobody tells of it
			}
			b.daemon.stampAnew(family)
			b.looked(b.c)
			if got, err := get(1); err != nil || got != "two" {
				t.Errorf("Get: %q, %v", got, err)
			}
			items, err := v.GetMany(t.Context(), []Vars{vars(1), vars(2)}, func(_ context.Context, _ pgx.Tx, missing []Vars) ([]Item[string], error) {
				if len(missing) != 1 {
					t.Errorf("%d are loaded, want the one of another stamp", len(missing))
				}
				return []Item[string]{{"two", true}}, nil
			})
			if err != nil || len(items) != 2 || items[0].Value != "two" || items[1].Value != "two" {
				t.Errorf("GetMany: %v, %v", items, err)
			}
			down := errors.New("the source is down")
			_, err = v.Get(t.Context(), vars(3), func(context.Context, pgx.Tx) (string, error) { return "", unavailable("test", down) })
			if !errors.Is(err, down) {
				t.Errorf("while the source is down: %v, want its error", err)
			}
			if got, err := get(3); err != nil || got != "two" {
				t.Errorf("after that: %q, %v", got, err)
			}
		})
	}
}

// A load that took its lease under an older stamp stores what nobody believes.
func TestFillUnderAnOlderStamp(t *testing.T) {
	b := newBench(t)
	g := newGated()
	done := make(chan error, 1)
	go func() {
		_, err := view(b, "item").Get(t.Context(), Vars{"id": 1}, g.load(1))
		done <- err
	}()
	<-g.read
	b.write(1, "two")
	b.daemon.stampAnew("item")
	close(g.done)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.looked(b.c)
	b.get(view(b, "item"), 1, "two")
}

// Reader and daemon with different files: what differs is read from the source, and told once.
func TestFilesThatDiffer(t *testing.T) {
	var out bytes.Buffer
	b := newBench(t, WithLogger(slog.New(slog.NewTextHandler(&out, nil))))
	b.get(view(b, "item"), 1, "one")
	b.get(view(b, "page"), 1, "one")
	b.daemon.restamp(func(s *mapping.Stamps) {
		item := s.Families["item"]
		item.Hold = time.Second.Microseconds()
		s.Families["item"] = item
		delete(s.Families, "soft")
		s.Entities = map[string]mapping.EntityTerms{"seller": {Variables: 2}}
	})
	b.looked(b.c)
	b.write(1, "two")
	for range 3 {
		b.get(view(b, "item"), 1, "two")
		b.get(view(b, "soft"), 1, "two")
		b.get(view(b, "page"), 1, "one") // as before
	}
	b.count("cache_bypasses_total", 6, "stamp")
	v := view(b, "never")
	for range 2 {
		if _, err := v.Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, _ pgx.Tx) (string, error) { return "x", DependsOn(ctx, "seller", 7) }); err != nil {
			t.Fatal(err)
		}
	}
	if n := b.rdb.Exists(t.Context(), "never:1", "inv:dep:seller:7").Val(); n != 0 {
		t.Error("what depends on an entity that the daemon does not have is stored")
	}
	if err := b.c.Close(); err != nil {
		t.Fatal(err)
	}
	if log := out.String(); strings.Count(log, "other mappings") != 1 || !strings.Contains(log, "item: linger or max_rate is 0s here and 1s for the daemon") || !strings.Contains(log, "the entity seller") {
		t.Errorf("the log says\n%s", log)
	}
}

// Without the stamps that the hash names nothing is proved, until they are back.
func TestStampsAreEvicted(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	b.get(v, 1, "one")
	b.daemon.away(true)
	if err := b.rdb.Del(t.Context(), testStampsKey).Err(); err != nil {
		t.Fatal(err)
	}
	other, _ := b.open()
	if _, err := viewOf(b, other, "item").Get(t.Context(), Vars{"id": 1}, item(1)); err != nil {
		t.Fatal(err)
	}
	if why := other.control.look().err; !errors.Is(why, errNoStamps) {
		t.Errorf("without stamps: %v", why)
	}
	b.daemon.away(false)
	b.daemon.publish()
	b.looked(other)
	b.get(viewOf(b, other, "item"), 1, "one")
}
