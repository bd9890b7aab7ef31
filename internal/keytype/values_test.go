package keytype_test

import (
	"bytes"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"math"
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

// fixed is a decimal whose text is a Stringer's, as libraries for decimals have it; its Value is that text.
type fixed struct {
	n     int64
	scale int
}

func (f fixed) String() string {
	s := fmt.Sprint(f.n)
	return s[:len(s)-f.scale] + "." + s[len(s)-f.scale:]
}
func (f fixed) Value() (driver.Value, error) { return f.String(), nil }

// printed has a text, and no Value.
type printed int64

func (p printed) String() string { return fmt.Sprint(float64(p) / 10) }

// named gives a type based on a string as its Value.
type named int64

func (n named) Value() (driver.Value, error) { return plain(fmt.Sprint(int64(n))), nil }

// stamped is a struct around a time.
type stamped struct{ time.Time }

// url is a struct with a text.
type url struct{ s string }

func (u url) String() string { return u.s }

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
	values = append(values,
		// Pointers to pointers, Valuers within Valuers, and what is NULL in them.
		pointer(pointer(7)), pointer((*int)(nil)), pointer(any(7)), sql.Null[userID]{V: 255, Valid: true}, sql.Null[plain]{V: "new", Valid: true}, sql.Null[time.Time]{}, sql.NullByte{Byte: 7, Valid: true}, sql.NullFloat64{Float64: math.Copysign(0, -1), Valid: true},
		pgtype.Text{}, pgtype.Bool{}, pgtype.Timestamp{}, pgtype.Float8{}, pgtype.Range[pgtype.Int8]{},
		// Numbers: of packages for them, beyond 64 bits, and such as print otherwise than they are meant.
		uint64(18446744073709551615), big.NewInt(-7), (*big.Int)(nil), new(big.Int).Lsh(big.NewInt(1), 64), new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 64), big.NewInt(1)), *big.NewFloat(7), big.NewFloat(1e16), big.NewRat(7, 1), (*big.Float)(nil),
		math.Copysign(0, -1), math.NaN(), math.Inf(1), 1e16, 0.1, float32(0.1), float32(16777216), 10000000000000000, int64(10000000000000000),
		json.Number("1e16"), json.Number("-0"), json.Number("-0.0"), json.Number("0.00"), json.Number("1E-10"), json.Number("007"), json.Number(""), json.Number("10000000000000000"), json.Number("1.1"),
		decimal("-1.10"), decimal("1E+16"), decimal("-0"), decimal("123456789012345678901234567890.5"), decimal(""), decimal("+7"), decimal("1e100"), fixed{15, 1}, fixed{700, 2}, &fixed{15, 1}, named(7), printed(15),
		// Times: with a monotonic clock, of other years and zones.
		time.Now(), at.Round(0), time.Date(2024, 3, 1, 12, 34, 56, 789e6, time.FixedZone("", 0)), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Time{}, time.Date(0, 12, 31, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC),
		time.Date(294276, 12, 31, 23, 59, 59, 999999000, time.UTC), time.Date(294277, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-4712, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(5874897, 12, 31, 0, 0, 0, 0, time.UTC), pgtype.Date{Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), Valid: true},
		pgtype.Date{Time: time.Date(2024, 3, 1, 12, 0, 0, 0, time.UTC), Valid: true}, pgtype.Date{InfinityModifier: pgtype.NegativeInfinity, Valid: true}, pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}, pgtype.Time{Microseconds: 1, Valid: true}, pgtype.Time{Microseconds: 86399999999, Valid: true}, stamped{at}, &stamped{at},
		// Addresses.
		net.IPv4(10, 0, 0, 1), net.IPv4zero, net.IPv6zero, net.IP{}, net.ParseIP("::ffff:10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParsePrefix("::ffff:0.0.0.0/96"), netip.MustParsePrefix("10.0.0.0/31"), &net.IPNet{IP: net.IPv4(10, 0, 0, 0), Mask: net.CIDRMask(8, 32)},
		&net.IPNet{IP: net.IPv4(10, 0, 0, 0).To4(), Mask: net.IPMask{255, 0, 255, 0}}, &net.IPAddr{IP: net.IPv4(10, 0, 0, 1).To4()}, netip.AddrPort{}, net.HardwareAddr{}, net.HardwareAddr{8, 0, 0x2b}, pointer(mac),
		// Texts that are bytes, and bytes that are no text.
		[]byte("50%"), []byte("a\x00b"), []byte("\xff\xfe"), "a\x00b", "\xff\xfe", "\xc3", "e\u0301", "\u00e9", []byte("e\u0301"), []rune("new"), [3]byte{'n', 'e', 'w'}, [16]int8{}, json.RawMessage(`"new"`), bytes.NewBufferString("new"), strings.NewReader("new"), url{"new"}, &url{"new"},
		pgtype.Bits{Bytes: []byte{0x55, 0x00}, Len: 9, Valid: true}, pgtype.Bits{Bytes: []byte{0x40}, Len: 2, Valid: true}, pgtype.Bits{Bytes: nil, Len: 0, Valid: true}, []bool{true}, pgtype.Bits{Bytes: []byte{0x5f}, Len: 4, Valid: true},
		[]*string{nil, pointer("NULL"), pointer(`a"b`), pointer(`c\d`), pointer("")}, []any{nil, "NULL"}, [1]string{"new"}, pgtype.Array[pgtype.Text]{Valid: true}, struct {
			A int
			B string
		}{1, "x"},
	)
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
		"2024-03-01T12:34:56.789Z", "12:34:56.7890", "12:34", "10.0.0.1/255.0.0.0", "10", "::0001", "::ffff:102:304", "0800.2b01.0203", "08-00-2b-01-02-03", "{" + someUUID + "}", "16/b374d848", "0016/B374D848", "B'0101'", "x5", "é", "{" + strings.ToUpper(someUUID) + "}", "urn:uuid:" + someUUID, "T", "False", "-0", "0.0", "-0.00", "1e16", "1E+16", "10000000000000000", "today", "now", "epoch", "infinity ", "2024-060", "J2460371", "2024-03-01 BC", "12:34:56 PM", "1 day", "@ 1 mon", "P1M", "1-2", "10.0.0.1/8 ", "10.0.0.0/08", "010.0.0.1", "::FFFF:10.0.0.1", "0/0 ", "00/1", "ff", "0x10", "$1.00", "1,234.50", "%2D", "%-", "{v}", "a\nb", "a\r\nb", "a:b", "\u200bnew", "new\u200b", "\ufeffnew", "ＮＥＷ", "e\u0301",
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
	case reflect.Pointer:
		return r.IsNil() || isNull(r.Elem().Interface())
	case reflect.Slice:
		return r.IsNil()
	}
	return false
}

