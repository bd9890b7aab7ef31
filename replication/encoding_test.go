package replication

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// withEncoding is the URL of a client that asks for an encoding.
func withEncoding(t *testing.T, source, encoding string) string {
	t.Helper()
	u, err := url.Parse(source)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("client_encoding", encoding)
	u.RawQuery = q.Encode()
	return u.String()
}

// encodedDatabase makes a database of an encoding.
func encodedDatabase(t *testing.T, server *localserver.Postgres, encoding string) string {
	t.Helper()
	name := "enc_" + strings.ToLower(encoding)
	admin := servertest.Connect(t, server.SocketURL())
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+name+" ENCODING '"+encoding+"' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"); err != nil {
		t.Fatal(err)
	}
	return server.DatabaseURL(name)
}

// In a database of every encoding that there is, the stream carries what the server
// holds, names and messages come out as UTF-8, and a value that no client could be sent
// in UTF-8 stops nothing.
func TestStreamInEveryEncoding(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"max_replication_slots": "50"}})
	conn := servertest.Connect(t, server.SocketURL())
	rows, err := conn.Query(t.Context(), "SELECT pg_encoding_to_char(i)::text FROM generate_series(0, 34) i")
	if err != nil {
		t.Fatal(err)
	}
	encodings, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, encoding := range encodings {
		t.Run(encoding, func(t *testing.T) { streamInEncoding(t, encodedDatabase(t, server, encoding), encoding) })
	}
}

func streamInEncoding(t *testing.T, source, encoding string) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	raw := servertest.Connect(t, withEncoding(t, source, "SQL_ASCII"))
	exec := func(sql string) {
		t.Helper()
		if _, err := raw.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	// Bytes of the encoding beyond ASCII, in the forms of single bytes and of EUC.
	high := "\xd2\xc1"
	declared := encoding != "SQL_ASCII" && encoding != "MULE_INTERNAL"
	switch encoding {
	case "UTF8":
		high = "é"
	case "MULE_INTERNAL":
		high = "\x81\xe9" // LATIN1's é
	case "ISO_8859_6":
		high = "\xc7"
	case "ISO_8859_8", "WIN1255", "WIN1253", "WIN1257", "WIN1258", "ISO_8859_7", "LATIN3":
		high = "\xe1"
	}
	exec(`CREATE TABLE "t` + high + `" ("k` + high + `" text PRIMARY KEY, note text)`)
	exec(`CREATE PUBLICATION "p` + high + `" FOR TABLE "t` + high + `"`)
	slot := "s_" + strings.ToLower(encoding)
	exec(createSlotSQL(slot))

	// What a reader gets. Where no conversion is possible it names things as bytes.
	table, publication, column := "t"+high, "p"+high, "k"+high
	if declared {
		reader := servertest.Connect(t, withEncoding(t, source, "UTF8"))
		if err := reader.QueryRow(ctx, `SELECT c.relname::text, p.pubname::text, a.attname::text
			FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = 1, pg_publication p WHERE c.relname LIKE 't%' AND c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace`).
			Scan(&table, &publication, &column); err != nil {
			t.Fatal(err)
		}
	}
	exec(`INSERT INTO "t` + high + `" VALUES ('` + high + `', 'x')`)
	exec(`SELECT pg_logical_emit_message(true, 'm` + high + `', '{"name": "` + high + `"}')`)
	// A note that no client can be sent: each byte that the server takes as one.
	exec(`INSERT INTO "t` + high + `" SELECT 'plain', string_agg(c, '') FROM (SELECT '` + high + `'::text AS c) x`)
	if single := !strings.HasPrefix(encoding, "EUC") && encoding != "UTF8" && encoding != "MULE_INTERNAL"; single {
		exec(`INSERT INTO "t` + high + `" SELECT 'all', string_agg(chr(c), '') FROM generate_series(128, 255) c`)
	}
	exec(`SELECT pg_logical_emit_message(true, 'end', '')`)

	if encoding == "MULE_INTERNAL" || encoding == "SQL_ASCII" {
		publication = "p" + high
	}
	s, err := OpenStream(ctx, StreamOptions{URL: source, Slot: slot, Publication: publication, StatusInterval: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := decoder.NewFor(s.Encoding())
	var keys, messages []string
	for ended := false; !ended; {
		if err := s.Fill(ctx); err != nil {
			t.Fatal(err)
		}
		for !ended {
			data, ok, err := s.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			m, err := d.Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			switch m.Kind {
			case decoder.KindChange:
				rel, v := m.Change.Relation, m.Change.New[0].Data
				if rel.Name != table || rel.Columns[0].Name != column {
					t.Errorf("the table is %q (%q), want %q (%q)", rel.Name, rel.Columns[0].Name, table, column)
				}
				if rel.Encoding != nil {
					text, ok := rel.Encoding.UTF8(v)
					if !ok {
						text = []byte("?")
					}
					v = text
				}
				keys = append(keys, string(v))
			case decoder.KindLogical:
				if ended = string(m.Logical.Prefix) == "end"; !ended {
					messages = append(messages, fmt.Sprintf("%s %s", bytes.TrimPrefix(m.Logical.Prefix, []byte("m")), m.Logical.Content))
				}
			}
		}
	}
	want := strings.TrimPrefix(column, "k")
	content := want
	if !declared {
		want, content = "?", strings.Repeat("\uFFFD", len(high))
	}
	if len(keys) < 2 || keys[0] != want || keys[1] != "plain" {
		t.Errorf("the keys are %q, want %q first", keys, want)
	}
	if m := fmt.Sprintf("%s {\"name\": \"%s\"}", strings.TrimPrefix(column, "k"), content); len(messages) != 1 || messages[0] != m {
		t.Errorf("the messages are %q, want %q", messages, m)
	}
}
