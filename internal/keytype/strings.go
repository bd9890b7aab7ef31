package keytype

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// appendString takes a string for the text of a value. It is checked to be just what Postgres
// prints: what means the same row and is written otherwise would be a key that nobody
// invalidates.
func (t *Type) appendString(dst []byte, s string) ([]byte, refusal) {
	if r := t.ambiguous(); r != "" {
		return nil, r
	}
	return t.appendText(dst, s)
}

// AppendRowText appends a text that the caller says is that of the row itself, as it was read
// there with a cast to text. It is checked as far as it can be.
func (t *Type) AppendRowText(dst []byte, s string) ([]byte, error) {
	var r refusal
	switch {
	case t.Form == Bool && (s == "true" || s == "false"): // as the cast to text has it
		s = s[:1]
	case t.Form == Inet && strings.Contains(s, "/"): // the cast to text shows the length of one host, too
		if p, err := netip.ParsePrefix(s); err == nil && p.IsSingleIP() {
			s, _, _ = strings.Cut(s, "/")
		}
	case t.Form == Blank && t.Ambiguous() != "":
		r = "has lost the blanks at its end, which the key has"
	case t.Form == Session:
		r = "follows the settings of the session that printed it"
	case t.Form == Interval && !printedInterval.MatchString(s):
		r = notPrinted
	}
	if r == "" {
		dst, r = t.appendText(dst, s)
	}
	if r != "" {
		return nil, &ValueError{Go: "RowText", Problem: string(r), Pass: t.passRowText()}
	}
	return dst, nil
}

// printedInterval is IntervalStyle postgres.
var printedInterval = func() *regexp.Regexp {
	const unit, clock = `[+-]?\d+ (?:year|mon|day)s?`, `[+-]?\d\d+:\d\d:\d\d(?:\.\d{1,6})?`
	return regexp.MustCompile(`^(?:` + unit + `(?: ` + unit + `)*(?: ` + clock + `)?|` + clock + `)$`)
}()

func (t *Type) appendText(dst []byte, s string) ([]byte, refusal) {
	ok := true
	switch t.Form {
	case Text, Citext, Enum, Message, Free:
	case Name:
		if len(s) > 63 {
			return nil, "has more than the 63 bytes that a name is cut off at"
		}
	case Blank:
		return t.appendBlank(dst, s)
	case Char:
		ok = len(s) == 0 || len(s) == 1 && s[0] < utf8.RuneSelf
	case Bool:
		ok = s == "t" || s == "f"
	case Integer:
		ok = isInteger(s) && t.holds(s)
	case Numeric:
		var buf [64]byte
		text, r := t.appendDecimal(buf[:0], s)
		if r != "" {
			return nil, r
		}
		ok = string(text) == s
	case NumericFree:
		if t.Normal == mapping.NormalNumber {
			return t.appendDecimal(dst, s)
		}
		ok = isNumeric(s)
	case Float:
		_, err := strconv.ParseFloat(s, 64)
		ok = err == nil && strings.ToLower(s) == s || s == "NaN" || s == "Infinity" || s == "-Infinity"
	case UUID:
		ok = isUUID(s)
	case Bytea:
		_, err := hex.DecodeString(strings.TrimPrefix(s, `\x`))
		ok = err == nil && strings.HasPrefix(s, `\x`) && strings.ToLower(s) == s
	case Date, Timestamp, TimestampTZ:
		ok = t.isTime(s)
	case Time:
		ok = t.isClock(s)
	case TimeTZ:
		ok = t.isClockTZ(s)
	case Inet, CIDR:
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			if err != nil || a.Zone() != "" {
				return nil, notPrinted
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		var buf [64]byte
		text, r := t.appendPrefix(buf[:0], p)
		ok = r == "" && string(text) == s
	case MAC, MAC8:
		a, err := net.ParseMAC(s)
		if err != nil {
			return nil, notPrinted
		}
		var buf [32]byte
		text, r := t.appendMAC(buf[:0], a)
		ok = r == "" && string(text) == s
	case Bit, Varbit:
		ok = strings.Trim(s, "01") == "" && (t.Form == Varbit || t.Mod < 0 || len(s) == int(t.Mod))
	case LSN:
		ok = isLSN(s)
	}
	if !ok {
		return nil, notPrinted
	}
	return append(dst, s...), ""
}

// appendBlank is a char(n). The daemon takes the padding off, but for a domain, of which the
// log does not say that it is one over char(n).
func (t *Type) appendBlank(dst []byte, s string) ([]byte, refusal) {
	s = strings.TrimRight(s, " ")
	dst = append(dst, s...)
	if t.Domain {
		if n := int(t.Mod) - 4 - utf8.RuneCountInString(s); n > 0 {
			dst = append(dst, bytes.Repeat([]byte{' '}, n)...)
		}
	}
	return dst, ""
}

func isInteger(s string) bool {
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || digits[0] == '0' && s != "0" {
		return false
	}
	return strings.Trim(digits, "0123456789") == ""
}

// isNumeric says whether a numeric of some scale is printed like that.
func isNumeric(s string) bool {
	if s == "NaN" || s == "Infinity" || s == "-Infinity" {
		return true
	}
	whole, fraction, point := strings.Cut(s, ".")
	return (isInteger(whole) || whole == "-0" && strings.Trim(fraction, "0") != "") &&
		(!point || fraction != "" && strings.Trim(fraction, "0123456789") == "")
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
	}
	return true
}

