package decoder

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// wire builds messages as the protocol's documentation lays them out.
type wire []byte

func (w wire) u8(v byte) wire     { return append(w, v) }
func (w wire) u16(v uint16) wire  { return binary.BigEndian.AppendUint16(w, v) }
func (w wire) u32(v uint32) wire  { return binary.BigEndian.AppendUint32(w, v) }
func (w wire) u64(v uint64) wire  { return binary.BigEndian.AppendUint64(w, v) }
func (w wire) str(s string) wire  { return append(append(w, s...), 0) }
func (w wire) text(s string) wire { return append(w.u8('t').u32(uint32(len(s))), s...) }

const epoch2000 = 946684800

func begin(commit uint64, xid uint32) wire { return wire{'B'}.u64(commit).u64(1_000_000).u32(xid) }
func commit(at, end uint64) wire           { return wire{'C'}.u8(0).u64(at).u64(end).u64(1_000_000) }

func relation(id uint32, identity byte, columns ...string) wire {
	w := wire{'R'}.u32(id).str("public").str("users").u8(identity).u16(uint16(len(columns)))
	for i, c := range columns {
		flags := byte(0)
		if i == 0 {
			flags = 1
		}
		w = w.u8(flags).str(c).u32(25).u32(0xffffffff)
	}
	return w
}

