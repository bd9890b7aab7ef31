package cache

import (
	"database/sql"
	"net/netip"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

type (
	kind  string
	count int16
	flag  bool
	color int
)

func (c color) String() string { return [...]string{"red", "green"}[c] }

func TestVarsReadAsPostgresPrintsThem(t *testing.T) {
	var none *int
	b := newBench(t)
	f := view(b, "item").f
	for _, tt := range []struct {
		v    any
		want string
	}{
		{"a:b", "a%3Ab"}, {"", ""}, {[]byte("x y"), "x%20y"}, {[]byte(nil), "%-"}, {nil, "%-"},
		{1, "1"}, {int64(-5), "-5"}, {int32(7), "7"}, {uint64(18446744073709551615), "18446744073709551615"},
		{true, "t"}, {flag(false), "f"}, {kind("k"), "k"}, {count(3), "3"},
		{netip.MustParseAddr("10.0.0.1"), "10.0.0.1"},
		{pgtype.UUID{Bytes: [16]byte{0: 0xab}, Valid: true}, "ab000000-0000-0000-0000-000000000000"},
		{pgtype.UUID{}, "%-"}, {pgtype.Text{String: "s", Valid: true}, "s"}, {sql.NullInt64{}, "%-"},
		{(*netip.Addr)(nil), "%-"},
	} {
		key, err := f.dataKey(Vars{"id": tt.v}, "")
		if err != nil || key != "item:"+tt.want {
			t.Errorf("%T %v: %q, %v, want item:%s", tt.v, tt.v, key, err, tt.want)
		}
	}
	for _, v := range []any{1.5, float32(1), time.Now(), time.Second, struct{}{}, []int{1}, none, color(1), pgtype.Timestamptz{Time: time.Now(), Valid: true}} {
		if key, err := f.dataKey(Vars{"id": v}, ""); err == nil {
			t.Errorf("%T is taken, as %q", v, key)
		}
	}
	_, err := f.dataKey(Vars{"id": 1, "idd": 2}, "")
	wantError(t, err, "no variable idd")
}
