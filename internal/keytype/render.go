package keytype

import (
	"database/sql/driver"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// ValueError says why a Go value has no text under a type. It holds no value.
type ValueError struct {
	Go      string // the value's type
	Problem string // of a sentence that begins with the value's type; empty where the types do not match
	Pass    string // what to pass instead
}

func (e *ValueError) Error() string {
	problem := e.Problem
	if problem == "" {
		problem = "is not what the column holds"
	}
	return "a " + e.Go + " " + problem + ": pass " + e.Pass
}

// Append appends what the source prints for v where it stands in a column of the type, or
// says that v is NULL.
func (t *Type) Append(dst []byte, v any) (text []byte, null bool, err error) {
	var r refusal
	switch v := v.(type) {
	case nil:
		return dst, true, nil
	case string:
		text, r = t.appendString(dst, v)
	case int:
		text, r = t.appendInt(dst, int64(v))
	case int64:
		text, r = t.appendInt(dst, v)
	case int32:
		text, r = t.appendInt(dst, int64(v))
	case []byte:
		if v == nil {
			return dst, true, nil
		}
		text, r = t.appendBytes(dst, v)
	case bool:
		text, r = t.appendBool(dst, v)
	default:
		return t.appendOther(dst, v, false)
	}
	if r != "" {
		return nil, false, t.refuse(v, r)
	}
	return text, false, nil
}

// refusal is why not; empty for a text that is right.
type refusal string

const (
	mismatch    refusal = "is not what the column holds"
	notPrinted  refusal = "is not the text that Postgres prints"
	tooFine     refusal = "is finer than what the column holds"
	outOfRange  refusal = "is not in the column's range"
	ownText     refusal = "has a text of its own beside the one that it is based on"
	anyLocation refusal = "is not in UTC, so which wall clock is meant cannot be known"
)

func (t *Type) refuse(v any, r refusal) error {
	return &ValueError{Go: fmt.Sprintf("%T", v), Problem: string(r), Pass: t.Pass()}
}

// appendOther is for what is not one of Go's own types. again is true of what a
// driver.Valuer has given, which may not be one again.
func (t *Type) appendOther(dst []byte, v any, again bool) (text []byte, null bool, err error) {
	value := reflect.ValueOf(v)
	if value.Kind() == reflect.Pointer && value.IsNil() {
		return dst, true, nil
	}
	var r refusal
	switch v := v.(type) {
	case time.Time:
		text, r = t.appendTime(dst, v)
	case time.Duration:
		r = mismatch
	case pgtype.Time:
		if !v.Valid {
			return dst, true, nil
		}
		text, r = t.appendClock(dst, v.Microseconds)
	case netip.Addr:
		if !v.IsValid() {
			return dst, true, nil // as pgx has it
		}
		text, r = t.appendPrefix(dst, netip.PrefixFrom(v, v.BitLen()))
	case netip.Prefix:
		if v == (netip.Prefix{}) {
			return dst, true, nil
		}
		text, r = t.appendPrefix(dst, v)
	case net.IP:
		if v == nil {
			return dst, true, nil
		}
		text, r = t.appendIP(dst, v, 8*len(v))
	case net.IPNet:
		ones, bits := v.Mask.Size()
		if bits != 8*len(v.IP) {
			ones = -1
		}
		text, r = t.appendIP(dst, v.IP, ones)
	case net.HardwareAddr:
		if v == nil {
			return dst, true, nil
		}
		text, r = t.appendMAC(dst, v)
	case *big.Int:
		text, r = t.appendDecimal(dst, v.String())
	case big.Int:
		text, r = t.appendDecimal(dst, v.String())
	case driver.Valuer:
		if again {
			r = "has a Value that is a driver.Valuer again"
			break
		}
		return t.appendValuer(dst, v)
	default:
		return t.appendKind(dst, v, value)
	}
	if r != "" {
		return nil, false, t.refuse(v, r)
	}
	return text, false, nil
}

func (t *Type) appendValuer(dst []byte, v driver.Valuer) ([]byte, bool, error) {
	inner, err := v.Value()
	if err != nil {
		return nil, false, fmt.Errorf("the Value of a %T: %w", v, err)
	}
	text, null, err := t.appendValue(dst, inner)
	if e := (*ValueError)(nil); errors.As(err, &e) {
		e.Go = fmt.Sprintf("%T, whose Value is a %s,", v, e.Go)
	}
	return text, null, err
}

// appendKind is for types that are based on one of Go's.
func (t *Type) appendKind(dst []byte, v any, value reflect.Value) (text []byte, null bool, err error) {
	if value.Kind() == reflect.Pointer {
		return t.appendValue(dst, value.Elem().Interface())
	}
	if t.takesText() && hasText(v) {
		return t.appendOwnText(dst, v)
	}
	var r refusal
	switch value.Kind() {
	case reflect.Bool:
		text, r = t.appendBool(dst, value.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		text, r = t.appendInt(dst, value.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		text, r = t.appendUint(dst, value.Uint())
	case reflect.String:
		if t.isNumeric() {
			text, r = t.appendDecimal(dst, value.String()) // json.Number
		} else {
			text, r = t.appendString(dst, value.String())
		}
	case reflect.Slice:
		switch {
		case value.Type().Elem().Kind() != reflect.Uint8:
			r = mismatch
		case value.IsNil():
			return dst, true, nil
		default:
			text, r = t.appendBytes(dst, value.Bytes())
		}
	case reflect.Array:
		if value.Type().Elem().Kind() != reflect.Uint8 || value.Len() != 16 {
			r = mismatch
			break
		}
		switch t.Form {
		case UUID, Message, Free:
			var id [16]byte
			reflect.Copy(reflect.ValueOf(&id).Elem(), value)
			text = appendUUID(dst, id)
		default:
			r = mismatch
		}
	default:
		r = mismatch
	}
	if r != "" {
		return nil, false, t.refuse(v, r)
	}
	return text, false, nil
}

// appendValue is Append for what a pointer points to, or a Valuer has given.
func (t *Type) appendValue(dst []byte, v any) ([]byte, bool, error) {
	if s, ok := v.(string); ok && t.isNumeric() { // decimal types bring their number as text, of any scale
		text, r := t.appendDecimal(dst, s)
		if r != "" {
			return nil, false, t.refuse(v, r)
		}
		return text, false, nil
	}
	if _, again := v.(driver.Valuer); again {
		return t.appendOther(dst, v, true)
	}
	return t.Append(dst, v)
}

// appendOwnText takes the text that a value brings along for a variable that no mapping tells:
// all who make the key make it here. Where a column holds text, it is refused.
func (t *Type) appendOwnText(dst []byte, v any) ([]byte, bool, error) {
	if t.Form == Free {
		switch kind := reflect.ValueOf(v).Kind(); v := v.(type) {
		case encoding.TextMarshaler:
			text, err := v.MarshalText()
			return append(dst, text...), false, err
		case fmt.Stringer:
			if kind == reflect.Struct || kind == reflect.Array || kind == reflect.String {
				return append(dst, v.String()...), false, nil
			}
		}
	}
	return nil, false, t.refuse(v, ownText)
}

// hasText says whether a value has a text of its own. Where the column holds text, either
// that one or what the type is based on may be meant.
func hasText(v any) bool {
	switch v.(type) {
	case encoding.TextMarshaler, fmt.Stringer:
		return true
	}
	return false
}

func (t *Type) appendBool(dst []byte, v bool) ([]byte, refusal) {
	switch t.Form {
	case Bool, Message, Free:
		if v {
			return append(dst, 't'), ""
		}
		return append(dst, 'f'), ""
	}
	return nil, mismatch
}

func (t *Type) appendInt(dst []byte, n int64) ([]byte, refusal) {
	if n >= 0 {
		return t.appendUint(dst, uint64(n))
	}
	var buf [20]byte
	return t.appendDigits(dst, strconv.AppendInt(buf[:0], n, 10))
}

func (t *Type) appendUint(dst []byte, n uint64) ([]byte, refusal) {
	var buf [20]byte
	return t.appendDigits(dst, strconv.AppendUint(buf[:0], n, 10))
}

func (t *Type) appendDigits(dst, digits []byte) ([]byte, refusal) {
	switch t.Form {
	case Integer:
		if !t.holds(string(digits)) {
			return nil, outOfRange
		}
	case Text, Message, Free:
	case Blank, Citext, Name:
		return t.appendString(dst, string(digits))
	case Numeric, NumericFree:
		return t.appendDecimal(dst, string(digits))
	default:
		return nil, mismatch
	}
	if r := t.ambiguous(); r != "" {
		return nil, r
	}
	return append(dst, digits...), ""
}

func (t *Type) appendBytes(dst, v []byte) ([]byte, refusal) {
	switch {
	case t.Form == Bytea:
		return hex.AppendEncode(append(dst, `\x`...), v), ""
	case t.Form == Text && !t.Nondeterministic, t.Form == Message, t.Form == Free:
		return append(dst, v...), ""
	case t.takesText():
		return t.appendString(dst, string(v))
	}
	return nil, mismatch
}

// takesText says whether a text stands in the column as it is.
func (t *Type) takesText() bool {
	switch t.Form {
	case Text, Name, Blank, Char, Citext, Enum, Message, Free:
		return true
	}
	return false
}

func (t *Type) isNumeric() bool { return t.Form == Numeric || t.Form == NumericFree }

// unsigned are oid, xid, cid and xid8.
func (t *Type) unsigned() bool {
	return t.OID == 26 || t.OID == 28 || t.OID == 29 || t.OID == 5069
}

// holds says whether an integer is in the column's range. Of a signed one Postgres says so itself; an unsigned one it
// takes for another, by its lowest bits or for the greatest.
func (t *Type) holds(digits string) bool {
	if !t.unsigned() {
		return true
	}
	bits := 32
	if t.OID == 5069 {
		bits = 64
	}
	_, err := strconv.ParseUint(digits, 10, bits)
	return err == nil
}

func appendUUID(dst []byte, id [16]byte) []byte {
	for i, part := range [...][]byte{id[:4], id[4:6], id[6:8], id[8:10], id[10:]} {
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, part)
	}
	return dst
}
