package cache

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

type (
	orderID int64
	status  string
)

func (id orderID) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "usr_%x", int64(id)), nil }
func (s status) String() string                 { return "OrderStatus(" + string(s) + ")" }

const typedMappings = `version: 1
source: {url: "${DATABASE_URL}", slot: {name: shop}}
redis: {url: "${REDIS_URL}"}
classes: {c: {staleness: 1m}}
keys:
  raw:   {key: "raw:{h}", class: c}
  mail:  {key: "mail:{mail|lower}", class: c}
  exact: {key: "exact:{mail}", class: c}
  ip:    {key: "ip:{ip}", class: c}
  net:   {key: "net:{net}", class: c}
  price: {key: "price:{price}", class: c}
  span:  {key: "span:{span}", class: c}
  big:   {key: "big:{id}", class: c}
  word:  {key: "word:{word}", class: c}
  at:    {key: "at:{at}", class: c}
  mixed: {key: "mixed:{v}", class: c}
  list:  {key: "list:{mail|lower}:{version}:{page}", version: "list:{mail|lower}", class: c}
mappings:
  - table: public.things
    keys: [raw, mail, exact, ip, net, price, span, big, word, at, list, {mixed: {v: id}}]
    dependents: ["thing:{price}"]
  - {table: public.others, keys: [mixed]}
`

