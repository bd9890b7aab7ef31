// Package charset turns text that a Postgres server holds in an encoding of its own
// into UTF-8, exactly as the server itself does for a client that asks for UTF-8.
//
// A walsender that converts fails for good at the first character that has no form in
// the client's encoding, whatever column it stands in. So it is asked for the server's
// own encoding, and what becomes part of a key is converted here.
//
// The tables are the server's, read from one and compared with one by a test.
// golang.org/x/text would not do: it has neither EUC_TW nor EUC_JIS_2004, and of the
// others 496 codes differ from Postgres (107 of EUC_JP, the controls of ISO 8859, two of
// KOI8U). A key with another character in it is a key that nobody reads.
package charset

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

//go:embed tables.txt.gz
var packed []byte

// Encoding is the encoding of a database.
type Encoding struct {
	name  string
	codes []uint32 // of characters beyond ASCII, sorted; a code is the character's bytes, most significant first
	at    []uint32 // where their texts begin in text; one more than codes
	text  string
}

// Server is the encoding that a server names in its parameter server_encoding; nil for
// UTF8, where there is nothing to convert. Of one that has no table (SQL_ASCII, which says
// nothing of what bytes mean; MULE_INTERNAL, for which Postgres has no conversion; one
// that is not known) only ASCII is converted.
func Server(name string) (*Encoding, error) {
	if name == "UTF8" {
		return nil, nil
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("the tables of encodings: %w", err)
	}
	tables, err := io.ReadAll(unpacked)
	if err != nil {
		return nil, fmt.Errorf("the tables of encodings: %w", err)
	}
	e := &Encoding{name: name}
	_, table, found := strings.Cut(string(tables), "# "+name+"\n")
	if !found {
		return e, nil
	}
	table, _, _ = strings.Cut(table, "# ")
	if err := e.read(table); err != nil {
		return nil, fmt.Errorf("the table of encoding %s: %w", name, err)
	}
	return e, nil
}

// read takes a table: lines of a code and the characters of it and of those that follow
// it, or of a single code with a text of several characters, marked by '='.
func (e *Encoding) read(table string) error {
	var text strings.Builder
	add := func(code uint32, s string) {
		e.codes, e.at = append(e.codes, code), append(e.at, uint32(text.Len()))
		text.WriteString(s)
	}
	for line := range strings.Lines(table) {
		first, chars, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		digits, whole := strings.CutPrefix(first, "=")
		code, err := strconv.ParseUint(digits, 16, 32)
		if err != nil {
			return err
		}
		if whole {
			add(uint32(code), chars)
			continue
		}
		for _, r := range chars {
			add(uint32(code), string(r))
			code++
		}
	}
	if !slices.IsSorted(e.codes) {
		return fmt.Errorf("it is not sorted")
	}
	e.text, e.at = text.String(), append(e.at, uint32(text.Len()))
	return nil
}

// Name is what Postgres calls it.
func (e *Encoding) Name() string { return e.name }

// Converts says whether anything but ASCII can be converted.
func (e *Encoding) Converts() bool { return len(e.codes) > 0 }

// UTF8 is src in UTF-8: src itself where it is ASCII. ok is false where a character has
// no form there, as the server's own conversion would fail.
func (e *Encoding) UTF8(src []byte) (text []byte, ok bool) {
	ascii := asciiLen(src)
	if ascii == len(src) {
		return src, true
	}
	if !e.Converts() {
		return nil, false
	}
	dst := append(make([]byte, 0, len(src)*3/2), src[:ascii]...)
	for src = src[ascii:]; len(src) > 0; {
		s, n := e.char(src)
		if n == 0 {
			return nil, false
		}
		dst, src = append(dst, s...), src[n:]
	}
	return dst, true
}

// Encode is s, in UTF-8, in the encoding; ok is false where it has no form there. It
// searches the whole table for each character: for names, not for data.
func (e *Encoding) Encode(s string) (dst []byte, ok bool) {
	for _, r := range s {
		if r < utf8.RuneSelf {
			dst = append(dst, byte(r))
			continue
		}
		i := 0
		for ; i < len(e.codes) && e.text[e.at[i]:e.at[i+1]] != string(r); i++ {
		}
		if i == len(e.codes) {
			return nil, false
		}
		code := binary.BigEndian.AppendUint32(nil, e.codes[i])
		dst = append(dst, bytes.TrimLeft(code, "\x00")...)
	}
	return dst, true
}

// Lossy is src in UTF-8, with U+FFFD in the place of each byte that cannot be converted.
func (e *Encoding) Lossy(src []byte) []byte {
	ascii := asciiLen(src)
	if ascii == len(src) {
		return src
	}
	dst := append(make([]byte, 0, len(src)*3/2), src[:ascii]...)
	for src = src[ascii:]; len(src) > 0; {
		s, n := e.char(src)
		if n == 0 {
			s, n = "\uFFFD", 1
		}
		dst, src = append(dst, s...), src[n:]
	}
	return dst
}

// char is the first character of src and its length; 0 when it has none. No code is the
// begin of another one, so the first that is found is the right one.
func (e *Encoding) char(src []byte) (text string, n int) {
	if src[0] < utf8.RuneSelf {
		return string(rune(src[0])), 1
	}
	var code uint32
	for n, b := range src[:min(4, len(src))] {
		code = code<<8 | uint32(b)
		if i, found := slices.BinarySearch(e.codes, code); found {
			return e.text[e.at[i]:e.at[i+1]], n + 1
		}
	}
	return "", 0
}

func asciiLen(b []byte) int {
	for i, c := range b {
		if c >= utf8.RuneSelf {
			return i
		}
	}
	return len(b)
}