func label(v any) string { return fmt.Sprintf("%T %v", v, v) }

// wantTaken are the Go types of values that find a row and are taken, by the types of columns.
// What is not here is refused: docs/reader.md says the same to people.
var wantTaken = map[string]string{
	"smallint, integer, bigint, oid, xid, cid, xid8": "**int *big.Int *int *int64 *plainID *userID *valuedID count decimal int int16 int32 int64 int8 json.Number named pgtype.Int2 pgtype.Int4 pgtype.Int8 pgtype.Numeric pgtype.Uint32 plain plainID sql.NullByte sql.NullInt16 sql.NullInt32 sql.NullInt64 sql.Null[github.com/cdc-invalidator/cdc-invalidator/internal/userID] sql.Null[int64] string uint uint16 uint32 uint64 uint8 userID valued valuedID",
	"boolean":       "*bool bool flag pgtype.Bool sql.NullBool string",
	"text, varchar": "*fixed *pgtype.Numeric *plain *string []uint8 decimal fixed json.RawMessage named pgtype.Bits pgtype.Numeric pgtype.Text plain raw sql.NullString sql.Null[github.com/cdc-invalidator/cdc-invalidator/internal/plain] sql.Null[string] string valued",
	"name":          "*plain *string []uint8 decimal pgtype.Bits pgtype.Text plain raw sql.NullString sql.Null[github.com/cdc-invalidator/cdc-invalidator/internal/plain] sql.Null[string] string valued",
	"char(n)":       "*plain *string []uint8 decimal json.RawMessage named pgtype.Bits pgtype.Text plain raw sql.NullString sql.Null[github.com/cdc-invalidator/cdc-invalidator/internal/plain] sql.Null[string] string valued",
	`"char"`:        "[]uint8 decimal json.RawMessage named pgtype.Bits plain string valued",
	"enums":         "*plain *string pgtype.Text plain sql.NullString sql.Null[github.com/cdc-invalidator/cdc-invalidator/internal/plain] sql.Null[string] string valued",
	"citext":        "**int *int *plain *plainID *string *valuedID count decimal int int16 int32 int64 int8 json.RawMessage named pgtype.Bits pgtype.Int2 pgtype.Int4 pgtype.Int8 pgtype.Text pgtype.Uint32 plain plainID sql.NullByte sql.NullInt16 sql.NullInt32 sql.NullInt64 sql.NullString sql.Null[github.com/cdc-invalidator/cdc-invalidator/internal/plain] sql.Null[int64] sql.Null[string] string uint uint16 uint32 uint64 uint8 valued valuedID",
	"uuid":          "*[16]uint8 *uuid.UUID [16]uint8 id16 pgtype.UUID string uuid.NullUUID uuid.UUID",
	"bytea":         "*[]uint8 []uint8 raw string",
	"numeric(p,s)":  "**int *big.Int *fixed *int *pgtype.Numeric *plainID *valuedID count decimal fixed int int16 int32 int64 int8 json.Number named pgtype.Int2 pgtype.Int4 pgtype.Int8 pgtype.Numeric pgtype.Uint32 plain plainID sql.NullByte sql.NullInt16 sql.NullInt32 sql.NullInt64 sql.Null[int64] string time.Month uint uint16 uint32 uint64 uint8 valued valuedID",
	"numeric":       "**int *big.Int *fixed *int *pgtype.Numeric *plainID *valuedID count decimal fixed int int16 int32 int64 int8 json.Number named pgtype.Int2 pgtype.Int4 pgtype.Int8 pgtype.Numeric pgtype.Uint32 plain plainID sql.NullByte sql.NullInt16 sql.NullInt32 sql.NullInt64 sql.Null[int64] string time.Month uint uint16 uint32 uint64 uint8 valued valuedID",
	"date":          "pgtype.Date pgtype.Timestamp pgtype.Timestamptz string time.Time",
	"time":          "pgtype.Time string",
	"timetz":        "string",
	"timestamp":     "*time.Time pgtype.Date pgtype.Timestamp pgtype.Timestamptz sql.NullTime sql.Null[time.Time] string time.Time",
	"timestamptz":   "*time.Time pgtype.Date pgtype.Timestamp pgtype.Timestamptz sql.NullTime sql.Null[time.Time] string time.Time",
	"inet":          "*net.IPNet *netip.Addr net.IP net.IPNet netip.Addr netip.Prefix string",
	"cidr":          "*net.IPNet *netip.Addr net.IP net.IPNet netip.Addr netip.Prefix string",
	"macaddr":       "*net.HardwareAddr net.HardwareAddr string",
	"macaddr8":      "net.HardwareAddr string",
	"bit(n)":        "pgtype.Bits string",
	"varbit":        "decimal json.Number pgtype.Bits string",
	"pg_lsn":        "string",
}
