package protocol

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// given is a value that JSON has no form for: its kind, and its text.
type given struct{ kind, text string }

// MarshalJSON is for readers in other languages.
func (g given) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{g.kind: g.text})
}

type (
	label  string
	number int
)

// value is the one that a Go program has.
func (g given) value(t *testing.T) any {
	t.Helper()
	var v any
	var err error
	switch g.kind {
	case "decimal":
		v = json.Number(g.text)
	case "uuid":
		v, err = uuid.Parse(g.text)
	case "time":
		layout := time.RFC3339Nano
		if !strings.HasSuffix(g.text, "00:00") {
			layout = "2006-01-02T15:04:05.999999" // without a zone: of a timestamp
		}
		v, err = time.Parse(layout, g.text)
	case "addr":
		v, err = netip.ParseAddr(g.text)
	case "prefix":
		v, err = netip.ParsePrefix(g.text)
	case "row":
		v = cache.RowText(g.text)
	case "label": // of a type that is based on a string
		v = label(g.text)
	case "number": // on an integer
		var n int
		n, err = strconv.Atoi(g.text)
		v = number(n)
	}
	if err != nil || v == nil {
		t.Fatalf("%+v: %v", g, err)
	}
	return v
}

// typedCase is a value of a variable that comes from a column: how it stands in the key, or
// that it is refused.
type typedCase struct {
	column, normal string
	value          any
	encoded        string // "!" where it is refused
}

const anID = "6b1d0c3e-0000-4000-8000-00000000abcd"