// feed decodes messages in order and returns the last one.
func feed(t testing.TB, d *Decoder, messages ...wire) *Message {
	t.Helper()
	var m *Message
	for _, w := range messages {
		var err error
		if m, err = d.Decode(w); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestTransactionBounds(t *testing.T) {
	d := New()
	m := feed(t, d, begin(100, 7))
	if m.Kind != KindBegin || m.Begin.CommitLSN != 100 || m.Begin.XID != 7 || !m.Begin.CommitTime.Equal(time.Unix(epoch2000+1, 0)) {
		t.Errorf("begin %+v", m.Begin)
	}
	m = feed(t, d, commit(100, 140))
	if m.Kind != KindCommit || m.Commit.CommitLSN != 100 || m.Commit.EndLSN != 140 {
		t.Errorf("commit %+v", m.Commit)
	}
}

func TestRows(t *testing.T) {
	d := New()
	feed(t, d, begin(100, 7), relation(1, 'd', "id", "note", "gone"))
	m := feed(t, d, wire{'U'}.u32(1).u8('K').u16(3).text("1").u8('n').u8('n').u8('N').u16(3).text("2").u8('u').text(""))
	c := m.Change
	if m.Kind != KindChange || c.Action != Update || c.OldKind != OldKey || c.Relation.String() != "public.users" ||
		string(c.Old[0].Data) != "1" || c.Old[1].Kind != Null || string(c.New[0].Data) != "2" || c.New[1].Kind != Unchanged || c.New[2].Kind != Text {
		t.Errorf("update %+v", c)
	}
	m = feed(t, d, wire{'I'}.u32(1).u8('N').u16(3).text("3").u8('n').u8('n'))
	if c := m.Change; c.Action != Insert || c.OldKind != OldNone || len(c.Old) != 0 || string(c.New[0].Data) != "3" {
		t.Errorf("insert %+v", c)
	}
	m = feed(t, d, wire{'D'}.u32(1).u8('O').u16(3).text("4").u8('n').text("x"))
	if c := m.Change; c.Action != Delete || c.OldKind != OldFull || len(c.New) != 0 || string(c.Old[2].Data) != "x" {
		t.Errorf("delete %+v", c)
	}
	m = feed(t, d, wire{'T'}.u32(1).u8(3).u32(1))
	if m.Kind != KindTruncate || len(m.Truncate.Relations) != 1 || !m.Truncate.Cascade || !m.Truncate.RestartIdentity {
		t.Errorf("truncate %+v", m.Truncate)
	}
}

// Postgres does send tuples without columns, which other parsers refuse.
func TestTableWithoutColumns(t *testing.T) {
	m := feed(t, New(), begin(1, 1), relation(1, 'f'), wire{'I'}.u32(1).u8('N').u16(0))
	if m.Kind != KindChange || len(m.Change.New) != 0 {
		t.Errorf("%+v", m)
	}
}

func TestRelations(t *testing.T) {
	d := New()
	first := feed(t, d, relation(1, 'd', "id", "a")).Relation
	if again := feed(t, d, relation(1, 'd', "id", "a")).Relation; again != first {
		t.Error("a relation described again unchanged is another pointer: whatever was bound to it is lost")
	}
	if first.Columns[1].Key || !first.Columns[0].Key {
		t.Errorf("identity of %+v", first.Columns)
	}
	changed := feed(t, d, relation(1, 'f', "id", "a")).Relation
	if changed == first || !changed.Columns[1].Key {
		t.Error("a changed relation is the same pointer, or FULL does not cover every column")
	}
	catalog := feed(t, d, wire{'R'}.u32(2).str("").str("pg_class").u8('n').u16(0)).Relation
	if catalog.Namespace != "pg_catalog" {
		t.Errorf("namespace %q", catalog.Namespace)
	}
	n := 0
	for range d.Relations {
		n++
	}
	if n != 2 {
		t.Errorf("%d relations are known, want 2", n)
	}
}

func TestLogicalMessages(t *testing.T) {
	d := New()
	m := feed(t, d, wire{'M'}.u8(0).u64(55).str("p").u32(2).u8('h').u8('i'))
	if m.Kind != KindLogical || m.Logical.Transactional || m.Logical.LSN != 55 || string(m.Logical.Prefix) != "p" || string(m.Logical.Content) != "hi" {
		t.Errorf("%+v", m.Logical)
	}
	m = feed(t, d, begin(60, 1), wire{'M'}.u8(1).u64(58).str("").u32(0))
	if !m.Logical.Transactional {
		t.Errorf("%+v", m.Logical)
	}
	if m := feed(t, d, wire{'Y'}.u32(1).str("public").str("mood")); m.Kind != KindNone {
		t.Errorf("a type is reported as %v", m.Kind)
	}
	if m := feed(t, d, wire{'O'}.u64(1).str("origin")); m.Kind != KindNone {
		t.Errorf("an origin is reported as %v", m.Kind)
	}
}

func TestMalformed(t *testing.T) {
	row := wire{'I'}.u32(1).u8('N').u16(1).text("1")
	for _, tt := range []struct {
		name   string
		before []wire
		bad    wire
		says   string
	}{
		{"empty", nil, wire{}, "no message type"},
		{"unknown", nil, wire{'Z'}, "unknown message type"},
		{"streamed", nil, wire{'S'}.u32(1).u8(1), "two_phase"},
		{"row outside of a transaction", []wire{relation(1, 'd', "id")}, row, "outside of a transaction"},
		{"row of an unknown relation", []wire{begin(1, 1)}, row, "never described"},
		{"too few columns", []wire{begin(1, 1), relation(1, 'd', "id", "x")}, row, "has 2"},
		{"unknown column kind", []wire{begin(1, 1), relation(1, 'd', "id")}, wire{'I'}.u32(1).u8('N').u16(1).u8('z'), "column kind"},
		{"insert with an old image", []wire{begin(1, 1), relation(1, 'd', "id")}, wire{'I'}.u32(1).u8('O').u16(1).text("1").u8('N').u16(1).text("1"), "old image"},
		{"delete with a new image", []wire{begin(1, 1), relation(1, 'd', "id")}, wire{'D'}.u32(1).u8('N').u16(1).text("1"), "want K or O"},
		{"nested begin", []wire{begin(1, 1)}, begin(2, 2), "already open"},
		{"commit of nothing", nil, commit(1, 2), "no transaction"},
		{"commit of another", []wire{begin(1, 1)}, commit(2, 3), "was begun"},
		{"commit that ends before it", []wire{begin(5, 1)}, commit(5, 5), "not after its commit record"},
		{"huge length", []wire{begin(1, 1), relation(1, 'd', "id")}, wire{'I'}.u32(1).u8('N').u16(1).u8('t').u32(0xffffffff), "impossible"},
		{"many columns in a short message", nil, wire{'R'}.u32(1).str("a").str("b").u8('d').u16(0xffff), "more bytes"},
		{"unknown identity", nil, wire{'R'}.u32(1).str("a").str("b").u8('?').u16(0), "replica identity"},
		{"left over", nil, append(begin(1, 1), 0), "left over"},
		{"truncate of an unknown relation", []wire{begin(1, 1)}, wire{'T'}.u32(1).u8(0).u32(9), "never described"},
		{"transactional message outside", nil, wire{'M'}.u8(1).u64(1).str("p").u32(0), "outside of a transaction"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := New()
			feed(t, d, tt.before...)
			_, err := d.Decode(tt.bad)
			var fe *FormatError
			if !errors.As(err, &fe) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want one about %q", err, tt.says)
			}
		})
	}
}

