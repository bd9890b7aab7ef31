package decoder_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

func TestMain(m *testing.M) { servertest.VerifyMain(m) }

// scenarios are what testdata holds the messages of, as Postgres 15 sent them: a
// message a line, in hexadecimal.
func scenarios() map[string]string {
	toast := "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 300) i)"
	return map[string]string{
		"insert":               "INSERT INTO d VALUES (1, 'one', NULL), (2, '', 'two')",
		"update_same_key":      "INSERT INTO d VALUES (1, 'a', 'b'); UPDATE d SET name = 'c'",
		"update_of_the_key":    "INSERT INTO d VALUES (1, 'a', 'b'); UPDATE d SET id = 2",
		"update_full":          "INSERT INTO f VALUES (1, 'a', 'b'); UPDATE f SET name = NULL",
		"update_index":         "INSERT INTO x VALUES (1, 'a', 'b'); UPDATE x SET name = 'c'",
		"unchanged_toast":      "INSERT INTO d VALUES (1, 'a', " + toast + "); UPDATE d SET name = 'b'",
		"unchanged_toast_full": "INSERT INTO f VALUES (1, 'a', " + toast + "); UPDATE f SET name = 'b'",
		"delete_key":           "INSERT INTO d VALUES (1, 'a', 'b'); DELETE FROM d",
		"delete_full":          "INSERT INTO f VALUES (1, 'a', 'b'); DELETE FROM f",
		"no_columns":           "INSERT INTO nothing DEFAULT VALUES",
		"truncate":             "TRUNCATE d, f RESTART IDENTITY CASCADE",
		"types":                "INSERT INTO types VALUES (1, 'happy', '{1,2}', '2020-02-03 04:05:06+07', '\\xdead', 1.5, true)",
		"odd_names":            `INSERT INTO "Odd "" Näme" VALUES (1)`,
		"messages":             "BEGIN; SELECT pg_logical_emit_message(true, 'p', 'inside'); SELECT pg_logical_emit_message(false, '', ''); COMMIT",
		"column_added":         "INSERT INTO d VALUES (1); ALTER TABLE d ADD COLUMN more int; INSERT INTO d VALUES (2, NULL, NULL, 3)",
		"several":              "BEGIN; INSERT INTO d VALUES (1); INSERT INTO f VALUES (1); INSERT INTO d VALUES (2); SAVEPOINT s; INSERT INTO d VALUES (3); ROLLBACK TO s; COMMIT; INSERT INTO f VALUES (2)",
	}
}