func isLSN(s string) bool {
	hi, lo, ok := strings.Cut(s, "/")
	for _, part := range []string{hi, lo} {
		n, err := strconv.ParseUint(part, 16, 32)
		ok = ok && err == nil && strings.ToUpper(strconv.FormatUint(n, 16)) == part
	}
	return ok
}

// appendDecimal appends a decimal number, with an exponent perhaps, as a numeric of the
// column's scale is printed.
func (t *Type) appendDecimal(dst []byte, s string) ([]byte, refusal) {
	switch t.Form {
	case Numeric, NumericFree:
	case Integer:
		if !isInteger(s) || !t.holds(s) {
			return nil, notPrinted
		}
		return append(dst, s...), ""
	default:
		return nil, mismatch
	}
	if r := t.ambiguous(); r != "" {
		return nil, r
	}
	if s == "NaN" || t.Form == NumericFree && (s == "Infinity" || s == "-Infinity") {
		return append(dst, s...), ""
	}
	negative, digits, exponent, ok := parseDecimal(s)
	if !ok {
		return nil, "is not a number"
	}
	if digits == "" {
		negative, digits, exponent = false, "0", 0
	}
	scale := 0
	if t.Form == Numeric {
		scale = numericScale(t.Mod)
		if exponent < -scale && digits != "0" {
			return nil, tooFine
		}
	} else {
		scale = max(0, -exponent)
	}
	if negative {
		dst = append(dst, '-')
	}
	// The digits are those before exponent places behind the point.
	whole := digits
	fraction := ""
	switch {
	case exponent >= 0:
		if digits != "0" {
			whole += strings.Repeat("0", exponent)
		}
	case len(digits) > -exponent:
		whole, fraction = digits[:len(digits)+exponent], digits[len(digits)+exponent:]
	default:
		whole, fraction = "0", strings.Repeat("0", -exponent-len(digits))+digits
	}
	dst = append(dst, whole...)
	if scale > 0 {
		dst = append(append(dst, '.'), fraction...)
		dst = append(dst, strings.Repeat("0", scale-len(fraction))...)
	}
	return dst, ""
}

// numericScale is the scale in a numeric's modifier: 11 bits, signed. One below zero rounds
// to tens, and prints no point.
func numericScale(mod int32) int {
	scale := int((mod-4)&0x7ff) ^ 1024
	return scale - 1024
}

// parseDecimal takes a number apart: digits without zeros at either end, times ten to the
// exponent. There are no digits in zero.
func parseDecimal(s string) (negative bool, digits string, exponent int, ok bool) {
	mantissa, e, hasExponent := strings.Cut(strings.ToLower(s), "e")
	if hasExponent {
		var err error
		if exponent, err = strconv.Atoi(e); err != nil || exponent > 1000 || exponent < -20000 {
			return false, "", 0, false
		}
	}
	if mantissa != "" && (mantissa[0] == '-' || mantissa[0] == '+') {
		negative, mantissa = mantissa[0] == '-', mantissa[1:]
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits = whole + fraction
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return false, "", 0, false
	}
	exponent -= len(fraction)
	digits = strings.TrimLeft(digits, "0")
	trimmed := strings.TrimRight(digits, "0")
	exponent += len(digits) - len(trimmed)
	return negative, trimmed, exponent, true
}
