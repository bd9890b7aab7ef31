package scaffold

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// width is where comments are broken.
const width = 118

type writer struct{ bytes.Buffer }

func (w *writer) line(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }

// comment writes prose, broken into lines. A name in it must not end the comment.
func (w *writer) comment(indent, text string) {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	line := indent + "#"
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > width && len(line) > len(indent)+1 {
			w.line("%s", line)
			line = indent + "#"
		}
		line += " " + word
	}
	w.line("%s", line)
}

// sql writes a statement that mends something, on lines of its own.
func (w *writer) sql(indent, statements string) {
	for _, s := range strings.Split(statements, "\n") {
		w.line("%s#     %s", indent, strings.TrimSpace(s))
	}
}

// disabled writes YAML that is valid again when the # is taken away.
func (w *writer) disabled(indent string, lines ...string) {
	for _, l := range lines {
		w.line("%s#%s", indent, l)
	}
}

func writeFile(p *plan, server replication.Server) []byte {
	w := &writer{}
	writeHead(w, p, server)
	w.line("keys:")
	for _, t := range p.db.tables {
		if f := p.family(t); f != nil {
			for _, note := range f.notes {
				w.comment("  ", note)
			}
			w.line("  %s", f.spec())
		} else if f := familyOf(p.disabled, t); f != nil {
			w.comment("  ", t.String()+" is left out, see its mapping.")
			w.disabled("  ", f.spec())
		}
	}
	w.line("")
	w.line("mappings:")
	for i, t := range p.db.tables {
		if i > 0 {
			w.line("")
		}
		if f := p.family(t); f != nil {
			writeMapping(w, p, f)
		} else {
			writeLeftOut(w, p, t)
		}
	}
	return w.Bytes()
}

func writeHead(w *writer, p *plan, server replication.Server) {
	w.line("# yaml-language-server: $schema=./mappings.schema.json")
	w.line("#")
	w.comment("", fmt.Sprintf("Made by `cdc-invalidator init` from the catalogs of database %s, Postgres %s: %d families of %d tables. No row was read; sizes are the server's estimates.",
		server.Database, server.VersionString(), len(p.families), len(p.db.tables)))
	w.line(`#
# It is valid as it stands, and a beginning:
#
#  1. Write the keys that your application uses. The templates below are made up, one for each table by its primary key.
#     Remove the families that nobody caches, and their mappings: a table that is not mapped costs nothing.
#  2. A cached value that is made of several tables goes stale with each of them. The suggestions under the mappings are for
#     that, one for each foreign key: take away the # in front of their lines.
#  3. The replica identity says what the log holds of old rows. Where a mapping needs more than there is, the statement stands
#     above it. Without it the mapping is right, but wide: updates and deletes invalidate the whole family.
#  4. cdc-invalidator validate FILE checks it, cdc-invalidator test runs tests of it, cdc-invalidator run --config FILE follows
#     the database. docs/mappings.md explains each field; cdc-invalidator schema > mappings.schema.json is for your editor.`)
	if server.WALLevel != "logical" {
		w.line("#")
		w.comment("", "The server's wal_level is "+server.WALLevel+"; run needs logical, and a restart of the server:")
		w.sql("", "ALTER SYSTEM SET wal_level = 'logical';")
	}
	w.line(`
version: 1

source:
  url: ${DATABASE_URL} # or ${file:/run/secrets/database_url}
  slot: {name: cdc_invalidator, create_if_not_exists: true}
  # cdc-invalidator apply creates it, as the tables' owner: the daemon's role needs no right on any table.
  publication: {name: cdc_invalidator, create_if_not_exists: false}

redis:
  url: ${REDIS_URL:-redis://localhost:6379}

# How old a value may be after its row has changed. Every family below is critical; give those that may be older another class.
classes:
  critical: {staleness: 1s}
  important: {staleness: 30s}
  best_effort: {staleness: 10m}
`)
}

func (f *family) spec() string {
	s := yamlName(f.name) + ": {key: " + strconv.Quote(f.template())
	if f.tenant {
		s += ", tenant: " + yamlName(f.vars[0].name)
	}
	return s + ", class: critical}"
}

func writeMapping(w *writer, p *plan, f *family) {
	t := f.table
	w.comment("  ", t.String()+sizeText(t)+". Replica identity: "+identityText(t)+verdict(p, t))
	for _, finding := range p.wide[t] {
		w.comment("  ", strings.ToUpper(finding.Problem[:1])+finding.Problem[1:]+". What mends it:")
		w.sql("  ", finding.Fix)
	}
	w.line("  - table: %s", yamlText(t.String()))
	w.line("    keys:")
	w.line("      - %s", f.use())
	for _, parent := range p.parents(f) {
		w.comment("      ", "It inherits from "+parent.table.String()+", and its rows are read there too.")
		w.line("      - %s", parent.use())
	}
	for _, s := range p.suggestions(f) {
		if len(s.entry) > 0 && len(s.missing) > 0 {
			writeIdentity(w, p.identities[t], s.about+" Needs the old value of "+strings.Join(s.missing, ", ")+" in the log")
		} else {
			w.comment("      ", s.about)
		}
		w.disabled("      ", s.entry...)
	}
}

