package keytype

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// CodeLower is of columns whose database has another lower() than {|lower}.
const CodeLower = "key_lower_differs"

// LowerFindings compares {|lower} with the source's own lower(), letter by letter, under the collation of each
// column that it is used for, and under the database's own. Rows are found by the source's: where that differs, one row has
// two keys, of which one is never invalidated, or two rows have one.
//
// It is one question for each collation, of a few milliseconds. Letters that have got a lower case after Unicode 13 are
// left out: they would differ in every database that knows them. A database in another encoding than UTF-8 is asked for
// ASCII only.
func (t *Types) LowerFindings(ctx context.Context, conn *pgx.Conn, plan *mapping.Plan) ([]Finding, error) {
	differ := map[string][]string{} // by collation
	var all []Finding
	for _, f := range plan.Families() {
		if err := lowerFindings(ctx, conn, "family "+f.Name, t.families[f.Name], differ, &all); err != nil {
			return nil, err
		}
	}
	for _, e := range plan.Entities() {
		if err := lowerFindings(ctx, conn, "dependents of "+e.Kind, t.entities[e.Kind], differ, &all); err != nil {
			return nil, err
		}
	}
	return all, nil
}

const databaseCollation = `pg_catalog."default"`

func lowerFindings(ctx context.Context, conn *pgx.Conn, where string, vars []Var, differ map[string][]string, all *[]Finding) error {
	for _, v := range vars {
		if v.Normal != mapping.NormalLower {
			continue
		}
		for i := range v.Columns {
			c := &v.Columns[i]
			if c.Source.Message != "" || c.Err != nil || !c.Type.takesText() {
				continue
			}
			// lower($1) has the database's collation, and citext never has another.
			collations := []string{databaseCollation}
			if c.Type.Form != Citext && c.Type.Collation != "" && c.Type.Collation != databaseCollation {
				collations = append(collations, c.Type.Collation)
			}
			for _, collation := range collations {
				letters, known := differ[collation]
				if !known {
					var err error
					if letters, err = lowerDiffers(ctx, conn, collation); err != nil {
						return fmt.Errorf("ask for the source's lower(): %w", err)
					}
					differ[collation] = letters
				}
				f := Finding{Code: CodeLower, Where: where, Problem: fmt.Sprintf(
					"variable {%s}: under the collation %s the database's lower() treats %d letters otherwise than {|lower} (%s): rows of %s that are looked up by it have two keys with them, of which one is never invalidated, or one key with another row",
					v.Name, collation, len(letters), some(letters), c.Source),
					Fix: "make keys of another column; or look rows up under a collation whose lower() is Unicode's for single letters (such as en_US.UTF-8); or let the application keep such letters out"}
				if len(letters) > 0 && !slices.Contains(*all, f) {
					*all = append(*all, f)
				}
			}
		}
	}
	return nil
}

func some(letters []string) string {
	const most = 8
	if len(letters) <= most {
		return strings.Join(letters, " ")
	}
	return strings.Join(letters[:most], " ") + " ..."
}

// lowerDiffers are the letters of which the source's lower() makes something else, alone or in a word.
func lowerDiffers(ctx context.Context, conn *pgx.Conn, collation string) ([]string, error) {
	most := rune(unicode.MaxASCII)
	if conn.PgConn().ParameterStatus("server_encoding") == "UTF8" {
		most = unicode.MaxRune
	}
	var letters, words []string
	for r := rune(1); r <= most; r++ {
		if s := string(r); !mapping.LaterLetter(r) && (unicode.ToLower(r) != r || unicode.ToUpper(r) != r) {
			letters = append(letters, s)
			words = append(words, s+" A"+s+" A"+s+"A") // alone, at the end of a word, and within one
		}
	}
	// Collate takes a name, which is one that the server itself has quoted.
	rows, err := conn.Query(ctx, `SELECT lower(s COLLATE `+collation+`) FROM unnest($1::text[]) WITH ORDINALITY u(s, n) ORDER BY n`, words)
	if err != nil {
		return nil, err
	}
	lowered, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	var differ []string
	for i, got := range lowered {
		if got != string(mapping.NormalLower.Of([]byte(words[i]))) {
			differ = append(differ, letters[i])
		}
	}
	return differ, nil
}
