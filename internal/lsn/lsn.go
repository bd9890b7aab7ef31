// Package lsn is the project's one notion of a WAL position.
//
// It is stricter than the parsers of client libraries, which accept "1/2/3" or
// trailing junk: a position decides what is confirmed to Postgres, so anything
// that Postgres would not read itself is an error here.
package lsn

import (
	"fmt"
	"strconv"
)

// LSN is a byte position in one cluster's write-ahead log. Two positions
// compare only within one system id and timeline.
type LSN uint64

// HexLen is the length of an LSN as Hex writes it.
const HexLen = 16

// Parse reads the form that Postgres prints: two hexadecimal numbers of one to
// eight digits, separated by one slash.
func Parse(s string) (LSN, error) {
	for i := 0; i < len(s); i++ {
		if s[i] != '/' {
			continue
		}
		hi, err := parseHalf(s[:i])
		if err != nil {
			return 0, fmt.Errorf("lsn %q: %w", s, err)
		}
		lo, err := parseHalf(s[i+1:])
		if err != nil {
			return 0, fmt.Errorf("lsn %q: %w", s, err)
		}
		return LSN(hi)<<32 | LSN(lo), nil
	}
	return 0, fmt.Errorf("lsn %q: no slash; want the form 16/B374D848", s)
}

// ParseHex reads what Hex writes, and nothing else.
func ParseHex(s string) (LSN, error) {
	if len(s) != HexLen {
		return 0, fmt.Errorf("lsn %q: want %d hexadecimal digits, have %d", s, HexLen, len(s))
	}
	var v uint64
	for i := 0; i < len(s); i++ {
		d, ok := digit(s[i])
		if !ok || s[i] >= 'A' && s[i] <= 'F' {
			return 0, fmt.Errorf("lsn %q: %q is not a lower-case hexadecimal digit", s, s[i])
		}
		v = v<<4 | uint64(d)
	}
	return LSN(v), nil
}

// String is the form that Postgres prints and reads.
func (l LSN) String() string {
	return string(l.AppendText(make([]byte, 0, 17)))
}

// AppendText appends the form that Postgres prints.
func (l LSN) AppendText(dst []byte) []byte {
	dst = appendUpperHex(dst, uint32(l>>32))
	dst = append(dst, '/')
	return appendUpperHex(dst, uint32(l))
}

// Hex is the fixed-width form for Redis: sixteen lower-case digits, so that
// strings compare as the numbers do (Lua's numbers lose 64-bit integers).
func (l LSN) Hex() string {
	const digits = "0123456789abcdef"
	var b [HexLen]byte
	for i := HexLen - 1; i >= 0; i-- {
		b[i] = digits[l&0xf]
		l >>= 4
	}
	return string(b[:])
}

func appendUpperHex(dst []byte, v uint32) []byte {
	start := len(dst)
	dst = strconv.AppendUint(dst, uint64(v), 16)
	for i := start; i < len(dst); i++ {
		if dst[i] >= 'a' {
			dst[i] -= 'a' - 'A'
		}
	}
	return dst
}

func parseHalf(s string) (uint32, error) {
	if len(s) == 0 || len(s) > 8 {
		return 0, fmt.Errorf("each half has one to eight hexadecimal digits")
	}
	var v uint32
	for i := 0; i < len(s); i++ {
		d, ok := digit(s[i])
		if !ok {
			return 0, fmt.Errorf("%q is not a hexadecimal digit", s[i])
		}
		v = v<<4 | uint32(d)
	}
	return v, nil
}

func digit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
