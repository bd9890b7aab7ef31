package keytype

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

const microsecond = 1000 // nanoseconds

// digitsBelow is how many digits behind the seconds' point the column holds.
func (t *Type) precision() int {
	if t.Mod < 0 || t.Mod > 6 {
		return 6
	}
	return int(t.Mod)
}

// unit is what the column counts in, in microseconds.
func (t *Type) unit() int64 {
	unit := int64(1)
	for range 6 - t.precision() {
		unit *= 10
	}
	return unit
}

// The years that a timestamp, and a date, can be of. Beyond them is no row.
const (
	firstYear    = -4712
	lastYear     = 294276
	lastYearDate = 5874897
)

func (t *Type) appendTime(dst []byte, v time.Time) ([]byte, refusal) {
	switch t.Form {
	case TimestampTZ:
		v = v.UTC()
	case Timestamp, Date:
		if v.Location() != time.UTC {
			return nil, anyLocation
		}
	default:
		return nil, mismatch
	}
	if y := v.Year(); y < firstYear || y > lastYear && (t.Form != Date || y > lastYearDate) {
		return nil, outOfRange
	}
	if t.Form == Date && (v.Hour()|v.Minute()|v.Second()|v.Nanosecond()) != 0 ||
		t.Form != Date && (v.Nanosecond()%microsecond != 0 || int64(v.Nanosecond()/microsecond)%t.unit() != 0) {
		return nil, tooFine
	}
	year := v.Year()
	if year <= 0 {
		year = 1 - year
	}
	dst = appendPadded(dst, year, 4)
	dst = v.AppendFormat(dst, "-01-02")
	if t.Form != Date {
		dst = v.AppendFormat(dst, " 15:04:05.999999")
	}
	if t.Form == TimestampTZ {
		dst = append(dst, "+00"...)
	}
	if v.Year() <= 0 {
		dst = append(dst, " BC"...)
	}
	return dst, ""
}

func appendPadded(dst []byte, n, width int) []byte {
	digits := strconv.Itoa(n)
	for range width - len(digits) {
		dst = append(dst, '0')
	}
	return append(dst, digits...)
}

var printedTime = regexp.MustCompile(`^(\d{4,7})(-\d\d-\d\d)( \d\d:\d\d:\d\d(?:\.\d{1,6})?)?(\+00)?( BC)?$`)

// isTime says whether Postgres prints a date or a timestamp like that.
func (t *Type) isTime(s string) bool {
	if s == "infinity" || s == "-infinity" {
		return true
	}
	m := printedTime.FindStringSubmatch(s)
	if m == nil || (m[3] == "") != (t.Form == Date) || (m[4] == "") != (t.Form != TimestampTZ) {
		return false
	}
	year, _ := strconv.Atoi(m[1])
	if m[5] != "" {
		year = 1 - year
	}
	// Go reads years of four digits; leap years repeat after 400.
	shifted := year
	for shifted < 1 {
		shifted += 400
	}
	shifted = (shifted-1)%400 + 1
	at, err := time.Parse("2006-01-02 15:04:05.999999", string(appendPadded(nil, shifted, 4))+m[2]+orMidnight(m[3]))
	if err != nil {
		return false
	}
	at = time.Date(year, at.Month(), at.Day(), at.Hour(), at.Minute(), at.Second(), at.Nanosecond(), time.UTC)
	var buf [64]byte
	text, r := t.appendTime(buf[:0], at)
	return r == "" && string(text) == s
}

func orMidnight(clock string) string {
	if clock == "" {
		return " 00:00:00"
	}
	return clock
}

// day is one in microseconds. It ends at 24:00:00, which is a time of its own.
const day = 24 * 3600 * 1_000_000

func (t *Type) appendClock(dst []byte, micros int64) ([]byte, refusal) {
	switch {
	case t.Form != Time:
		return nil, mismatch
	case micros < 0 || micros > day:
		return nil, outOfRange
	case micros%t.unit() != 0:
		return nil, tooFine
	}
	seconds := int(micros / 1_000_000)
	dst = append(appendPadded(dst, seconds/3600, 2), ':')
	dst = append(appendPadded(dst, seconds/60%60, 2), ':')
	dst = appendPadded(dst, seconds%60, 2)
	if fraction := int(micros % 1_000_000); fraction != 0 {
		dst = append(dst, strings.TrimRight("."+string(appendPadded(nil, fraction, 6)), "0")...)
	}
	return dst, ""
}

var printedClock = regexp.MustCompile(`^(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?$`)

func (t *Type) isClock(s string) bool {
	m := printedClock.FindStringSubmatch(s)
	if m == nil {
		return false
	}
	n := func(digits string) int64 { n, _ := strconv.ParseInt(digits, 10, 64); return n }
	micros := (n(m[1])*3600+n(m[2])*60+n(m[3]))*1_000_000 + n((m[4] + "000000")[:6])
	var buf [32]byte
	clock := Type{Form: Time, Mod: t.Mod}
	text, r := clock.appendClock(buf[:0], micros)
	return r == "" && string(text) == s
}

var printedZone = regexp.MustCompile(`[+-](0\d|1[0-5])(:[0-5]\d(:[0-5]\d)?)?$`)

// isClockTZ says whether Postgres prints a time with a time zone like that.
func (t *Type) isClockTZ(s string) bool {
	zone := printedZone.FindString(s)
	if zone == "" || strings.HasSuffix(zone, ":00") || strings.HasPrefix(zone, "-00") && !strings.ContainsAny(zone[1:], "123456789") {
		return false
	}
	return t.isClock(strings.TrimSuffix(s, zone))
}