// Each message cut short anywhere is an error, never a panic and never accepted.
func TestCutShort(t *testing.T) {
	for _, whole := range []wire{
		begin(5, 1), commit(5, 6), relation(1, 'd', "id", "name"), wire{'T'}.u32(1).u8(0).u32(1),
		wire{'U'}.u32(1).u8('O').u16(2).text("1").u8('n').u8('N').u16(2).text("2").u8('u'), wire{'M'}.u8(0).u64(1).str("p").u32(2).u8(1).u8(2),
	} {
		for n := range len(whole) {
			d := New()
			feed(t, d, relation(1, 'd', "id", "name"))
			if whole[0] != 'B' {
				feed(t, d, begin(5, 1))
			}
			if _, err := d.Decode(whole[:n]); err == nil {
				t.Errorf("%q cut to %d of %d bytes is accepted", whole[0], n, len(whole))
			}
		}
	}
}

func TestRowsAllocateNothing(t *testing.T) {
	d := New()
	feed(t, d, begin(1, 1), relation(1, 'd', "id", "name"))
	row := wire{'U'}.u32(1).u8('N').u16(2).text("1").text("a longer value")
	feed(t, d, row)
	if n := testing.AllocsPerRun(100, func() { _, _ = d.Decode(row) }); n != 0 {
		t.Errorf("%v allocations a row", n)
	}
}

func BenchmarkRow(b *testing.B) {
	d := New()
	feed(b, d, begin(1, 1), relation(1, 'd', "id", "tenant_id", "name", "email", "balance"))
	row := wire{'U'}.u32(1).u8('N').u16(5).text("123456").text("7").text("name 1").text("user1@example.com").text("17")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Decode(row); err != nil {
			b.Fatal(err)
		}
	}
}

// Whatever the bytes are: no panic, only FormatErrors, and what is accepted is
// what the established parser reads too.
func FuzzDecode(f *testing.F) {
	for _, w := range []wire{
		begin(5, 1), commit(1, 2), relation(1, 'f', "id"), wire{'I'}.u32(1).u8('N').u16(1).text("1"),
		wire{'U'}.u32(1).u8('O').u16(1).u8('n').u8('N').u16(1).u8('u'), wire{'T'}.u32(1).u8(0).u32(1), wire{'M'}.u8(1).u64(1).str("p").u32(1).u8(1), {},
	} {
		f.Add([]byte(w))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := New()
		feed(t, d, begin(1, 1), relation(1, 'd', "id"))
		m, err := d.Decode(data)
		if err != nil {
			var fe *FormatError
			if !errors.As(err, &fe) {
				t.Fatalf("%T is no FormatError: %v", err, err)
			}
			return
		}
		theirs, err := pglogrepl.Parse(data)
		if err != nil {
			return // stricter than we are where it is wrong: tuples without columns
		}
		switch theirs := theirs.(type) {
		case *pglogrepl.UpdateMessage:
			if len(theirs.NewTuple.Columns) != len(m.Change.New) {
				t.Fatalf("%d columns, theirs %d", len(m.Change.New), len(theirs.NewTuple.Columns))
			}
			for i, c := range theirs.NewTuple.Columns {
				if c.DataType != byte(m.Change.New[i].Kind) || string(c.Data) != string(m.Change.New[i].Data) {
					t.Fatalf("column %d is %+v, theirs %+v", i, m.Change.New[i], c)
				}
			}
		case *pglogrepl.CommitMessage:
			if lsn.LSN(theirs.CommitLSN) != m.Commit.CommitLSN || lsn.LSN(theirs.TransactionEndLSN) != m.Commit.EndLSN {
				t.Fatalf("commit %+v, theirs %+v", m.Commit, theirs)
			}
		}
	})
}
