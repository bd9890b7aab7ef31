package keytype

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

func compile(t testing.TB, keys, mappings string) *mapping.Plan {
	t.Helper()
	f, err := mapping.Parse("m.yaml", []byte("version: 1\nsource: {url: \"postgres://x/y\"}\nredis: {url: \"redis://x\"}\nclasses: {c: {staleness: 1s}}\nkeys:\n"+
		keys+"\nmappings:\n"+mappings), mapping.Env{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := mapping.Compile(f)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}

func TestTypesOfAllThatKeysAreMadeOf(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, `CREATE DOMAIN short AS char(6)`, `CREATE DOMAIN shorter AS short`, `CREATE DOMAIN price AS numeric(10,2)`, `CREATE TYPE mood AS ENUM ('ok')`,
		`CREATE TABLE users (id bigint PRIMARY KEY, s shorter, p price, m mood, tags text[], n numeric, name varchar(20))`)
	p := compile(t, `
  a: {key: "a:{id}:{s}:{p}:{m}:{tags}:{n}:{name}", class: c}
  q: {key: "q:{s}:{n}:{id}", class: c}
  lost: {key: "lost:{id}", class: c}
  gone: {key: "gone:{x}", class: c}`, `
  - table: public.users
    keys:
      - a
      - {q: {s: s, n: n, id: id}, for_each: "SELECT s, p AS n, id + 1 AS id FROM users WHERE id = {id}"}
      - {lost: {id: nosuch}}
      - {gone: {x: x}, for_each: "SELECT x FROM nowhere WHERE id = {id}"}
    dependents: ["user:{id}"]`)
	conn := connect(t, db.URL)
	types, err := Read(t.Context(), conn, p)
	if err != nil {
		t.Fatal(err)
	}
	family := func(name string) string {
		f, _ := p.Family(name)
		return show(types.Family(f))
	}
	for name, want := range map[string]string{
		"a":    "id bigint, s shorter over character(6), p price over numeric(10,2), m mood, tags text[], n numeric, name character varying(20)",
		"q":    "s character(6), n numeric(10,2), id bigint",
		"lost": "id !",
		"gone": "x !",
	} {
		if got := family(name); got != want {
			t.Errorf("%s is of %s, want %s", name, got, want)
		}
	}
	if got := show(types.Entity("user")); got != "id bigint" {
		t.Errorf("the entity is of %s", got)
	}
	missing := types.Missing()
	if len(missing) != 2 || !errors.Is(missing[0].Err, ErrNoColumn) || missing[0].Source.Column != "nosuch" || !strings.Contains(missing[1].Err.Error(), "nowhere") {
		t.Errorf("missing are %v", missing)
	}

	// What people see may differ with the search path, the text does not.
	text := types.KeyTypes().Families["a"]
	if _, err := conn.Exec(t.Context(), `SET search_path = pg_catalog`); err != nil {
		t.Fatal(err)
	}
	again, err := Read(t.Context(), conn, p)
	if err != nil {
		t.Fatal(err)
	}
	if got := again.KeyTypes().Families["a"]; got != text {
		t.Errorf("with another search path it is\n%+v\nwithout\n%+v", got, text)
	}
	if want := "id: pg_catalog.int8; m: public.mood e; n: pg_catalog.numeric; name: pg_catalog.varchar; p: pg_catalog.numeric scale 2; s: pg_catalog.bpchar 10 domain; tags: pg_catalog._text"; text.Types != want {
		t.Errorf("the types are %s, want %s", text.Types, want)
	}
	for _, tt := range []struct {
		ddl           string
		types, labels bool // they change
	}{
		{`ALTER TABLE users ALTER n TYPE numeric(4,1)`, true, false},
		{`ALTER TABLE users ALTER n TYPE numeric(5,1)`, false, false}, // no text differs
		{`ALTER TABLE users ALTER name TYPE varchar(30)`, false, false},
		{`ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'`, false, true},
		{`ALTER TABLE users ALTER s TYPE char(6)`, true, false},
		{`ALTER TABLE users ALTER s TYPE char(8)`, false, false},
		{`CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`, false, false},
		{`ALTER TABLE users ALTER name TYPE varchar(30) COLLATE nocase`, true, false},
	} {
		before := again.KeyTypes().Families["a"]
		db.Exec(t, tt.ddl)
		if again, err = Read(t.Context(), conn, p); err != nil {
			t.Fatal(err)
		}
		now := again.KeyTypes().Families["a"]
		if (now.Types != before.Types) != tt.types || (now.Labels != before.Labels) != tt.labels {
			t.Errorf("%s: %+v\nbefore: %+v", tt.ddl, now, before)
		}
	}
}

func show(vars []Var) string {
	var list []string
	for _, v := range vars {
		for _, c := range v.Columns {
			s := v.Name + " " + c.Type.Name
			if c.Type.Domain {
				s += fmt.Sprintf(" over %s", map[string]string{"bpchar": "character(6)", "numeric": "numeric(10,2)"}[c.Type.Base])
			}
			if c.Err != nil {
				s = v.Name + " !"
			}
			list = append(list, s)
		}
	}
	return strings.Join(list, ", ")
}
