package keytype_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/keytype"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

func TestMain(m *testing.M) { servertest.VerifyMain(m) }

// column is one type that keys can be made of, and rows of it.
type column struct {
	sql    string
	form   keytype.Form
	normal string
	rows   []string // literals
}

// columns are one of each type, with domains, and what is odd about it.
var columns = []column{
	{"smallint", keytype.Integer, "", []string{"7", "-7", "0"}},
	{"integer", keytype.Integer, "", []string{"7", "-7", "0"}},
	{"bigint", keytype.Integer, "", []string{"7", "-7", "255", "9223372036854775807"}},
	{"d_bigint", keytype.Integer, "", []string{"7", "255"}},
	{"oid", keytype.Integer, "", []string{"7", "4294967295"}},
	{"xid", keytype.Integer, "", []string{"7"}},
	{"cid", keytype.Integer, "", []string{"7"}},
	{"xid8", keytype.Integer, "", []string{"7"}},
	{"boolean", keytype.Bool, "", []string{"t", "f"}},
	{"d_bool", keytype.Bool, "", []string{"t"}},
	{"numeric(10,2)", keytype.Numeric, "", []string{"1.5", "2.5", "3", "-0.05", "0", "NaN", "1200", "7"}},
	{"numeric(10,0)", keytype.Numeric, "", []string{"3", "1200", "7"}},
	{"numeric(4,-2)", keytype.Numeric, "", []string{"1200", "0"}},
	{"numeric(3,5)", keytype.Numeric, "", []string{"0.00012"}},
	{"d_price", keytype.Numeric, "", []string{"1.5", "7"}},
	{"numeric", keytype.NumericFree, "", []string{"1.5", "1.50", "3", "3.0", "7", "NaN", "Infinity"}},
	{"numeric", keytype.NumericFree, "number", []string{"1.5", "1.50", "3", "3.0", "7", "0.00", "-0.050", "1200", "NaN", "Infinity", "-Infinity"}},
	{"real", keytype.Float, "", []string{"1.5", "0", "-0"}},
	{"double precision", keytype.Float, "", []string{"1.5", "0", "-0", "NaN"}},
	{"d_float", keytype.Float, "", []string{"1.5"}},
	{"text", keytype.Text, "", []string{"new", "New", "7", "007", "", "a:b %", "10.0.0.1", "t", "1.5", "OrderStatus(new)", "é", "usr_ff"}},
	{"text", keytype.Text, "lower", []string{"new", "10.0.0.1"}},
	{"varchar", keytype.Text, "", []string{"new", "7"}},
	{"varchar(5)", keytype.Text, "", []string{"new", "7"}},
	{"d_text", keytype.Text, "", []string{"new", "7"}},
	{`text COLLATE "C"`, keytype.Text, "", []string{"new", "7"}},
	{`text COLLATE nocase`, keytype.Text, "", []string{"new", "New", "7"}},
	{`text COLLATE nocase`, keytype.Text, "lower", []string{"new", "7"}},
	{`varchar COLLATE nocase`, keytype.Text, "", []string{"new"}},
	{"d_nocase", keytype.Text, "", []string{"new"}},
	{"char(6)", keytype.Blank, "", []string{"new", "7", "new   ", ""}},
	{"char", keytype.Blank, "", []string{"x", "7"}},
	{"bpchar", keytype.Blank, "", []string{"new", "new  "}},
	{"d_char", keytype.Blank, "", []string{"new", "7", "é"}},
	{"d_char", keytype.Blank, "rtrim", []string{"new", "7"}},
	{"dd_char", keytype.Blank, "", []string{"new", "7"}},
	{"d_bpchar", keytype.Blank, "", []string{"new", "new  "}},
	{"d_bpchar", keytype.Blank, "rtrim", []string{"new", "new  "}},
	{"name", keytype.Name, "", []string{"new", strings.Repeat("n", 63)}},
	{`"char"`, keytype.Char, "", []string{"x", "7"}},
	{"citext", keytype.Citext, "", []string{"Bob@Example.com", "new"}},
	{"citext", keytype.Citext, "lower", []string{"Bob@Example.com", "NEW", "7"}},
	{"d_citext", keytype.Citext, "", []string{"Bob@Example.com"}},
	{"d_citext", keytype.Citext, "lower", []string{"Bob@Example.com"}},
	{"mood", keytype.Enum, "", []string{"new", "so so"}},
	{"d_mood", keytype.Enum, "", []string{"new"}},
	{"uuid", keytype.UUID, "", []string{someUUID}},
	{"d_uuid", keytype.UUID, "", []string{someUUID}},
	{"bytea", keytype.Bytea, "", []string{`\x00ff`, `\x`, `\x6e6577`}},
	{"d_bytea", keytype.Bytea, "", []string{`\x00ff`}},
	{"date", keytype.Date, "", []string{"2024-03-01", "0044-03-15 BC", "infinity", "12024-03-01"}},
	{"d_date", keytype.Date, "", []string{"2024-03-01"}},
	{"time", keytype.Time, "", []string{"12:34:56.789", "24:00:00", "00:00:00"}},
	{"time(0)", keytype.Time, "", []string{"12:34:57"}},
	{"timetz", keytype.TimeTZ, "", []string{"12:34:56.789+01", "12:34:56.789-05:30", "12:34:56+00", "12:34:56+01:02:03"}},
	{"timestamp", keytype.Timestamp, "", []string{"2024-03-01 12:34:56.789", "2024-03-01 12:34:56", "0044-03-15 00:00:00 BC", "infinity", "2024-03-01 00:00:00", "12024-03-01 00:00:00"}},
	{"timestamp(0)", keytype.Timestamp, "", []string{"2024-03-01 12:34:57"}},
	{"d_timestamp", keytype.Timestamp, "", []string{"2024-03-01 12:34:56.789"}},
	{"timestamptz", keytype.TimestampTZ, "", []string{"2024-03-01 12:34:56.789+00", "2024-03-01 12:34:56+00", "0044-03-15 00:00:00+00 BC", "-infinity", "12024-03-01 00:00:00+00"}},
	{"timestamptz(3)", keytype.TimestampTZ, "", []string{"2024-03-01 12:34:56.789+00"}},
	{"d_timestamptz", keytype.TimestampTZ, "", []string{"2024-03-01 12:34:56.789+00"}},
	{"interval", keytype.Interval, "", []string{"1 mon 2 days", "1 mon", "30 days"}},
	{"inet", keytype.Inet, "", []string{"10.0.0.1", "10.0.0.1/8", "::1", "::1.2.3.4", "::ffff:1.2.3.4", "2001:db8::1", "2001:db8:0:1:1:1:1:1/64", "1:0:0:2::3", "::"}},
	{"d_inet", keytype.Inet, "", []string{"10.0.0.1"}},
	{"cidr", keytype.CIDR, "", []string{"10.0.0.1/32", "10.0.0.0/8", "::1/128", "2001:db8::/32", "0.0.0.0/0"}},
	{"macaddr", keytype.MAC, "", []string{"08:00:2b:01:02:03"}},
	{"macaddr8", keytype.MAC8, "", []string{"08:00:2b:01:02:03:04:05", "08:00:2b:ff:fe:01:02:03"}},
	{"bit(4)", keytype.Bit, "", []string{"0101"}},
	{"bit", keytype.Bit, "", []string{"1"}},
	{"varbit", keytype.Varbit, "", []string{"0101", "", "1"}},
	{"pg_lsn", keytype.LSN, "", []string{"16/B374D848", "0/0"}},
	{"json", keytype.JSON, "", []string{`{"a": 1}`, "7"}},
	{"jsonb", keytype.JSON, "", []string{`{"a": 1}`, `{"a": 1.0}`, "7"}},
	{"jsonpath", keytype.Other, "", []string{"$.a"}},
	{"xml", keytype.Other, "", []string{"<a/>"}},
	{"money", keytype.Session, "", []string{"1"}},
	{"point", keytype.Other, "", []string{"(1,2)"}},
	{"tsvector", keytype.Other, "", []string{"'a'"}},
	{"tid", keytype.Other, "", []string{"(0,1)"}},
	{"regclass", keytype.Session, "", []string{"pg_class"}},
	{"text[]", keytype.Array, "", []string{"{new}"}},
	{"bigint[]", keytype.Array, "", []string{"{7}"}},
	{"uuid[]", keytype.Array, "", []string{"{" + someUUID + "}"}},
	{"d_bigint[]", keytype.Array, "", []string{"{7}"}},
	{"mood[]", keytype.Array, "", []string{"{new}"}},
	{"char(6)[]", keytype.Array, "", []string{"{new}"}},
	{"d_tags", keytype.Array, "", []string{"{new}"}},
	{"int2vector", keytype.Array, "", []string{"7"}},
	{"int8range", keytype.Range, "", []string{"[1,5)"}},
	{"numrange", keytype.Range, "", []string{"[1,5)", "[1.0,5)"}},
	{"int8multirange", keytype.Range, "", []string{"{[1,5)}"}},
	{"pair", keytype.Composite, "", []string{"(1,x)"}},
	{"d_pair", keytype.Composite, "", []string{"(1,x)"}},
	// Domains over domains, of each kind of form.
	{"dd_bigint", keytype.Integer, "", []string{"7", "255"}},
	{"dd_price", keytype.Numeric, "", []string{"1.5", "7"}},
	{"dd_text", keytype.Text, "", []string{"new", "7"}},
	{"dd_citext", keytype.Citext, "lower", []string{"Bob@Example.com"}},
	{"dd_mood", keytype.Enum, "", []string{"new"}},
	{"dd_bpchar", keytype.Blank, "rtrim", []string{"new", "new  "}},
	{"dd_inet", keytype.Inet, "", []string{"10.0.0.1"}},
	{"dd_varbit", keytype.Varbit, "", []string{"0101"}},
	{"d_tags[]", keytype.Array, "", []string{`{"{new}"}`}},
	{"text[]", keytype.Array, "", []string{`{NULL,"NULL","a\"b","c\\d",""}`, "{}", "{{a},{b}}", "[0:0]={a}"}},
	{"d_mood[]", keytype.Array, "", []string{`{new,"so so"}`}},
	{"text", keytype.Text, "", []string{"e\u0301", "\u00e9", "50%", "{id}", "a\nb", "a\tb", " x", "x ", "%-", "*?[", "\ufffd", "\U0001f600", "\u0130"}},
	{"varchar(3)", keytype.Text, "", []string{"e\u0301", "a b"}},
	{"char(6)", keytype.Blank, "", []string{"a\u00a0", "e\u0301", "%", "a\nb"}},
	{"citext", keytype.Citext, "lower", []string{"e\u0301", "\u00c9", "50%", "{ID}", "A\nB", ""}},
	{`"char"`, keytype.Char, "", []string{"", "%"}},
	{"name", keytype.Name, "", []string{"", "50%", "e\u0301"}},
	{"odd", keytype.Enum, "", []string{"50%", "a:b", "E\u0301", "a,b \"c\""}},
	{"bytea", keytype.Bytea, "", []string{`\x5c7830306666`, `\x25`}},
	{"numeric(10,2)", keytype.Numeric, "", []string{"0.00", "-0", "99999999.99", "-1.10"}},
	{"numeric(1000,0)", keytype.Numeric, "", []string{"10000000000000000", "1e100"}},
	{"numeric", keytype.NumericFree, "number", []string{"1e16", "1e-10", "10000000000000000", "123456789012345678901234567890.5"}},
	{"double precision", keytype.Float, "", []string{"1e16", "1e15", "0.1", "-Infinity", "1e-5", "123456789.12345679"}},
	{"real", keytype.Float, "", []string{"1e16", "0.1", "Infinity", "16777216"}},
	{"date", keytype.Date, "", []string{"-infinity", "0001-01-01", "0001-12-31 BC", "9999-12-31", "10000-01-01", "5874897-12-31", "4713-01-01 BC"}},
	{"timestamp", keytype.Timestamp, "", []string{"294276-12-31 23:59:59.999999", "4713-01-01 00:00:00 BC", "0001-01-01 00:00:00", "9999-12-31 23:59:59.999999", "2000-01-01 24:00:00"}},
	{"timestamptz", keytype.TimestampTZ, "", []string{"294276-12-31 23:59:59.999999+00", "2024-03-01 12:34:56.789+05:30", "0001-01-01 00:00:00+00", "10000-01-01 00:00:00+00", "infinity"}},
	{"time", keytype.Time, "", []string{"23:59:59.999999", "00:00:00.000001"}},
	{"timetz", keytype.TimeTZ, "", []string{"24:00:00+00", "00:00:00-15:59:59"}},
	{"interval", keytype.Interval, "", []string{"-1 mon +1 day -00:00:01.5", "00:00:00", "1 year 2 mons", "-1 days", "1000000:00:00"}},
	{"inet", keytype.Inet, "", []string{"10.0.0.0/8", "0.0.0.0/0", "::ffff:10.0.0.1", "::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}},
	{"cidr", keytype.CIDR, "", []string{"::ffff:0.0.0.0/96", "10.0.0.0/31", "::/0"}},
	{"varbit(4)", keytype.Varbit, "", []string{"01", "0101"}},
	{"bit(9)", keytype.Bit, "", []string{"010101010"}},
	{"pg_lsn", keytype.LSN, "", []string{"FFFFFFFF/FFFFFFFF", "0/1"}},
	{"xid8", keytype.Integer, "", []string{"18446744073709551615", "0"}},
	{"money", keytype.Session, "", []string{"-1234.5", "0"}},
	{"tstzrange", keytype.Range, "", []string{"[2024-03-01 00:00:00+00,)", "empty"}},
	{"daterange", keytype.Range, "", []string{"[2024-03-01,2024-03-02]"}},
	{"nummultirange", keytype.Range, "", []string{"{}", "{[1.0,2),[3,4]}"}},
	{"pair[]", keytype.Array, "", []string{`{"(1,x)"}`}},
}

const someUUID = "6b1d0c3e-0000-4000-8000-00000000abcd"

var schema = []string{
	`CREATE EXTENSION IF NOT EXISTS citext`,
	`CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`,
	`CREATE TYPE mood AS ENUM ('new', 'so so')`, `CREATE TYPE pair AS (a int, b text)`,
	`CREATE DOMAIN d_bigint AS bigint`, `CREATE DOMAIN d_bool AS boolean`, `CREATE DOMAIN d_price AS numeric(10,2)`, `CREATE DOMAIN d_float AS float8`,
	`CREATE DOMAIN d_text AS text CHECK (value <> 'x')`, `CREATE DOMAIN d_nocase AS text COLLATE nocase`, `CREATE DOMAIN d_char AS char(6)`, `CREATE DOMAIN dd_char AS d_char`,
	`CREATE DOMAIN d_bpchar AS bpchar`, `CREATE DOMAIN d_citext AS citext`, `CREATE DOMAIN d_mood AS mood`, `CREATE DOMAIN d_uuid AS uuid`,
	`CREATE DOMAIN d_bytea AS bytea`, `CREATE DOMAIN d_date AS date`, `CREATE DOMAIN d_timestamp AS timestamp`, `CREATE DOMAIN d_timestamptz AS timestamptz`,
	`CREATE DOMAIN d_inet AS inet`, `CREATE DOMAIN d_tags AS text[]`, `CREATE DOMAIN d_pair AS pair`,
	`CREATE DOMAIN dd_bigint AS d_bigint CHECK (value > 0)`, `CREATE DOMAIN dd_price AS d_price`, `CREATE DOMAIN dd_text AS d_text`, `CREATE DOMAIN dd_citext AS d_citext`,
	`CREATE DOMAIN dd_mood AS d_mood`, `CREATE DOMAIN dd_bpchar AS d_bpchar`, `CREATE DOMAIN dd_inet AS d_inet`, `CREATE DOMAIN d_varbit AS varbit(4)`, `CREATE DOMAIN dd_varbit AS d_varbit`,
	`CREATE TYPE odd AS ENUM ('50%', 'a:b', E'E\u0301', 'a,b "c"')`,
}

// laid is what the columns are as tables: t0, t1, ... with families f0, f1, ...
type laid struct {
	plan  *mapping.Plan
	types *keytype.Types
	vars  []keytype.Var
	keys  []map[int]string // of each table, by row: what stands in the daemon's key
}

// lay makes the tables and their rows, and reads what the walsender's plugin prints for them
// in a session with the settings of the daemon's.
func lay(t *testing.T) (*pgx.Conn, *laid) {
	t.Helper()
	db := servertest.Postgres(t)
	db.Exec(t, schema...)
	conn, err := replication.ConnectControl(t.Context(), db.URL+"", "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { replication.CloseControl(context.Background(), conn) })
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(`SET search_path = public, pg_catalog`)
	var families, mappings strings.Builder
	for i, c := range columns {
		exec(fmt.Sprintf(`CREATE TABLE t%d (id int, v %s)`, i, c.sql))
		exec(fmt.Sprintf(`ALTER TABLE t%d REPLICA IDENTITY FULL`, i))
		form := ""
		if c.normal != "" {
			form = "|" + c.normal
		}
		fmt.Fprintf(&families, "  f%d: {key: \"f%d:{v%s}\", class: c}\n", i, i, form)
		fmt.Fprintf(&mappings, "  - {table: public.t%d, keys: [f%d]}\n", i, i)
	}
	exec(`CREATE PUBLICATION p FOR ALL TABLES`)
	exec(`SELECT pg_create_logical_replication_slot('s', 'pgoutput')`)
	t.Cleanup(func() {
		if _, err := conn.Exec(context.Background(), `SELECT pg_drop_replication_slot('s')`); err != nil {
			t.Error(err)
		}
	})
	l := &laid{plan: plan(t, families.String(), mappings.String()), keys: make([]map[int]string, len(columns))}
	for i, c := range columns {
		for id, row := range append(slices.Clone(c.rows), "") {
			value := "'" + strings.ReplaceAll(row, "'", "''") + "'"
			if id == len(c.rows) {
				value = "NULL"
			}
			exec(fmt.Sprintf(`INSERT INTO t%d VALUES (%d, %s)`, i, id, value))
		}
	}
	l.readKeys(t, conn)
	if l.types, err = keytype.Read(t.Context(), conn, l.plan); err != nil {
		t.Fatal(err)
	}
	for i, c := range columns {
		f, _ := l.plan.Family(fmt.Sprintf("f%d", i))
		v := l.types.Family(f)[0]
		if err := v.Unknown(); err != nil {
			t.Fatalf("%s: %v", c.sql, err)
		}
		if got := v.Columns[0].Type.Form; got != c.form {
			t.Errorf("%s has form %d, want %d", c.sql, got, c.form)
		}
		l.vars = append(l.vars, v)
	}
	return conn, l
}

func plan(t testing.TB, families, mappings string) *mapping.Plan {
	t.Helper()
	f, err := mapping.Parse("m.yaml", []byte("version: 1\nsource: {url: \"postgres://x/y\"}\nredis: {url: \"redis://x\"}\nclasses: {c: {staleness: 1s}}\nkeys:\n"+
		families+"mappings:\n"+mappings), mapping.Env{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := mapping.Compile(f)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (l *laid) readKeys(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	rows, err := conn.Query(t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes('s', NULL, NULL, 'proto_version', '1', 'publication_names', 'p')`)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		t.Fatal(err)
	}
	dec := decoder.New()
	var out mapping.Output
	for _, raw := range messages {
		m, err := dec.Decode(raw)
		if err != nil {
			t.Fatal(err)
		}
		if m.Kind != decoder.KindChange {
			continue
		}
		rel := m.Change.Relation
		var n, id int
		if _, err := fmt.Sscanf(rel.Name, "t%d", &n); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(string(m.Change.New[0].Data), &id); err != nil {
			t.Fatal(err)
		}
		out.Reset()
		l.plan.Bind(rel).Map(&m.Change, &out)
		if len(out.Invalidations) != 1 {
			t.Fatalf("%s: %d keys", columns[n].sql, len(out.Invalidations))
		}
		if l.keys[n] == nil {
			l.keys[n] = map[int]string{}
		}
		l.keys[n][id] = strings.TrimPrefix(string(out.Invalidations[0].Key), fmt.Sprintf("f%d:", n))
	}
}

// Whatever Go value a loader can find a row by, as pgx sends it, makes the key that the daemon
// makes of the row, or is refused.
func TestEveryGoValueMakesTheDaemonsKeyOrIsRefused(t *testing.T) {
	conn, l := lay(t)
	values := goValues()
	taken := map[keytype.Form]map[string]bool{}
	found := 0
	for i, c := range columns {
		v := &l.vars[i]
		for _, value := range values {
			key, err := v.Append(nil, value)
			if isNull(value) {
				if err != nil || string(key) != l.keys[i][len(c.rows)] {
					t.Errorf("%s: %s is %q, %v, and the daemon's NULL is %q", c.sql, label(value), key, err, l.keys[i][len(c.rows)])
				}
				continue
			}
			if err != nil {
				continue
			}
			for _, id := range find(t, conn, fmt.Sprintf(`SELECT id FROM t%d WHERE v = $1`, i), value) {
				found++
				if string(key) != l.keys[i][id] {
					t.Errorf("%s|%s: %s finds the row %q, whose key is %q, and makes the key %q", c.sql, c.normal, label(value), c.rows[id], l.keys[i][id], key)
				}
				if taken[c.form] == nil {
					taken[c.form] = map[string]bool{}
				}
				taken[c.form][strings.Replace(fmt.Sprintf("%T", value), "keytype_test.", "", 1)] = true
			}
		}
		// The row's own text is taken, and makes its key.
		for id, key := range l.keys[i] {
			if id == len(c.rows) {
				continue
			}
			var text string
			if err := conn.QueryRow(t.Context(), fmt.Sprintf(`SELECT v::text FROM t%d WHERE id = %d`, i, id)).Scan(&text); err != nil {
				t.Fatal(err)
			}
			got, err := v.AppendRowText(nil, text)
			if c.form == keytype.Session || c.sql == "d_bpchar" && c.normal == "" { // what the cast prints is not what the log has
				if err == nil {
					t.Errorf("%s: the text %q is taken, as %q", c.sql, text, got)
				}
				continue
			}
			if err != nil || string(got) != key {
				t.Errorf("%s: the row's own text %q makes %q, %v, and the daemon %q", c.sql, text, got, err, key)
			}
		}
	}
	t.Logf("%d columns, %d Go values, %d rows found", len(columns), len(values), found)
	for _, info := range keytype.Forms() {
		if got := strings.Join(slices.Sorted(maps.Keys(taken[info.Form])), " "); got != wantTaken[info.Types] {
			t.Errorf("%q: %q,\nwant %q", info.Types, got, wantTaken[info.Types])
		}
	}
}

// find returns the rows that pgx finds by the value; none where it cannot be sent.
func find(t *testing.T, conn *pgx.Conn, sql string, value any) []int {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql, value)
	if err != nil {
		return nil
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		if conn.IsClosed() {
			t.Fatal(err)
		}
		return nil
	}
	return ids
}