var typedCases = []typedCase{
	{"bigint", "", 255, "255"}, {"bigint", "", -7, "-7"}, {"bigint", "", "255", "255"}, {"bigint", "", "007", "!"}, {"bigint", "", "+7", "!"}, {"bigint", "", true, "!"}, {"bigint", "", nil, "%-"},
	{"oid", "", -7, "!"}, {"oid", "", 7, "7"}, {"oid", "", 4294967296, "!"}, {"oid", "", "4294967295", "4294967295"}, {"oid", "", "18446744073709551615", "!"}, {"xid8", "", "18446744073709551616", "!"}, {"bigint", "", "", "!"}, {"interval", "", given{"row", "-1 mons +1 day -00:00:01.5"}, "-1%20mons%20+1%20day%20-00%3A00%3A01.5"}, {"interval", "", given{"row", "1 mon "}, "!"},
	{"text", "", "e\u0301", "e\u0301"}, {"text", "", "\u00e9", "\u00e9"}, {"text", "", "a\nb{%:}", "a%0Ab%7B%25%3A%7D"}, {"text", "", "", ""}, {"text", "", "%-", "%25-"}, {"char(6)", "", "a\u00a0", "a\u00a0"}, {"char(6)", "", "", ""}, {"boolean", "", true, "t"}, {"boolean", "", "t", "t"}, {"boolean", "", "true", "!"}, {"boolean", "", 1, "!"},
	{"text", "", "Ab ", "Ab%20"}, {"text", "", 7, "7"}, {"text", "", true, "!"}, {"text", "", given{"uuid", anID}, anID}, {"text", "lower", "ÄbΣİ", "äbσi"}, {"text", "lower", "Ⱨ\U00010570Ʌ", "ⱨ\U00010570ʌ"},
	{"name", "", strings.Repeat("n", 63), strings.Repeat("n", 63)}, {"name", "", strings.Repeat("n", 64), "!"},
	{"char(6)", "", "ab  ", "ab"}, {"code", "", "ab", "ab%20%20%20%20"}, {"code", "rtrim", "ab ", "ab"}, {`"char"`, "", "x", "x"}, {`"char"`, "", "xy", "!"},
	{"citext", "", "Bob", "!"}, {"citext", "", given{"row", "Bob"}, "Bob"}, {"citext", "lower", "Bob", "bob"}, {"text COLLATE nocase", "lower", "bob", "!"}, {"text COLLATE nocase", "", given{"row", "Bob"}, "Bob"},
	{"mood", "", "so so", "so%20so"}, {"mood", "", 7, "!"},
	{"uuid", "", given{"uuid", anID}, anID}, {"uuid", "", anID, anID}, {"uuid", "", strings.ToUpper(anID), "!"}, {"uuid", "", strings.ReplaceAll(anID, "-", ""), "!"},
	{"bytea", "", rawBytes{0, 0xff}, "%5Cx00ff"}, {"bytea", "", `\x00ff`, "%5Cx00ff"}, {"bytea", "", `\x00FF`, "!"}, {"bytea", "", "ab", "!"},
	{"numeric(10,2)", "", given{"decimal", "2.5"}, "2.50"}, {"numeric(10,2)", "", 3, "3.00"}, {"numeric(10,2)", "", "2.50", "2.50"}, {"numeric(10,2)", "", "2.5", "!"}, {"numeric(10,2)", "", given{"decimal", "2.555"}, "!"},
	{"numeric(10,2)", "", given{"decimal", "1.2E+3"}, "1200.00"}, {"numeric(4,-2)", "", 1200, "1200"}, {"numeric(4,-2)", "", 1250, "!"},
	{"numeric", "", 3, "!"}, {"numeric", "", given{"row", "3.0"}, "3.0"}, {"numeric", "number", 3, "3"}, {"numeric", "number", "3.10", "3.1"}, {"numeric", "number", given{"decimal", "-0.050"}, "-0.05"},
	{"double precision", "", "1.5", "!"}, {"double precision", "", given{"row", "1.5"}, "1.5"}, {"interval", "", "1 mon", "!"}, {"interval", "", given{"row", "1 mon 2 days"}, "1%20mon%202%20days"}, {"interval", "", given{"row", "P1M"}, "!"},
	{"jsonb", "", "{}", "!"}, {"text[]", "", "{a}", "!"},
	{"text", "", given{"label", "new one"}, "new%20one"}, {"mood", "", given{"label", "new"}, "new"}, {"citext", "lower", given{"label", "New"}, "new"}, {"bigint", "", given{"label", "7"}, "7"},
	{"bigint", "", given{"number", "7"}, "7"}, {"text", "", given{"number", "-7"}, "-7"}, {"numeric(10,2)", "", given{"number", "7"}, "7.00"}, {"oid", "", given{"number", "-7"}, "!"},
	{"numeric(10,2)", "", given{"decimal", "NaN"}, "NaN"}, {"numeric(10,2)", "", given{"decimal", "-NaN"}, "!"}, {"numeric(10,2)", "", given{"decimal", "sNaN"}, "!"}, {"numeric", "number", given{"decimal", "sNaN"}, "!"},
	{"double precision", "", given{"row", "1e+20"}, "1e+20"}, {"double precision", "", given{"row", "NaN"}, "NaN"}, {"double precision", "", given{"row", "1..2"}, "!"}, {"real", "", given{"row", "1.5"}, "1.5"}, {"real", "", 1.5, "!"},
	{"date", "", "2024-03-01", "2024-03-01"}, {"date", "", "2024-3-1", "!"}, {"time", "", "12:34:56.7", "12%3A34%3A56.7"}, {"time", "", "12:34", "!"},
	{"timestamptz", "", given{"time", "2024-03-01T12:34:56.789000+00:00"}, "2024-03-01%2012%3A34%3A56.789+00"}, {"timestamptz", "", "2024-03-01 12:34:56.789+00", "2024-03-01%2012%3A34%3A56.789+00"},
	{"timestamptz", "", "2024-03-01T12:34:56Z", "!"}, {"timestamptz(0)", "", given{"time", "2024-03-01T12:34:56.789000+00:00"}, "!"}, {"timestamp", "", given{"time", "2024-03-01T12:34:56.789000"}, "2024-03-01%2012%3A34%3A56.789"},
	{"inet", "", given{"addr", "10.0.0.1"}, "10.0.0.1"}, {"inet", "", given{"prefix", "10.0.0.1/32"}, "10.0.0.1"}, {"inet", "", given{"prefix", "10.0.0.1/8"}, "10.0.0.1/8"}, {"inet", "", "10.0.0.1/32", "!"}, {"inet", "", "::1.2.3.4", "%3A%3A1.2.3.4"},
	{"inet", "", given{"addr", "::102:304"}, "%3A%3A1.2.3.4"}, {"cidr", "", given{"addr", "10.0.0.1"}, "10.0.0.1/32"}, {"cidr", "", given{"prefix", "10.0.0.1/8"}, "!"}, {"macaddr", "", "08:00:2b:01:02:03", "08%3A00%3A2b%3A01%3A02%3A03"},
	{"macaddr", "", "08-00-2b-01-02-03", "!"}, {"bit(4)", "", "0101", "0101"}, {"bit(4)", "", "01", "!"}, {"pg_lsn", "", "16/B374D848", "16/B374D848"}, {"pg_lsn", "", "16/b374d848", "!"},
}

// typedTable has a column for each case.
func typedTable() string {
	var columns []string
	for i, c := range typedCases {
		columns = append(columns, fmt.Sprintf("c%d %s", i, c.column))
	}
	return "CREATE TABLE typed (" + strings.Join(columns, ", ") + ")"
}

// typedMappings puts a family for each case into the mappings.
func typedMappings(yaml string) string {
	var keys, mappings strings.Builder
	for i, c := range typedCases {
		normal := ""
		if c.normal != "" {
			normal = "|" + c.normal
		}
		fmt.Fprintf(&keys, "  typed%d: {key: \"typed%d:{v%s}\", class: steady}\n", i, i, normal)
		fmt.Fprintf(&mappings, "  - {table: public.typed, keys: [{typed%d: {v: c%d}}]}\n", i, i)
	}
	yaml = strings.Replace(yaml, "\nmappings:\n", keys.String()+"\nmappings:\n", 1)
	return yaml + mappings.String()
}

