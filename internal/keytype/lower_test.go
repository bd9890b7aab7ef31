package keytype

import (
	"slices"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// Where the database's lower() is another one than that of keys, people are told, with letters.
func TestWhereTheDatabasesLowerDiffers(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, `CREATE EXTENSION IF NOT EXISTS citext`)
	conn := connect(t, db.URL)
	for _, tt := range []struct {
		collation   string
		differ, not string
	}{
		{`pg_catalog."C"`, "ÄÉЖΣİ\u212a", "AZaz"}, // ASCII only
		{`pg_catalog."tr-x-icu"`, "IΣ", "AZaÄßİ"},
		{`pg_catalog."und-x-icu"`, "İΣ", "AZazIıÄÉЖßẞKÅǅς"},
		{`pg_catalog."lt-x-icu"`, "ÌÍĨ", "AZaz"},
	} {
		letters, err := lowerDiffers(t.Context(), conn, tt.collation)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range tt.differ {
			if !slices.Contains(letters, string(r)) {
				t.Errorf("%s: %c does not differ", tt.collation, r)
			}
		}
		for _, r := range tt.not {
			if slices.Contains(letters, string(r)) {
				t.Errorf("%s: %c differs", tt.collation, r)
			}
		}
		t.Logf("%s: %d letters differ", tt.collation, len(letters))
	}

	db.Exec(t, `CREATE TABLE users (id int PRIMARY KEY, mail citext, name text COLLATE "tr-x-icu", plain text)`)
	p := compile(t, `
  mail: {key: "mail:{mail|lower}", class: c}
  name: {key: "name:{name|lower}", class: c}
  plain: {key: "plain:{plain}", class: c}`, `
  - {table: public.users, keys: [mail, name, plain], dependents: ["who:{name|lower}"]}`)
	types, err := Read(t.Context(), conn, p)
	if err != nil {
		t.Fatal(err)
	}
	findings, err := types.LowerFindings(t.Context(), conn, p)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range findings {
		if f.Code != CodeLower || f.Fix == "" {
			t.Errorf("%+v", f)
		}
		_, collation, _ := strings.Cut(f.Problem, "collation ")
		collation, _, _ = strings.Cut(collation, " the")
		got = append(got, f.Where+" "+collation)
	}
	want := []string{`family mail pg_catalog."default"`, `family name pg_catalog."default"`, `family name pg_catalog."tr-x-icu"`, `dependents of who pg_catalog."default"`, `dependents of who pg_catalog."tr-x-icu"`}
	if !slices.Equal(got, want) { // the tests' database has the locale C
		t.Errorf("findings are %q, want %q", got, want)
	}
}