func verdict(p *plan, t *table) string {
	if len(p.wide[t]) > 0 {
		return ", which is not enough."
	}
	if t.identity == "i" {
		return ", which is enough. Never drop that index before the identity is another one: the server refuses every UPDATE and DELETE then."
	}
	return ", which is enough."
}

// use is the entry of keys for the table's own rows.
func (f *family) use() string {
	if len(f.vars) == 0 {
		return yamlName(f.name)
	}
	plain := !slices.ContainsFunc(f.vars, func(v variable) bool { return v.name != v.column })
	if plain {
		return yamlName(f.name)
	}
	var vars []string
	for _, v := range f.vars {
		vars = append(vars, v.name+": "+yamlText(v.column))
	}
	return entryOf(f, vars)[2:]
}

func writeLeftOut(w *writer, p *plan, t *table) {
	why := p.leftOut[t]
	w.comment("  ", t.String()+sizeText(t)+" is left out: "+why.problem+".")
	if why.fix != "" {
		w.comment("  ", "What mends it:")
		w.sql("  ", why.fix)
	}
	if f := familyOf(p.disabled, t); f != nil {
		w.disabled("  ", "- table: "+yamlText(t.String()), "  keys:", "    - "+f.use())
	}
}

// writeIdentity says what would bring the old values into the log, where that is possible.
func writeIdentity(w *writer, id replication.Identity, about string) {
	switch {
	case id.Refused == "":
		w.comment("      ", about+":")
	case id.SQL != "":
		w.comment("      ", about+", for which REPLICA IDENTITY FULL is not possible ("+id.Refused+"), but an index:")
	default:
		w.comment("      ", about+", which is not possible: "+id.Refused+".")
		return
	}
	w.sql("      ", id.SQL)
}

func identityText(t *table) string {
	x, ok := t.identityIndex()
	switch {
	case t.identity == "f":
		return "full"
	case ok && t.identity == "d":
		return "the primary key " + list(x.columns)
	case ok:
		return "index " + x.name + " " + list(x.columns)
	}
	return "none"
}

// sizeText is how large the table is, as far as the server knows.
func sizeText(t *table) string {
	var parts []string
	if t.partitioned {
		parts = append(parts, counted(int64(t.partitions), "partition"))
	}
	if !t.analyzed && t.rows == 0 {
		parts = append(parts, "not analyzed yet")
	} else {
		parts = append(parts, "about "+counted(t.rows, "row"))
	}
	if t.bytes > 0 {
		parts = append(parts, bytesText(t.bytes))
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// counted groups digits in threes, and rounds to what an estimate is worth.
func counted(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	unit := int64(1)
	for n/unit >= 1000 {
		unit *= 10
	}
	digits := strconv.FormatInt((n+unit/2)/unit*unit, 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits + " " + what + "s"
}

func bytesText(n int64) string {
	units := []string{"kB", "MB", "GB", "TB"}
	v := float64(n) / 1024
	i := 0
	for ; v >= 1000 && i < len(units)-1; i++ {
		v /= 1024
	}
	if v < 10 && i > 0 {
		return fmt.Sprintf("%.1f %s", v, units[i])
	}
	return fmt.Sprintf("%.0f %s", v, units[i])
}

var (
	plainName  = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)
	plainTable = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*\.[A-Za-z0-9_]+$`)
	yamlWords  = []string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
)

// yamlName is a name of the format, quoted where YAML takes it for something else.
func yamlName(s string) string {
	if plainName.MatchString(s) && !slices.Contains(yamlWords, strings.ToLower(s)) {
		return s
	}
	return strconv.Quote(s)
}

// yamlText is any text as a value: quoted where it has to be, and with its $
// doubled, which would begin a reference otherwise.
func yamlText(s string) string {
	if plainTable.MatchString(s) {
		return s
	}
	s = strings.ReplaceAll(s, "$", "$$")
	switch {
	case plainName.MatchString(s):
		return yamlName(s)
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		quoted, _ := json.Marshal(s) // what JSON quotes, YAML reads; a string is never an error
		return string(quoted)
	case strings.ContainsAny(s, `"\`):
		return "'" + strings.ReplaceAll(s, "'", "''") + "'"
	}
	return `"` + s + `"`
}
