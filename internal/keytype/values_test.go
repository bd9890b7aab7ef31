package keytype_test

import (
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
)

type (
	userID   int64
	plainID  int64
	count    uint16
	flag     bool
	status   string
	plain    string
	raw      []byte
	valued   string
	valuedID int64
	decimal  string
	id16     [16]byte
)

func (id userID) MarshalText() ([]byte, error)  { return fmt.Appendf(nil, "usr_%x", int64(id)), nil }
func (s status) String() string                 { return "OrderStatus(" + string(s) + ")" }
func (v valued) Value() (driver.Value, error)   { return string(v), nil }
func (v valued) String() string                 { return "valued " + string(v) }
func (v valuedID) Value() (driver.Value, error) { return int64(v), nil }
func (v valuedID) MarshalText() ([]byte, error) { return []byte("usr"), nil }
func (d decimal) Value() (driver.Value, error)  { return string(d), nil }

func pointer[T any](v T) *T { return &v }

// goValues are values of every type that a key is likely to be asked for with, many of them such
// that they find a row of one of the columns.
func goValues() []any {
	at := time.Date(2024, 3, 1, 12, 34, 56, 789_000_000, time.UTC)
	second := at.Truncate(time.Second)
	rounded := second.Add(time.Second)
	east := time.FixedZone("east", 5*3600+1800)
	ides := time.Date(-43, 3, 15, 0, 0, 0, 0, time.UTC)
	far := time.Date(12024, 3, 1, 0, 0, 0, 0, time.UTC)
	day := time.Date(2024, 3, 1, 0, 0, 0, 0, time.UTC)
	id := uuid.MustParse(someUUID)
	network := func(s string) *net.IPNet { _, n, _ := net.ParseCIDR(s); return n }
	mac, _ := net.ParseMAC("08:00:2b:01:02:03")
	mac8, _ := net.ParseMAC("08:00:2b:01:02:03:04:05")
	numeric := func(n int64, exp int32) pgtype.Numeric {
		return pgtype.Numeric{Int: big.NewInt(n), Exp: exp, Valid: true}
	}
	values := []any{
		nil, (*int)(nil), (*string)(nil), (*time.Time)(nil), (*uuid.UUID)(nil), []byte(nil), raw(nil), net.IP(nil), (*net.IPNet)(nil), net.HardwareAddr(nil),
		sql.NullInt64{}, sql.NullString{}, sql.NullTime{}, pgtype.Int8{}, pgtype.Text{}, pgtype.UUID{}, pgtype.Numeric{}, pgtype.Date{}, pgtype.Time{}, pgtype.Timestamptz{},
		pgtype.Bits{}, pgtype.Interval{}, netip.Addr{}, netip.Prefix{},

		7, int8(7), int16(7), int32(7), int64(7), uint(7), uint8(7), uint16(7), uint32(7), uint64(7), -7, int64(-7), 0, 3, 1200, int64(9223372036854775807), uint32(4294967295),
		userID(255), plainID(255), plainID(7), count(7), valuedID(7), pointer(7), pointer(int64(-7)), pointer(userID(255)), pointer(plainID(7)), pointer(valuedID(7)),
		pgtype.Int2{Int16: 7, Valid: true}, pgtype.Int4{Int32: 7, Valid: true}, pgtype.Int8{Int64: 7, Valid: true}, pgtype.Uint32{Uint32: 7, Valid: true}, sql.NullInt64{Int64: 7, Valid: true}, sql.Null[int64]{V: 7, Valid: true},
		sql.NullInt32{Int32: 7, Valid: true}, sql.NullInt16{Int16: 7, Valid: true},
		true, false, flag(true), pointer(true), pgtype.Bool{Bool: true, Valid: true}, sql.NullBool{Bool: true, Valid: true},
		1.5, float32(1.5), 0.0, 3.0, 7.0, pointer(1.5), pgtype.Float4{Float32: 1.5, Valid: true}, pgtype.Float8{Float64: 1.5, Valid: true}, sql.NullFloat64{Float64: 1.5, Valid: true},
		json.Number("7"), json.Number("2.5"), json.Number("1.50"), json.Number("1.2e3"), json.RawMessage("7"),
		decimal("1.5"), decimal("3"), decimal("7"), decimal("1.5e0"), decimal("-0.05"), decimal("NaN"), decimal("Infinity"), big.NewInt(7), *big.NewInt(7), big.NewInt(1200), big.NewRat(3, 2), big.NewFloat(1.5),
		numeric(15, -1), numeric(25, -1), numeric(150, -2), numeric(3, 0), numeric(12, 2), numeric(-5, -2), numeric(0, 0), numeric(0, -5), numeric(12, -5), numeric(70, -1), pgtype.Numeric{NaN: true, Valid: true},
		pgtype.Numeric{InfinityModifier: pgtype.Infinity, Valid: true}, pointer(numeric(15, -1)),
		status("new"), plain("new"), plain("7"), valued("new"), valued("7"), pointer("new"), pointer(status("new")), pointer(plain("new")), pgtype.Text{String: "new", Valid: true},
		sql.NullString{String: "new", Valid: true}, sql.Null[string]{V: "new", Valid: true}, raw("new"), []byte("new"), []byte("7"), []byte{0, 0xff}, []byte{}, raw{0, 0xff}, pointer([]byte{0, 0xff}), 'x', byte('x'),
		at, second, rounded, at.In(east), at.Local(), at.Add(time.Nanosecond), at.Add(250 * time.Microsecond), ides, far, day, day.In(east), pointer(at), time.Duration(7), time.Second, time.March,
		pgtype.Date{Time: day, Valid: true}, pgtype.Date{Time: ides, Valid: true}, pgtype.Date{InfinityModifier: pgtype.Infinity, Valid: true}, pgtype.Date{Time: day.In(east), Valid: true},
		pgtype.Time{Microseconds: 45296789000, Valid: true}, pgtype.Time{Microseconds: 45297000000, Valid: true}, pgtype.Time{Microseconds: 86400000000, Valid: true}, pgtype.Time{Valid: true},
		pgtype.Timestamp{Time: at, Valid: true}, pgtype.Timestamp{Time: rounded, Valid: true}, pgtype.Timestamp{Time: ides, Valid: true}, pgtype.Timestamp{InfinityModifier: pgtype.Infinity, Valid: true}, pgtype.Timestamp{Time: at.In(east), Valid: true},
		pgtype.Timestamptz{Time: at, Valid: true}, pgtype.Timestamptz{Time: at.In(east), Valid: true}, pgtype.Timestamptz{Time: ides, Valid: true}, pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true},
		sql.NullTime{Time: at, Valid: true}, sql.Null[time.Time]{V: at, Valid: true},
		pgtype.Interval{Months: 1, Valid: true}, pgtype.Interval{Months: 1, Days: 2, Valid: true}, pgtype.Interval{Days: 30, Valid: true}, 720 * time.Hour,
		netip.MustParseAddr("10.0.0.1"), netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.0.0.1/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("::1"), netip.MustParseAddr("::1.2.3.4"),
		netip.MustParseAddr("::ffff:1.2.3.4"), netip.MustParseAddr("2001:db8::1"), netip.MustParsePrefix("2001:db8:0:1:1:1:1:1/64"), netip.MustParseAddr("1:0:0:2::3"), netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("::"),
		netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("0.0.0.0/0"), pointer(netip.MustParseAddr("10.0.0.1")),
		net.ParseIP("10.0.0.1"), net.ParseIP("10.0.0.1").To4(), net.ParseIP("::1"), network("10.0.0.0/8"), *network("10.0.0.0/8"), network("10.0.0.1/32"), mac, mac8,
		id, [16]byte(id), id16(id), pointer(id), pointer([16]byte(id)), pgtype.UUID{Bytes: id, Valid: true}, uuid.NullUUID{UUID: id, Valid: true}, id[:],
		pgtype.Bits{Bytes: []byte{0x50}, Len: 4, Valid: true}, pgtype.Bits{Bytes: []byte{0x80}, Len: 1, Valid: true},
		[]string{"new"}, []int64{7}, [][]byte{{7}}, []uuid.UUID{id}, []status{"new"}, pgtype.FlatArray[string]{"new"}, pgtype.Array[int64]{Elements: []int64{7}, Dims: []pgtype.ArrayDimension{{Length: 1, LowerBound: 1}}, Valid: true},
		pgtype.Range[pgtype.Int8]{Lower: pgtype.Int8{Int64: 1, Valid: true}, Upper: pgtype.Int8{Int64: 5, Valid: true}, LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true},
		pgtype.Multirange[pgtype.Range[pgtype.Int8]]{{Lower: pgtype.Int8{Int64: 1, Valid: true}, Upper: pgtype.Int8{Int64: 5, Valid: true}, LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true}},
		pgtype.Point{P: pgtype.Vec2{X: 1, Y: 2}, Valid: true}, pgtype.TID{OffsetNumber: 1, Valid: true}, map[string]any{"a": 1}, struct{ A int }{1}, struct{}{}, []any{7}, complex(1, 0), func() {}, make(chan int), fmt.Errorf("new"),
	}
	// Texts, as Postgres prints values, and as people write them.
	seen := map[string]bool{}
	for _, c := range columns {
		for _, row := range c.rows {
			for _, s := range []string{row, strings.ToUpper(row), strings.ToLower(row), " " + row, row + " ", "0" + row, "+" + row, row + "0", row + ".0", row + "/32", row + "+00", row + "Z",
				strings.ReplaceAll(row, "-", ""), strings.ReplaceAll(row, ":", "-"), strings.ReplaceAll(row, " ", "T"), "{" + row + "}", row + "::text", "00" + row + ":00"} {
				if !seen[s] {
					seen[s] = true
					values = append(values, s)
				}
			}
		}
	}
	for _, s := range []string{"true", "TRUE", "yes", "on", "1", "007", "1e0", "15e-1", "01.50", "1_000", "0x7", "Infinity", "inf", "nan", "2024-3-1", "March 1, 2024", "20240301", "2024-03-01 12:34:56.789000", "2024-03-01 18:04:56.789+05:30",
		"2024-03-01T12:34:56.789Z", "12:34:56.7890", "12:34", "10.0.0.1/255.0.0.0", "10", "::0001", "::ffff:102:304", "0800.2b01.0203", "08-00-2b-01-02-03", "{" + someUUID + "}", "16/b374d848", "0016/B374D848", "B'0101'", "x5", "é", "e\u0301",
		"Ａ", "BOB@EXAMPLE.COM", "bob@example.com", "NEW", "'new'", strings.Repeat("n", 64), strings.Repeat("n", 70)} {
		if !seen[s] {
			seen[s] = true
			values = append(values, s)
		}
	}
	return values
}