// capture runs a scenario on a fresh database and returns what pgoutput makes of it.
func capture(t *testing.T, sql string) [][]byte {
	t.Helper()
	db := servertest.Postgres(t)
	db.Exec(t, `CREATE TABLE d (id int PRIMARY KEY, name text, note text);
		CREATE TABLE f (id int PRIMARY KEY, name text, note text); ALTER TABLE f REPLICA IDENTITY FULL;
		CREATE TABLE x (id int PRIMARY KEY, name text NOT NULL UNIQUE, note text); ALTER TABLE x REPLICA IDENTITY USING INDEX x_name_key;
		CREATE TABLE nothing ();
		CREATE TYPE mood AS ENUM ('happy');
		CREATE TABLE types (id int PRIMARY KEY, m mood, a int[], ts timestamptz, b bytea, n numeric(10, 2), y bool);
		CREATE TABLE "Odd "" Näme" ("Id" int PRIMARY KEY);`,
		"CREATE PUBLICATION p FOR ALL TABLES",
		fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", db.Name), sql)
	conn := db.Conn(t)
	if _, err := conn.Exec(t.Context(), "SET TimeZone = 'UTC'"); err != nil { // values are text
		t.Fatal(err)
	}
	rows, err := conn.Query(t.Context(), `SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', 'p', 'messages', 'true')`, db.Name)
	if err != nil {
		t.Fatal(err)
	}
	var messages [][]byte
	for rows.Next() {
		var data []byte
		if err := rows.Scan(&data); err != nil {
			t.Fatal(err)
		}
		messages = append(messages, data)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return messages
}

// outline says what a decoder made of messages, without what differs between runs:
// positions, times, xids and oids.
func outline(t testing.TB, messages [][]byte) string {
	t.Helper()
	d := decoder.New()
	var out strings.Builder
	image := func(name string, values []decoder.Value) {
		if len(values) == 0 {
			return
		}
		fmt.Fprintf(&out, " %s(", name)
		for i, v := range values {
			if i > 0 {
				out.WriteString(", ")
			}
			switch {
			case v.Kind == decoder.Null:
				out.WriteString("NULL")
			case v.Kind == decoder.Unchanged:
				out.WriteString("unchanged")
			case len(v.Data) > 100:
				fmt.Fprintf(&out, "%d bytes", len(v.Data))
			default:
				fmt.Fprintf(&out, "%q", v.Data)
			}
		}
		out.WriteString(")")
	}
	for _, data := range messages {
		m, err := d.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, data, m)
		switch m.Kind {
		case decoder.KindNone:
			fmt.Fprintf(&out, "%c\n", data[0])
		case decoder.KindBegin:
			out.WriteString("begin\n")
		case decoder.KindCommit:
			out.WriteString("commit\n")
		case decoder.KindRelation:
			fmt.Fprintf(&out, "relation %s identity %c:", m.Relation, m.Relation.ReplicaIdentity)
			for _, c := range m.Relation.Columns {
				fmt.Fprintf(&out, " %s", c.Name)
				if c.Key {
					out.WriteString("*")
				}
			}
			out.WriteString("\n")
		case decoder.KindChange:
			fmt.Fprintf(&out, "%c %s", m.Change.Action, m.Change.Relation)
			if m.Change.OldKind != decoder.OldNone {
				image(string(rune(m.Change.OldKind)), m.Change.Old)
			}
			image("N", m.Change.New)
			out.WriteString("\n")
		case decoder.KindTruncate:
			fmt.Fprintf(&out, "truncate %v cascade %v restart %v\n", m.Truncate.Relations, m.Truncate.Cascade, m.Truncate.RestartIdentity)
		case decoder.KindLogical:
			fmt.Fprintf(&out, "message transactional %v %q %q\n", m.Logical.Transactional, m.Logical.Prefix, m.Logical.Content)
		}
	}
	return out.String()
}

// compare holds what was decoded against what the established parser reads, where that
// parser manages.
func compare(t testing.TB, data []byte, m *decoder.Message) {
	t.Helper()
	theirs, err := pglogrepl.Parse(data)
	if err != nil {
		return // it refuses tuples without columns
	}
	tuple := func(name string, ours []decoder.Value, theirs *pglogrepl.TupleData) {
		if theirs == nil {
			if len(ours) != 0 {
				t.Fatalf("%s image of %d columns, theirs has none", name, len(ours))
			}
			return
		}
		if len(ours) != len(theirs.Columns) {
			t.Fatalf("%s image of %d columns, theirs has %d", name, len(ours), len(theirs.Columns))
		}
		for i, c := range theirs.Columns {
			if byte(ours[i].Kind) != c.DataType || !bytes.Equal(ours[i].Data, c.Data) {
				t.Fatalf("%s image: column %d differs", name, i)
			}
		}
	}
	switch x := theirs.(type) {
	case *pglogrepl.BeginMessage:
		if uint64(m.Begin.CommitLSN) != uint64(x.FinalLSN) || m.Begin.XID != x.Xid || !m.Begin.CommitTime.Equal(x.CommitTime) {
			t.Fatalf("begin %+v, theirs %+v", m.Begin, x)
		}
	case *pglogrepl.CommitMessage:
		if uint64(m.Commit.CommitLSN) != uint64(x.CommitLSN) || uint64(m.Commit.EndLSN) != uint64(x.TransactionEndLSN) || !m.Commit.CommitTime.Equal(x.CommitTime) {
			t.Fatalf("commit %+v, theirs %+v", m.Commit, x)
		}
	case *pglogrepl.RelationMessage:
		if m.Relation.ID != x.RelationID || m.Relation.Name != x.RelationName || m.Relation.Namespace != x.Namespace || byte(m.Relation.ReplicaIdentity) != x.ReplicaIdentity || len(m.Relation.Columns) != len(x.Columns) {
			t.Fatalf("relation %+v, theirs %+v", m.Relation, x)
		}
		for i, c := range x.Columns {
			if o := m.Relation.Columns[i]; o.Name != c.Name || o.TypeOID != c.DataType || o.TypeMod != c.TypeModifier || o.Key != (c.Flags&1 != 0) {
				t.Fatalf("column %+v, theirs %+v", o, c)
			}
		}
	case *pglogrepl.InsertMessage:
		tuple("new", m.Change.New, x.Tuple)
	case *pglogrepl.UpdateMessage:
		if byte(m.Change.OldKind) != x.OldTupleType {
			t.Fatalf("old image %c, theirs %c", m.Change.OldKind, x.OldTupleType)
		}
		tuple("old", m.Change.Old, x.OldTuple)
		tuple("new", m.Change.New, x.NewTuple)
	case *pglogrepl.DeleteMessage:
		tuple("old", m.Change.Old, x.OldTuple)
	case *pglogrepl.TruncateMessage:
		if len(m.Truncate.Relations) != len(x.RelationIDs) {
			t.Fatalf("truncate of %d, theirs of %d", len(m.Truncate.Relations), len(x.RelationIDs))
		}
		for i, rel := range m.Truncate.Relations {
			if rel.ID != x.RelationIDs[i] {
				t.Fatalf("truncate of relation %d, theirs of %d", rel.ID, x.RelationIDs[i])
			}
		}
	case *pglogrepl.LogicalDecodingMessage:
		if m.Logical.Transactional != x.Transactional || uint64(m.Logical.LSN) != uint64(x.LSN) || string(m.Logical.Prefix) != x.Prefix || !bytes.Equal(m.Logical.Content, x.Content) {
			t.Fatalf("message %+v, theirs %+v", m.Logical, x)
		}
	}
}

func corpusFile(name string) string { return filepath.Join("testdata", name+".hex") }

func corpus(t testing.TB, name string) [][]byte {
	t.Helper()
	text, err := os.ReadFile(corpusFile(name))
	if err != nil {
		t.Fatal(err)
	}
	var messages [][]byte
	for line := range strings.Lines(string(text)) {
		data, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, data)
	}
	return messages
}

