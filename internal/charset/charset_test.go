package charset_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/charset"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

func TestMain(m *testing.M) { servertest.VerifyMain(m) }

var update = flag.Bool("update", false, "write the tables as the server has them")

// lastServerEncoding is the last of pg_enc that a database may have.
const lastServerEncoding = 34 // KOI8U

// char is a character beyond ASCII as a server converts it.
type char struct{ encoding, code, text string }

// serverChars asks the server for the text of each sequence of bytes that may be one
// character of any encoding that a database may have.
func serverChars(t *testing.T, conn *pgx.Conn) []char {
	t.Helper()
	exec := func(sql string) {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE FUNCTION pg_temp.converted(b bytea, e text) RETURNS text LANGUAGE plpgsql AS $$
		BEGIN RETURN convert_from(b, e); EXCEPTION WHEN OTHERS THEN RETURN NULL; END $$`)
	exec(fmt.Sprintf(`CREATE TEMP TABLE candidates AS
		WITH encodings AS (SELECT i, pg_encoding_to_char(i)::text AS e FROM generate_series(0, %d) i WHERE pg_encoding_to_char(i) NOT IN ('SQL_ASCII', 'UTF8', 'MULE_INTERNAL')),
		single AS (SELECT * FROM encodings WHERE e NOT LIKE 'EUC%%'), multi AS (SELECT * FROM encodings WHERE e LIKE 'EUC%%'),
		high AS (SELECT set_byte('\x00', 0, c) AS b FROM generate_series(128, 255) c), cell AS (SELECT a.b || b.b AS b FROM high a, high b WHERE b.b >= '\xa1')
		SELECT i, e, b FROM single, high
		UNION ALL SELECT i, e, b FROM multi, high
		UNION ALL SELECT i, e, b FROM multi, cell
		UNION ALL SELECT i, e, p || b FROM multi, cell, (VALUES ('\x8e'::bytea), ('\x8f')) v(p) WHERE b >= '\xa1'
		UNION ALL SELECT i, e, '\x8e'::bytea || h.b || cell.b FROM multi, high h, cell WHERE e = 'EUC_TW' AND h.b BETWEEN '\xa1' AND '\xb0' AND cell.b >= '\xa1'`, lastServerEncoding))
	rows, err := conn.Query(t.Context(), `
		SELECT e, encode(b, 'hex'), u FROM (SELECT *, pg_temp.converted(b, e) AS u FROM candidates OFFSET 0) c
		WHERE u IS NOT NULL ORDER BY i, octet_length(b), b`)
	if err != nil {
		t.Fatal(err)
	}
	chars, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (c char, err error) {
		return c, r.Scan(&c.encoding, &c.code, &c.text)
	})
	if err != nil {
		t.Fatal(err)
	}
	return chars
}

// Readers get UTF-8 from their own connections, converted by the server: each
// character must be the same here, and what the server refuses must be refused.
func TestTheTablesAreTheServers(t *testing.T) {
	chars := serverChars(t, servertest.Postgres(t).Conn(t))
	tables := write(chars)
	if *update {
		var b bytes.Buffer
		w, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
		_, _ = w.Write(tables)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("tables.txt.gz", b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	count := map[string]int{}
	encodings := map[string]*charset.Encoding{}
	for _, c := range chars {
		e := encodings[c.encoding]
		if e == nil {
			var err error
			if e, err = charset.Server(c.encoding); err != nil {
				t.Fatal(err)
			}
			encodings[c.encoding] = e
		}
		code, err := hex.DecodeString(c.code)
		if err != nil {
			t.Fatal(err)
		}
		count[c.encoding]++
		for _, around := range []string{"", "x"} {
			src := append(append([]byte(around), code...), around...)
			if got, ok := e.UTF8(src); !ok || string(got) != around+c.text+around {
				t.Errorf("%s %s is %q, %t; the server says %q", c.encoding, c.code, got, ok, c.text)
			}
		}
	}
	for name, e := range encodings {
		if got := e.Size(); got != count[name] {
			t.Errorf("%s: %d characters here, %d of the server", name, got, count[name])
		}
	}
	if len(encodings) != lastServerEncoding+1-3 {
		t.Errorf("%d encodings were compared", len(encodings))
	}
}

// write is the tables' text.
func write(chars []char) []byte {
	var b bytes.Buffer
	var encoding string
	var next uint32
	for _, c := range chars {
		if c.encoding != encoding {
			if encoding != "" {
				b.WriteByte('\n')
			}
			encoding, next = c.encoding, 0
			fmt.Fprintf(&b, "# %s", encoding)
		}
		raw, _ := hex.DecodeString(c.code)
		code := binary.BigEndian.Uint32(append(make([]byte, 4-len(raw)), raw...))
		switch {
		case utf8.RuneCountInString(c.text) > 1:
			fmt.Fprintf(&b, "\n=%s %s", c.code, c.text)
			next = 0
			continue
		case code != next:
			fmt.Fprintf(&b, "\n%s ", c.code)
		}
		b.WriteString(c.text)
		next = code + 1
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// Every encoding that a database may have is known, or left to ASCII on purpose.
func TestEveryServerEncoding(t *testing.T) {
	conn := servertest.Postgres(t).Conn(t)
	for i := range lastServerEncoding + 1 {
		var name string
		if err := conn.QueryRow(t.Context(), `SELECT pg_encoding_to_char($1)`, i).Scan(&name); err != nil {
			t.Fatal(err)
		}
		e, err := charset.Server(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		switch name {
		case "UTF8":
			if e != nil {
				t.Errorf("UTF8 would be converted")
			}
		case "SQL_ASCII", "MULE_INTERNAL":
			if e.Converts() {
				t.Errorf("%s is converted, though the server cannot", name)
			}
			if text, ok := e.UTF8([]byte("abc\xc3\xa9")); ok {
				t.Errorf("%s: bytes that mean nothing became %q", name, text)
			}
		default:
			if !e.Converts() {
				t.Errorf("%s is not converted", name)
			}
		}
	}
	var more string
	if err := conn.QueryRow(t.Context(), `SELECT pg_encoding_to_char($1)`, lastServerEncoding+1).Scan(&more); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(context.Background(), `CREATE DATABASE no_such_database ENCODING '`+more+`' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0`); err == nil {
		t.Errorf("a database may be of encoding %s, which is not known here", more)
	}
}

func TestNoCodeBeginsAnother(t *testing.T) {
	for _, name := range []string{"EUC_JP", "EUC_CN", "EUC_KR", "EUC_TW", "EUC_JIS_2004", "LATIN1", "WIN1252"} {
		e, err := charset.Server(name)
		if err != nil {
			t.Fatal(err)
		}
		codes := map[string]bool{}
		for _, c := range e.Codes() {
			codes[c] = true
		}
		for c := range codes {
			for n := 1; n < len(c); n++ {
				if codes[c[:n]] {
					t.Errorf("%s: %x begins %x", name, c[:n], c)
				}
			}
		}
	}
}

func TestWhatCannotBeConverted(t *testing.T) {
	for _, c := range []struct{ encoding, src, lossy string }{
		{"WIN1252", "a\x81b", "a\uFFFDb"},
		{"EUC_JP", "\xa4", "\uFFFD"},          // cut off
		{"EUC_JP", "\xa4\xa2\x8f", "あ\uFFFD"}, // the same, behind a character
		{"EUC_TW", "\x8e\xff\xa1\xa1", "\uFFFD\uFFFD\u3000"},
		{"SQL_ASCII", "{\"a\":\"\xe9\"}", "{\"a\":\"\uFFFD\"}"},
		{"no such encoding", "\xe9", "\uFFFD"},
	} {
		e, err := charset.Server(c.encoding)
		if err != nil {
			t.Fatal(err)
		}
		if text, ok := e.UTF8([]byte(c.src)); ok {
			t.Errorf("%s %q became %q", c.encoding, c.src, text)
		}
		if got := string(e.Lossy([]byte(c.src))); got != c.lossy {
			t.Errorf("%s %q: lossy %q, want %q", c.encoding, c.src, got, c.lossy)
		}
	}
	e, _ := charset.Server("LATIN1")
	if got := string(e.Lossy([]byte("caf\xe9"))); got != "café" {
		t.Errorf("lossy: %q", got)
	}
	if s := strings.Repeat("x", 100); string(e.Lossy([]byte(s))) != s {
		t.Error("ASCII was changed")
	}
}