// Each reader makes the daemon's key of a value, or refuses it before it loads.
func typedValues(t *testing.T, s *scene) {
	s.write(t, s.id, "x")
	for i, c := range typedCases {
		r := request{Family: fmt.Sprintf("typed%d", i), Vars: map[string]any{"v": c.value}, Row: s.id}
		first, second := s.a, s.b
		if i%2 == 1 {
			first, second = s.b, s.a
		}
		t.Logf("%s|%s: %T %v", c.column, c.normal, c.value, c.value) // a failure is of the last one
		if c.encoded == "!" {
			first.begin(t, r).ends(t, failed)
			second.begin(t, r).ends(t, failed)
			continue
		}

		first.begin(t, r).loadsRow(t, value("x"))
		s.kind(t, fmt.Sprintf("typed%d:%s", i, c.encoded), "V")
		second.begin(t, r).ends(t, value("x"))
	}
}

// Every key of a reader: at the greatest length it is one, and a byte later it is refused before
// anything is loaded.
func longKeys(t *testing.T, s *scene) {
	s.write(t, s.id, "x")
	fill := func(unit string, room int) string {
		each := len(mapping.AppendEncoded(nil, []byte(unit)))
		return strings.Repeat(unit, room/each) + strings.Repeat("y", room%each)
	}
	for i, unit := range []string{"a", "%", "é"} {
		first, second := s.a, s.b
		if i%2 == 1 {
			first, second = s.b, s.a
		}
		long := fill(unit, mapping.MaxKeyLength-len(fmt.Sprintf("odd:{%d}:", s.id)))
		r := request{Family: "odd", Vars: map[string]any{"tenant": s.id, "value": long}, Row: s.id}
		first.begin(t, r).loadsRow(t, value("x"))
		second.begin(t, r).ends(t, value("x"))
		r.Vars["value"] = long + "x"
		first.begin(t, r).ends(t, failed)
		second.begin(t, r).ends(t, failed)

		const version = 40
		long = fill(unit, mapping.MaxKeyLength-len("shelf::")-version)
		r = request{Family: "shelf", Vars: map[string]any{"v": long}, Row: s.id}
		first.begin(t, r).loadsRow(t, value("x"))
		second.begin(t, r).ends(t, value("x"))
		r.Vars["v"] = long + "x" // the version key has room
		second.begin(t, r).ends(t, failed)
		first.begin(t, r).ends(t, failed)
		r.Vars["v"] = fill(unit, mapping.MaxKeyLength-len("of:")) + "x"
		second.begin(t, r).ends(t, failed)
		first.begin(t, r).ends(t, failed)

		for n, want := range map[int]result{0: value("x"), 1: failed} {
			s.id++
			s.write(t, s.id, "x")
			r = s.request("item")
			r.DependsOn = [][]any{{"seller", fill(unit, mapping.MaxKeyLength-len("seller:")) + strings.Repeat("x", n)}}
			under := first.begin(t, r).loads(t)
			under.step(goRow)
			if want == failed {
				under.ends(t, failed)
				continue
			}
			under.loads(t) // again, now that it is registered
			under.step(goRow)
			under.ends(t, want)
		}
	}
}

// Values that only Python has, and that have no text of a row: each is refused as such.
func TestPythonValuesThatMakeNoKey(t *testing.T) {
	const script = `
import datetime, decimal, enum
from cdc_keys import BadVariable, Type, FREE, text_of, encode, normal

class Nano(datetime.datetime):
    nanosecond = 1

zone = datetime.timezone(datetime.timedelta(hours=14))
plain = enum.Enum("Plain", "NEW").NEW
for t, value in [
    (Type("text"), "\ud800"), (FREE, "\udc80"), (Type("name"), "\ud800"), (Type("citext"), "\ud800"), (Type("text"), plain), (Type("int4"), plain),
    (Type("int8"), 10**5000), (Type("text"), 10**5000), (Type("float8"), 1.5), (FREE, 1.5), (Type("numeric", 4 + (10 << 16)), decimal.Decimal("NaN12")),
    (Type("timestamptz"), datetime.datetime(1, 1, 1, tzinfo=zone)), (Type("timestamp"), Nano(2024, 1, 1)), (Type("int4"), []), (Type("text"), object()),
]:
    for form in (None, "lower"):
        try:
            print("a key of", repr(t), type(value), encode(normal(form, text_of(t, form, value))))
        except BadVariable:
            pass
`
	cmd := exec.CommandContext(t.Context(), python(t), "-c", script)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH="+filepath.Join("..", "..", "docs", "python"))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}
