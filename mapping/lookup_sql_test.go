package mapping

import (
	"fmt"
	"strings"
	"testing"
)

func TestPlaceholdersAreFoundAsPostgresReadsTheQuery(t *testing.T) {
	for sql, want := range map[string]string{
		"SELECT\tid FROM p WHERE a = {id}":                      "SELECT\tid FROM p WHERE a = $1 [id]",
		"select\nid FROM p WHERE a = {id}":                      "select\nid FROM p WHERE a = $1 [id]",
		"-- why\nSELECT {id}":                                   "-- why\nSELECT $1 [id]",
		"/* why */ SELECT {id};":                                "/* why */ SELECT $1 [id]",
		"(SELECT {a} UNION SELECT {b}) -- {c}":                  "(SELECT $1 UNION SELECT $2) -- {c} [a b]",
		"VALUES({id}, {id})":                                    "VALUES($1, $1) [id]",
		"SELECT {id}; -- done; really\n /* {x} */":              "SELECT $1 [id]",
		`SELECT E'it\'s {x}', {id}`:                             `SELECT E'it\'s {x}', $1 [id]`,
		`SELECT e'\\', {id}`:                                    `SELECT e'\\', $1 [id]`,
		`SELECT 'it''s {x}', "a""{y}", {id}`:                    `SELECT 'it''s {x}', "a""{y}", $1 [id]`,
		`SELECT 'no escape \', {id}`:                            `SELECT 'no escape \', $1 [id]`,
		`SELECT like'\', {id}`:                                  `SELECT like'\', $1 [id]`, // the e belongs to a word
		"SELECT /* a /* {x} */ {y} */ {id}":                     "SELECT /* a /* {x} */ {y} */ $1 [id]",
		"SELECT $$ {x} '$$, $t$ {y} $$ $t$, {id}":               "SELECT $$ {x} '$$, $t$ {y} $$ $t$, $1 [id]",
		"SELECT a$1, a$b$ FROM t WHERE a$b$ = {id}":             "SELECT a$1, a$b$ FROM t WHERE a$b$ = $1 [id]",
		"SELECT x - -1 FROM t WHERE b / 2 = {id}::int":          "SELECT x - -1 FROM t WHERE b / 2 = $1::int [id]",
		"WITH a AS (SELECT 1) SELECT {id}":                      "WITH a AS (SELECT 1) SELECT $1 [id]",
		"SELECT id FROM \"t{x}\" WHERE a = ANY('{1,2}') = {id}": "SELECT id FROM \"t{x}\" WHERE a = ANY('{1,2}') = $1 [id]",
	} {
		q, err := parseForEach(sql)
		if err != nil {
			t.Errorf("%q: %v", sql, err)
		} else if got := fmt.Sprint(q.sql, " ", q.params); got != want {
			t.Errorf("%q:\n  %s\nwant\n  %s", sql, got, want)
		}
	}
	for sql, want := range map[string]string{
		"SELECT 'x, {id}":                 "' without its end at byte 7",
		`SELECT "x, {id}`:                 `" without its end`,
		`SELECT E'x\', {id}`:              "' without its end",
		"SELECT {id} /* x /* */":          "/* without */",
		"SELECT $t$ {id}":                 "$t$ without its end",
		"SELECT {id}; DELETE FROM t":      "one statement only",
		"SELECT {id};;":                   "one statement only",
		"selected({id})":                  "it must be a query",
		"'select' {id}":                   "it must be a query",
		"/* select */ DELETE FROM t {id}": "it must be a query",
		"SELECT '{id}'":                   "names no column",
		"SELECT $1, {id}":                 "name the column instead",
		"SELECT {}":                       "braces name a column",
		"SELECT {id":                      "without '}'",
		"SELECT id} , {id}":               "without '{'",
		"":                                "it must be a query",
	} {
		if q, err := parseForEach(sql); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want %q", sql, q, err, want)
		}
	}
}

// Any text is a query or an error, and what is no placeholder stays as it is.
func FuzzForEach(f *testing.F) {
	for _, s := range []string{"SELECT {id}", "E'\\", "$a$", "/*/**/", "--", "SELECT {id};", "select e'' {a}", "\"", "$", "é{x}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		q, err := parseForEach(sql)
		if err != nil {
			return
		}
		back := q.sql
		for i := len(q.params); i > 0; i-- {
			back = strings.ReplaceAll(back, fmt.Sprintf("$%d", i), "{"+q.params[i-1]+"}")
		}
		if !strings.Contains(sql, "$") && !strings.Contains(sql, ";") && back != strings.TrimSpace(sql) {
			t.Fatalf("%q became %q %q", sql, q.sql, q.params)
		}
	})
}
