package keytype_test

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/cdc-invalidator/cdc-invalidator/internal/keytype"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// refused are the built-in types without a Go value of their own. Whoever adds a type to
// Postgres has to be thought of here.
var refused = strings.Fields(`aclitem box circle gtsvector jsonpath line lseg path pg_dependencies pg_mcv_list pg_ndistinct pg_brin_bloom_summary pg_brin_minmax_multi_summary
	pg_node_tree pg_snapshot txid_snapshot point polygon refcursor tid tsquery tsvector xml`)

// Every type of the server that a column can have is one whose values are rendered, or one
// that nothing is taken for.
func TestEveryTypeOfTheServerIsThoughtOf(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, `CREATE EXTENSION IF NOT EXISTS citext`, `CREATE EXTENSION IF NOT EXISTS hstore`, `CREATE EXTENSION IF NOT EXISTS ltree`)
	conn := db.Conn(t)
	rows, err := conn.Query(t.Context(), `
		SELECT t.oid::regtype::text, t.typname::text, n.nspname = 'pg_catalog'
		FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
		WHERE t.typtype IN ('b', 'e', 'r', 'm') AND t.typname NOT LIKE 'pg\_toast%' AND NOT EXISTS (SELECT FROM pg_type e WHERE e.oid = t.typelem AND e.typtype IN ('c', 'p') AND t.typcategory = 'A') AND (n.nspname = 'public' OR n.nspname = 'pg_catalog')
		ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	type found struct {
		Name, Type string
		Catalog    bool
	}
	types, err := pgx.CollectRows(rows, pgx.RowToStructByPos[found])
	if err != nil {
		t.Fatal(err)
	}
	var families, mappings, create strings.Builder
	for i, ty := range types {
		fmt.Fprintf(&families, "  f%d: {key: \"f%d:{c%d}\", class: c}\n", i, i, i)
		fmt.Fprintf(&mappings, "  - {table: public.everything, keys: [f%d]}\n", i)
		fmt.Fprintf(&create, ", c%d %s", i, ty.Name)
	}
	db.Exec(t, `CREATE TABLE everything (`+create.String()[2:]+`)`)
	p := plan(t, families.String(), mappings.String())
	read, err := keytype.Read(t.Context(), conn, p)
	if err != nil {
		t.Fatal(err)
	}
	for i, ty := range types {
		f, _ := p.Family(fmt.Sprintf("f%d", i))
		v := read.Family(f)[0]
		if err := v.Unknown(); err != nil {
			t.Errorf("%s: %v", ty.Name, err)
			continue
		}
		form := v.Columns[0].Type.Form
		if form != keytype.Other {
			continue
		}
		if ty.Catalog && !slices.Contains(refused, ty.Type) {
			t.Errorf("the type %s has no form: decide how it is printed, or that nothing is taken for it", ty.Name)
		}
		for _, value := range goValues() {
			if key, err := v.Append(nil, value); err == nil && !isNull(value) {
				t.Errorf("%s takes %s, as %q", ty.Name, label(value), key)
			}
		}
	}
	t.Logf("%d types", len(types))
}

// Values that nobody has thought of print as the server prints them.
func TestRandomValuesPrintAsTheServerPrintsThem(t *testing.T) {
	db := servertest.Postgres(t)
	conn, err := replication.ConnectControl(t.Context(), db.URL, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer replication.CloseControl(t.Context(), conn)
	const n = 2000
	random := rand.New(rand.NewPCG(1, 2))
	var addrs []netip.Prefix
	var ats []time.Time
	var numbers []pgtype.Numeric
	var clocks []pgtype.Time
	for range n {
		var b [16]byte
		for i := range b {
			if random.IntN(3) == 0 {
				b[i] = byte(random.Uint32()) >> random.IntN(8)
			}
		}
		a := netip.AddrFrom16(b)
		if random.IntN(4) == 0 {
			a = netip.AddrFrom4([4]byte(b[:4]))
		}
		addrs = append(addrs, netip.PrefixFrom(a, random.IntN(a.BitLen()+1)))
		at := time.Unix(random.Int64N(400_000_000_000)-200_000_000_000, 0).UTC()
		unit := []int64{1, 1000, 1_000_000}[random.IntN(3)]
		ats = append(ats, at.Add(time.Duration(random.Int64N(1_000_000/unit)*unit)*time.Microsecond))
		numbers = append(numbers, pgtype.Numeric{Int: big.NewInt(random.Int64N(2_000_000) - 1_000_000), Exp: int32(random.IntN(6) - 4), Valid: true})
		clocks = append(clocks, pgtype.Time{Microseconds: random.Int64N(86_400_000_000/unit) * unit, Valid: true})
	}
	compare(t, conn, keytype.Type{Form: keytype.Inet}, "inet", addrs)
	var networks []netip.Prefix
	for _, a := range addrs {
		networks = append(networks, a.Masked())
	}
	compare(t, conn, keytype.Type{Form: keytype.CIDR}, "cidr", networks)
	compare(t, conn, keytype.Type{Form: keytype.TimestampTZ, Mod: -1}, "timestamptz", ats)
	compare(t, conn, keytype.Type{Form: keytype.Timestamp, Mod: -1}, "timestamp", ats)
	compare(t, conn, keytype.Type{Form: keytype.Time, Mod: -1}, "time", clocks)
	compare(t, conn, keytype.Type{Form: keytype.Numeric, Mod: (20<<16 | 4) + 4}, "numeric(20,4)", numbers)
}

func compare[T any](t *testing.T, conn *pgx.Conn, ty keytype.Type, name string, values []T) {
	t.Helper()
	for _, v := range values {
		// The value goes in binary, and comes back as the text of the output function.
		var server string
		r := conn.QueryRow(t.Context(), "SELECT $1::"+name, pgx.QueryResultFormats{pgx.TextFormatCode}, v)
		if err := r.Scan((*text)(&server)); err != nil {
			t.Fatalf("%s %v: %v", name, v, err)
		}
		got, null, err := ty.Append(nil, v)
		if err != nil || null || string(got) != server {
			t.Fatalf("%s %v is %q, %v, and the server prints %q", name, v, got, err, server)
		}
		if again, _, err := ty.Append(nil, server); err != nil || string(again) != server {
			t.Fatalf("%s: the server's own text %q is %q, %v", name, server, again, err)
		}
	}
}

// text is scanned from what the server sends, whatever the type.
type text string

func (s *text) ScanText(v pgtype.Text) error { *s = text(v.String); return nil }