// The server at hand says the same as the one that testdata was taken from, and what
// is made of it stands in the outlines next to it. With the environment variable
// UPDATE_TESTDATA=1 both are written anew.
func TestWhatPostgresSends(t *testing.T) {
	for name, sql := range scenarios() {
		t.Run(name, func(t *testing.T) {
			messages := capture(t, sql)
			golden := filepath.Join("testdata", name+".txt")
			if os.Getenv("UPDATE_TESTDATA") == "1" {
				var text strings.Builder
				for _, m := range messages {
					fmt.Fprintf(&text, "%x\n", m)
				}
				if err := errors.Join(os.WriteFile(corpusFile(name), []byte(text.String()), 0o644),
					os.WriteFile(golden, []byte(outline(t, messages)), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got := outline(t, corpus(t, name)); got != string(want) {
				t.Errorf("from testdata:\n%s\nwant:\n%s", got, want)
			}
			if got := outline(t, messages); got != string(want) {
				t.Errorf("from the server:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// What a real server sent, cut short at every byte: always an error, so that a part of
// a row is never taken for the row.
func TestRealMessagesCutShort(t *testing.T) {
	for name := range scenarios() {
		messages := corpus(t, name)
		for i, whole := range messages {
			if len(whole) > 2000 && testing.Short() {
				continue
			}
			step := max(1, len(whole)/500)
			for n := 0; n < len(whole); n += step {
				d := decoder.New()
				for _, m := range messages[:i] {
					if _, err := d.Decode(m); err != nil {
						t.Fatal(err)
					}
				}
				var fe *decoder.FormatError
				if _, err := d.Decode(whole[:n:n]); !errors.As(err, &fe) {
					t.Fatalf("%s: message %d cut to %d of %d bytes: %v", name, i, n, len(whole), err)
				}
			}
		}
	}
}

// Sequences of messages, each after a length of two bytes: no panic, FormatErrors
// only, and nothing outside of the input is ever referred to.
func FuzzSequence(f *testing.F) {
	pack := func(messages [][]byte) (packed []byte) {
		for _, m := range messages {
			if len(m) < 1<<10 { // large seeds make for slow fuzzing
				packed = append(append(packed, byte(len(m)>>8), byte(len(m))), m...)
			}
		}
		return packed
	}
	for name := range scenarios() {
		f.Add(pack(corpus(f, name)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := decoder.New()
		open := false
		for len(data) >= 2 {
			n := min(int(data[0])<<8|int(data[1]), len(data)-2)
			// A copy without spare room: reading or appending past it would show.
			message := slices.Clip(bytes.Clone(data[2 : 2+n]))
			data = data[2+n:]
			m, err := d.Decode(message)
			if err != nil {
				var fe *decoder.FormatError
				if !errors.As(err, &fe) {
					t.Fatalf("%T is no FormatError: %v", err, err)
				}
				return
			}
			switch m.Kind {
			case decoder.KindBegin:
				if open {
					t.Fatal("a transaction inside of another")
				}
				open = true
			case decoder.KindCommit:
				if !open {
					t.Fatal("a commit of nothing")
				}
				open = false
			case decoder.KindChange:
				if !open || len(m.Change.New) != 0 && len(m.Change.New) != len(m.Change.Relation.Columns) ||
					len(m.Change.Old) != 0 && len(m.Change.Old) != len(m.Change.Relation.Columns) {
					t.Fatalf("change %+v", m.Change)
				}
				for _, v := range slices.Concat(m.Change.Old, m.Change.New) {
					if len(v.Data) > len(message) || cap(v.Data) != len(v.Data) {
						t.Fatalf("a value of %d bytes, capacity %d, in a message of %d", len(v.Data), cap(v.Data), len(message))
					}
				}
			case decoder.KindTruncate:
				if slices.Contains(m.Truncate.Relations, nil) {
					t.Fatal("a truncate of an unknown relation")
				}
			}
		}
	})
}