// isNull says whether pgx sends the value as NULL.
func isNull(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case netip.Addr:
		return !v.IsValid()
	case netip.Prefix:
		return v == netip.Prefix{}
	case driver.Valuer:
		if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer && r.IsNil() {
			return true
		}
		inner, err := v.Value()
		return err == nil && inner == nil
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Pointer, reflect.Slice:
		return r.IsNil()
	}
	return false
}

func label(v any) string { return fmt.Sprintf("%T %v", v, v) }

// wantTaken are the Go types of values that find a row and are taken, by the types of columns.
// What is not here is refused: docs/reader.md says the same to people.
var wantTaken = map[string]string{
	"smallint, integer, bigint, oid, xid, cid, xid8": "*big.Int *int *int64 *plainID *userID *valuedID count decimal int int16 int32 int64 int8 json.Number pgtype.Int2 pgtype.Int4 pgtype.Int8 pgtype.Numeric pgtype.Uint32 plain plainID sql.NullInt16 sql.NullInt32 sql.NullInt64 sql.Null[int64] string uint uint16 uint32 uint64 uint8 userID valued valuedID",
	"boolean":       "*bool bool flag pgtype.Bool sql.NullBool string",
	"text, varchar": "*pgtype.Numeric *plain *string []uint8 decimal json.RawMessage pgtype.Numeric pgtype.Text plain raw sql.NullString sql.Null[string] string valued",
	"name":          "*plain *string []uint8 pgtype.Text plain raw sql.NullString sql.Null[string] string valued",
	"char(n)":       "*plain *string []uint8 decimal json.RawMessage pgtype.Text plain raw sql.NullString sql.Null[string] string valued",
	`"char"`:        "[]uint8 decimal json.RawMessage plain string valued",
	"enums":         "*plain *string pgtype.Text plain sql.NullString sql.Null[string] string valued",
	"citext":        "*int *plain *plainID *string *valuedID count decimal int int16 int32 int64 int8 json.RawMessage pgtype.Int2 pgtype.Int4 pgtype.Int8 pgtype.Text pgtype.Uint32 plain plainID sql.NullInt16 sql.NullInt32 sql.NullInt64 sql.NullString sql.Null[int64] sql.Null[string] string uint uint16 uint32 uint64 uint8 valued valuedID",
	"uuid":          "*[16]uint8 *uuid.UUID [16]uint8 id16 pgtype.UUID string uuid.NullUUID uuid.UUID",
	"bytea":         "*[]uint8 []uint8 raw string",
	"numeric(p,s)":  "*big.Int *int *pgtype.Numeric *plainID *valuedID count decimal int int16 int32 int64 int8 json.Number pgtype.Int2 pgtype.Int4 pgtype.Int8 pgtype.Numeric pgtype.Uint32 plain plainID sql.NullInt16 sql.NullInt32 sql.NullInt64 sql.Null[int64] string time.Month uint uint16 uint32 uint64 uint8 valued valuedID",
	"numeric":       "*big.Int *int *pgtype.Numeric *plainID *valuedID count decimal int int16 int32 int64 int8 json.Number pgtype.Int2 pgtype.Int4 pgtype.Int8 pgtype.Numeric pgtype.Uint32 plain plainID sql.NullInt16 sql.NullInt32 sql.NullInt64 sql.Null[int64] string time.Month uint uint16 uint32 uint64 uint8 valued valuedID",
	"date":          "pgtype.Date pgtype.Timestamp pgtype.Timestamptz string time.Time",
	"time":          "pgtype.Time string",
	"timetz":        "string",
	"timestamp":     "*time.Time pgtype.Date pgtype.Timestamp pgtype.Timestamptz sql.NullTime sql.Null[time.Time] string time.Time",
	"timestamptz":   "*time.Time pgtype.Date pgtype.Timestamp pgtype.Timestamptz sql.NullTime sql.Null[time.Time] string time.Time",
	"inet":          "*net.IPNet *netip.Addr net.IP netip.Addr netip.Prefix string",
	"cidr":          "*net.IPNet *netip.Addr net.IP net.IPNet netip.Addr netip.Prefix string",
	"macaddr":       "net.HardwareAddr string",
	"macaddr8":      "net.HardwareAddr string",
	"bit(n)":        "pgtype.Bits string",
	"varbit":        "pgtype.Bits string",
	"pg_lsn":        "string",
}
