package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"math/big"
	"net/netip"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

type accountID int64

func (id accountID) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "acc_%x", int64(id)), nil }

const valuesMappings = `
classes:
  critical: {staleness: 5s}
keys:
  raw:   {key: "raw:{h}", class: critical, ttl: 10m}
  mail:  {key: "mail:{mail|lower}", class: critical, ttl: 10m}
  ip:    {key: "ip:{ip}", class: critical, ttl: 10m}
  net:   {key: "net:{net}", class: critical, ttl: 10m}
  price: {key: "price:{price}", class: critical, ttl: 10m}
  span:  {key: "span:{span}", class: critical, ttl: 10m}
  id:    {key: "id:{id}", class: critical, ttl: 10m}
  word:  {key: "word:{word}", class: critical, ttl: 10m}
  code:  {key: "code:{code}", class: critical, ttl: 10m}
mappings:
  - {table: public.vals, keys: [raw, mail, ip, net, price, span, id, word, code]}
`

// What the library caches under a Go value is removed by the daemon when its row changes, for
// every type: read, change, wait, read again.
func TestTheDaemonInvalidatesWhatTheLibraryCaches(t *testing.T) {
	w := newWorld(t, `
		CREATE EXTENSION IF NOT EXISTS citext;
		CREATE DOMAIN code AS char(6);
		CREATE TABLE vals (id bigint PRIMARY KEY, h bytea, mail citext, ip inet, net cidr, price numeric(10,2), span interval, word text, code code, v int);
		ALTER TABLE vals REPLICA IDENTITY FULL;
		INSERT INTO vals VALUES (255, '\x00ff', 'Bob@Example.com', '10.0.0.1', '10.0.0.1/32', 1.5, '1 mon 2 days', 'new', 'ab', 0)`, valuesMappings)
	w.start()
	pool, err := pgxpool.New(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	c, err := cache.Open(t.Context(), w.rdb, pool, cache.WithMappings(w.config), cache.WithCodec(cache.Raw))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	n := 0
	for _, tt := range []struct {
		family, name string
		v            any
	}{
		{"raw", "h", []byte{0, 0xff}},
		{"mail", "mail", "bob@example.COM"},
		{"ip", "ip", netip.MustParsePrefix("10.0.0.1/32")},
		{"net", "net", netip.MustParseAddr("10.0.0.1")},
		{"price", "price", pgtype.Numeric{Int: big.NewInt(15), Exp: -1, Valid: true}},
		{"price", "price", json.Number("1.5")},
		{"span", "span", cache.RowText("1 mon 2 days")},
		{"id", "id", accountID(255)},
		{"word", "word", "new"},
		{"code", "code", "ab"},
	} {
		view, err := cache.Family[string](c, tt.family)
		if err != nil {
			t.Fatal(err)
		}
		get := func() string {
			t.Helper()
			s, err := view.Get(t.Context(), cache.Vars{tt.name: tt.v}, func(ctx context.Context, tx pgx.Tx) (s string, err error) {
				err = tx.QueryRow(ctx, `SELECT v::text FROM vals WHERE id = 255`).Scan(&s)
				return s, err
			})
			if err != nil {
				t.Fatalf("%s %T: %v", tt.family, tt.v, err)
			}
			return s
		}
		if got := get(); got != fmt.Sprint(n) {
			t.Errorf("%s %T: %s, want %d", tt.family, tt.v, got, n)
		}
		cached := len(w.cached())
		if cached == 0 {
			t.Errorf("%s %T: nothing is cached", tt.family, tt.v)
		}
		n++
		w.exec(fmt.Sprintf(`UPDATE vals SET v = %d`, n))
		w.eventually("what is cached of "+tt.family+" is removed", func() bool { return len(w.cached()) == 0 })
		if got := get(); got != fmt.Sprint(n) {
			t.Errorf("%s %T: after the change it is %s, want %d", tt.family, tt.v, got, n)
		}
	}
}