func openTyped(t *testing.T) (*bench, *Client) {
	t.Helper()
	b := newBench(t)
	b.db.Exec(t, `CREATE EXTENSION IF NOT EXISTS citext`,
		`CREATE TABLE things (id bigint PRIMARY KEY, h bytea, mail citext, ip inet, net cidr, price numeric(10,2), span interval, word text, at timestamptz(3))`,
		`CREATE TABLE others (v numeric(8,1))`)
	b.mappings = filepath.Join(t.TempDir(), "typed.yaml")
	if err := os.WriteFile(b.mappings, []byte(typedMappings), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := mapping.LoadOffline(b.mappings)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := mapping.Compile(f)
	if err != nil {
		t.Fatal(err)
	}
	b.daemon.restamp(func(s *mapping.Stamps) { // it follows these families, too
		follow(t, s, b.db, plan)
	})
	c, _ := b.open()
	return b, c
}

// Keys are those of the daemon, whatever the Go value is, or the read is refused and says what
// to pass.
func TestVarsReadAsPostgresPrintsTheColumn(t *testing.T) {
	b, c := openTyped(t)
	at := time.Date(2024, 3, 1, 12, 34, 56, 789e6, time.FixedZone("east", 3600))
	loaded := func(context.Context, pgx.Tx) (string, error) { return "x", nil }
	get := func(family string, vars Vars) error {
		_, err := viewOf(b, c, family).Get(t.Context(), vars, loaded)
		return err
	}
	for _, tt := range []struct {
		family string
		v      any
		key    string // or, after a '!', what the refusal says
	}{
		{"raw h", []byte{0, 0xff}, "raw:%5Cx00ff"},
		{"mail mail", "Bob@Example.com", "mail:bob@example.com"},
		{"exact mail", "Bob@Example.com", "!column public.things.mail is citext"},
		{"exact mail", "Bob@Example.com", "!{variable|lower}"},
		{"exact mail", RowText("Bob@Example.com"), "exact:Bob@Example.com"},
		{"ip ip", netip.MustParsePrefix("10.0.0.1/32"), "ip:10.0.0.1"},
		{"net net", netip.MustParseAddr("10.0.0.1"), "net:10.0.0.1/32"},
		{"price price", pgtype.Numeric{Int: big.NewInt(15), Exp: -1, Valid: true}, "price:1.50"},
		{"price price", 3, "price:3.00"},
		{"price price", 1.5, "!a float64 is not what the column holds: pass an integer, a decimal type"},
		{"span span", pgtype.Interval{Months: 1, Days: 2, Valid: true}, "!column public.things.span is interval: a pgtype.Interval, whose Value is a string, need not be the text of the row"},
		{"span span", RowText("1 mon 2 days"), "span:1%20mon%202%20days"},
		{"big id", orderID(255), "big:255"},
		{"big id", "007", "!column public.things.id is bigint: a string is not the text that Postgres prints: pass an integer"},
		{"word word", status("new"), "!a cache.status has a text of its own"},
		{"word word", "new", "word:new"},
		{"at at", at, "at:2024-03-01%2011%3A34%3A56.789+00"},
		{"at at", at.Add(time.Microsecond), "!is finer than what the column holds"},
		{"mixed v", 7, "!public.others.v is numeric(8,1) and column public.things.id is bigint, which print it in different ways"},
	} {
		family, name, _ := strings.Cut(tt.family, " ")
		err := get(family, Vars{name: tt.v})
		if want, refused := strings.CutPrefix(tt.key, "!"); refused {
			if !errors.Is(err, ErrVars) || !strings.Contains(fmt.Sprint(err), want) || !strings.Contains(fmt.Sprint(err), "family "+family+": variable "+name) {
				t.Errorf("%s %T: %v, want %s", tt.family, tt.v, err, want)
			}
			if s, ok := tt.v.(string); ok && strings.Contains(fmt.Sprint(err), s) {
				t.Errorf("the error holds the value: %v", err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s %T: %v", tt.family, tt.v, err)
		} else if n := b.rdb.Exists(t.Context(), tt.key).Val(); n != 1 {
			t.Errorf("%s %T: there is no key %s", tt.family, tt.v, tt.key)
		}
	}
	// The version key and the data key agree, and what no mapping tells is free.
	if err := get("list", Vars{"mail": "Bob@Example.com", "page": 2}); err != nil {
		t.Error(err)
	}
	version := b.rdb.Get(t.Context(), "list:bob@example.com").Val()
	if b.rdb.Exists(t.Context(), "list:bob@example.com:"+version+":2").Val() != 1 {
		t.Errorf("there is no list under the version %q", version)
	}
	wantError(t, get("big", Vars{"id": 1, "idd": 2}), "no variable idd")
	wantError(t, get("big", Vars{}), "no value for {id}")

	_, err := viewOf(b, c, "big").Get(t.Context(), Vars{"id": 9}, func(ctx context.Context, tx pgx.Tx) (string, error) {
		return "x", errors.Join(DependsOn(ctx, "thing", 3), nil)
	})
	if err != nil || len(b.dependents("thing:3.00")) != 1 {
		t.Errorf("the entity has %v, %v", b.dependents("thing:3.00"), err)
	}
}

// While the source does not say of what types columns are, reads go past the cache; once it
// does, they do not. What DDL changes is known when it is asked again.
func TestTypesAreAskedForUntilTheSourceTells(t *testing.T) {
	b := newBench(t)
	b.db.Exec(t, `ALTER TABLE items RENAME TO away`)
	c, registry := b.open()
	v := viewOf(b, c, "item")
	past := func() {
		t.Helper()
		if s, err := v.Get(t.Context(), Vars{"id": 1}, func(context.Context, pgx.Tx) (string, error) { return "past", nil }); err != nil || s != "past" {
			t.Fatalf("%q, %v", s, err)
		}
		items, err := v.GetMany(t.Context(), []Vars{{"id": 1}, {"id": 2}}, func(_ context.Context, _ pgx.Tx, missing []Vars) ([]Item[string], error) {
			return make([]Item[string], len(missing)), nil
		})
		if err != nil || len(items) != 2 {
			t.Fatalf("%v, %v", items, err)
		}
		if n := b.rdb.Exists(t.Context(), "item:1").Val(); n != 0 {
			t.Fatal("something is cached")
		}
	}
	past()
	if n := counted(t, registry, "cache_bypasses_total", "types"); n != 3 {
		t.Errorf("%v reads have gone past the cache for the types, want 3", n)
	}
	if err := v.Invalidate(t.Context(), Vars{"id": 1}); err == nil {
		t.Error("a key that cannot be made is invalidated")
	}
	b.db.Exec(t, `ALTER TABLE away RENAME TO items`)
	c.types.outdate()
	b.get(v, 1, "one")
	if n := b.rdb.Exists(t.Context(), "item:1").Val(); n != 1 {
		t.Error("nothing is cached")
	}
}

// DDL changes what a value's text is. Whoever makes keys as before stores and returns nothing, from the moment on
// at which the daemon says so; and no entry is believed under a key that was made with other types than the daemon's.
func TestKeysFollowTheDaemonsTypes(t *testing.T) {
	b := newBench(t, WithL1(100))
	file, err := mapping.LoadOffline(b.mappings)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := mapping.Compile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{"item", "list"} {
		t.Run(family, func(t *testing.T) {
			b := *b
			b.TB = t
			v := view(&b, family)
			vars := func(id int) Vars {
				if family == "list" {
					return Vars{"shop": id, "q": 1}
				}
				return Vars{"id": id}
			}
			get := func() string {
				t.Helper()
				s, err := v.Get(t.Context(), vars(1), item(1))
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			many := func() string {
				t.Helper()
				items, err := v.GetMany(t.Context(), []Vars{vars(1)}, func(ctx context.Context, tx pgx.Tx, _ []Vars) ([]Item[string], error) {
					s, err := item(1)(ctx, tx)
					return []Item[string]{{s, true}}, err
				})
				if err != nil {
					t.Fatal(err)
				}
				return items[0].Value
			}
			get()
			// The library reads of the DDL before the daemon has: what it makes now the daemon does not invalidate.
			b.db.Exec(t, `ALTER TABLE items ALTER id TYPE numeric(6,1)`)
			b.c.types.outdate()
			for _, read := range []func() string{get, many} {
				b.write(1, "two")
				if got := read(); got != "two" {
					t.Errorf("before the daemon knows: %q", got)
				}
				b.write(1, "three")
				if got := read(); got != "three" {
					t.Errorf("before the daemon knows, again: %q", got)
				}
			}
			if n := b.rdb.Exists(t.Context(), family+":1.0").Val(); n != 0 {
				t.Error("a key was made that the daemon does not make")
			}
			// The daemon knows: with the next look the library does, too.
			b.daemon.restamp(func(s *mapping.Stamps) { follow(t, s, b.db, plan) })
			b.looked(b.c)
			if got := get(); got != "three" {
				t.Errorf("under the new stamp: %q", got)
			}
			if n := b.rdb.Exists(t.Context(), family+":1.0").Val(); n != 1 {
				t.Error("the key is not that of the new type")
			}
			// The other way round: the daemon knows of DDL that the library has not read of.
			b.db.Exec(t, `ALTER TABLE items ALTER id TYPE int USING id::int`)
			b.daemon.restamp(func(s *mapping.Stamps) { follow(t, s, b.db, plan) })
			b.looked(b.c)
			b.write(1, "four")
			if got := get(); got != "four" {
				t.Errorf("a key of before is believed: %q", got)
			}
			if n := b.rdb.Exists(t.Context(), family+":1").Val(); n != 1 {
				t.Error("the key is not that of the type of now")
			}
		})
	}
}

// A read that made its key before DDL was known does not store under it after.
func TestKeyOfBeforeTheStampMoved(t *testing.T) {
	b := newBench(t)
	_, h := b.tapped()
	v := view(b, "item")
	b.get(v, 2, "one")
	file, err := mapping.LoadOffline(b.mappings)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := mapping.Compile(file)
	if err != nil {
		t.Fatal(err)
	}
	h.once("get", "item:1", func() {
		b.db.Exec(t, `ALTER TABLE items ALTER id TYPE numeric(6,1)`)
		b.daemon.restamp(func(s *mapping.Stamps) { follow(t, s, b.db, plan) })
		b.looked(b.c)
	})
	b.get(v, 1, "one")
	if n := b.rdb.Exists(t.Context(), "item:1").Val(); n != 0 {
		t.Error("it is stored under the key of before")
	}
	if n := b.rdb.Exists(t.Context(), "item:1.0").Val(); n != 1 {
		t.Error("it is not stored under the key of now")
	}
}

// The source cannot be asked at Open: the first key is made once it can.
func TestTypesWhenTheSourceIsDownAtOpen(t *testing.T) {
	b, server := newPrivateBench(t)
	if err := server.Stop(t.Context(), localserver.Immediate); err != nil {
		t.Fatal(err)
	}
	c, registry := b.open()
	v := viewOf(b, c, "item")
	if _, err := v.Get(t.Context(), Vars{"id": 1}, item(1)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	if n := counted(t, registry, "cache_bypasses_total", "types"); n != 1 {
		t.Errorf("%v reads have gone past the cache for the types, want 1", n)
	}
	if err := server.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a read is cached", func() bool {
		_, err := v.Get(t.Context(), Vars{"id": 1}, item(1))
		return err == nil && b.rdb.Exists(t.Context(), "item:1").Val() == 1
	})
}
