package integration

import (
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// encodedWorld is a world on a database of an encoding, with rows written by a client
// that says its bytes as they are. note is mapped by nothing.
func encodedWorld(t *testing.T, encoding string) *world {
	t.Helper()
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	admin := servertest.Connect(t, server.URL())
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE encoded ENCODING '"+encoding+"' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"); err != nil {
		t.Fatal(err)
	}
	url := server.DatabaseURL("encoded")
	raw := url + "?client_encoding=SQL_ASCII"
	if strings.Contains(url, "?") {
		raw = url + "&client_encoding=SQL_ASCII"
	}
	w := newWorldOn(t, raw, servertest.Redis(t).URL, `
		CREATE TABLE items (id int PRIMARY KEY, tenant text, name text, note text);
		ALTER TABLE items REPLICA IDENTITY FULL;
		CREATE TABLE parents (id int PRIMARY KEY, name text); ALTER TABLE parents REPLICA IDENTITY FULL`, "")
	w.url = url
	w.writeConfig(`
classes:
  critical: {staleness: 1s}
keys:
  item:   {key: "item:{id}", class: critical}
  name:   {key: "name:{name}", class: critical}
  mine:   {key: "t:{tenant}:name:{name}", tenant: tenant, class: critical}
  chosen: {key: "chosen:{id}", class: critical}
  page:   {key: "page:{id}", class: critical}
  titled: {key: "titled:{name}", class: critical}
  city:   {key: "city:{name}", class: critical}
mappings:
  - {table: public.items, keys: [item, name, mine]}
  - {table: public.items, when: "new.name == 'é' || old.name == 'é'", keys: [chosen]}
  - table: public.parents
    keys:
      - {page: {id: id}, for_each: "SELECT id FROM items WHERE name = {name}"}
      - {titled: {name: name}, for_each: "SELECT name FROM items WHERE id = {id}"}
  - {message: m.x, keys: [{city: {name: name}}]}
`)
	return w
}

func encoded(prefix, value string) string {
	return string(mapping.AppendEncoded([]byte(prefix), []byte(value)))
}

// A character of the database's encoding is the reader's own in each place where a
// text of the log is used; one that no client can be sent stops nothing.
func TestDatabaseInAnotherEncoding(t *testing.T) {
	w := encodedWorld(t, "WIN1252")
	p := w.start()
	w.step(p, "a column that nothing maps", keys("item:1", "name:a", "t:x:name:a"), keys("item:2", "name:b", "t:x:name:b", "chosen:1"),
		"INSERT INTO items VALUES (1, 'x', 'a', E'\x81')")
	w.step(p, "keys and when", keys("item:2", encoded("name:", "é"), encoded("t:x:name:", "é"), "chosen:2"), keys("item:1", encoded("name:", "Ã©"), "name:b", "chosen:1"),
		"INSERT INTO items VALUES (2, 'x', '\xe9', '\x81')")
	w.step(p, "when, not", keys("item:3", encoded("name:", "€")), keys("chosen:3"), "INSERT INTO items VALUES (3, 'x', '\x80', '\x81')")
	w.step(p, "for_each", keys("page:2", encoded("titled:", "é")), keys("page:1", "titled:a"), "INSERT INTO parents VALUES (2, '\xe9')")
	w.step(p, "a value without a form in UTF-8 widens", keys("item:4", "name:a", encoded("name:", "é"), "t:y:name:a"), keys("item:1", "t:x:name:a"),
		"INSERT INTO items VALUES (4, 'y', '\x81', 'x')")
	if n := p.logged("not streaming"); n > 0 {
		t.Errorf("it left the stream %d times", n)
	}
	w.step(p, "an unknown tenant", keys("item:5", "name:a", "t:x:name:a", "t:y:name:a"), keys("item:1"), "INSERT INTO items VALUES (5, '\x81', '\x81', 'x')")
	w.step(p, "a message", keys(encoded("city:", "é")), keys(encoded("city:", "Ã©"), "city:a"), `SELECT pg_logical_emit_message(true, 'm.x', '{"name":"`+"\xe9"+`"}')`)
	w.step(p, "a message that could be UTF-8 as well", keys(encoded("city:", "é"), encoded("city:", "Ã©")), keys("city:a"), `SELECT pg_logical_emit_message(true, 'm.x', '{"name":"`+"\xc3\xa9"+`"}')`)
	w.step(p, "one that was sent as bytes", keys(encoded("city:", "é")), keys("city:a"), `SELECT pg_logical_emit_message(true, 'm.x', convert_to('{"name":"`+"\xe9"+`"}', 'UTF8'))`)
	p.stop()
}

// Nothing says what the bytes mean, or Postgres itself cannot tell it.
func TestDatabaseWithoutAUsableEncoding(t *testing.T) {
	for _, c := range []struct{ encoding, high string }{{"SQL_ASCII", "\xe9"}, {"SQL_ASCII", "é"}, {"MULE_INTERNAL", "\x81\xe9"}} {
		t.Run(c.encoding+" "+encoded("", c.high), func(t *testing.T) {
			w := encodedWorld(t, c.encoding)
			p := w.start()
			w.step(p, "a column that nothing maps", keys("item:1", "name:a"), keys("item:2", "name:b", "chosen:1"), "INSERT INTO items VALUES (1, 'x', 'a', '"+c.high+"')")
			w.step(p, "a key", keys("item:2", "name:a", encoded("name:", "é"), "t:x:name:a", "chosen:2"), keys("item:1", "t:y:name:a", "chosen:1"),
				"INSERT INTO items VALUES (2, 'x', '"+c.high+"', 'n')")
			w.step(p, "for_each", keys("page:1", "page:2", "titled:a", encoded("titled:", "é")), keys("item:1"), "INSERT INTO parents VALUES (2, '"+c.high+"')")
			w.step(p, "a message", keys("city:a", encoded("city:", "é")), keys("item:1"), `SELECT pg_logical_emit_message(true, 'm.x', '{"name":"`+c.high+`"}')`)
			w.step(p, "an ASCII key", keys("item:3", "name:c", "t:x:name:c"), keys("name:a", "chosen:3"), "INSERT INTO items VALUES (3, 'x', 'c', 'n')")
			if n := p.logged("not streaming"); n > 0 {
				t.Errorf("it left the stream %d times", n)
			}
			p.stop()
		})
	}
}

// Names that no client in UTF-8 can be sent stand beside what is mapped: in a mapped table,
// in the publication, in the schema. None of them stops anything.
func TestNamesWithoutAFormInUTF8(t *testing.T) {
	for _, c := range []struct{ encoding, high string }{{"SQL_ASCII", "\xe9"}, {"WIN1252", "\x81"}, {"EUC_JP", "\xad\xfe"}, {"MULE_INTERNAL", "\x81\xe9"}} {
		t.Run(c.encoding, func(t *testing.T) {
			w := encodedWorld(t, c.encoding)
			odd := `"n` + c.high + `"`
			w.exec(`ALTER TABLE items ADD COLUMN `+odd+` text`, `CREATE TABLE `+odd+` (id int PRIMARY KEY, `+odd+` text)`,
				`CREATE SCHEMA `+odd, `CREATE TABLE `+odd+`.items (id int PRIMARY KEY)`, `CREATE TYPE `+odd+`.mood AS ENUM ('`+c.high+`')`,
				`CREATE INDEX "i`+c.high+`" ON items (name)`, `CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id)`,
				`CREATE TABLE `+odd+`.p1 PARTITION OF parted FOR VALUES FROM (0) TO (10)`,
				`CREATE PUBLICATION `+w.slot+`_pub FOR ALL TABLES WITH (publish_via_partition_root)`, `CREATE PUBLICATION `+odd+` FOR TABLE items, `+odd)
			w.withTrigger()
			p := w.start()
			w.step(p, "a row", keys("item:1", "name:a"), keys("item:2", "chosen:1"), `INSERT INTO items VALUES (1, 'x', 'a', 'n', '`+c.high+`')`)
			w.step(p, "a table beside it", nil, keys("item:1"), `INSERT INTO `+odd+` VALUES (1, 'x')`, `INSERT INTO `+odd+`.items VALUES (1)`)
			w.step(p, "for_each", keys("page:1"), keys("page:2"), "INSERT INTO parents VALUES (1, 'a')")
			w.step(p, "a column is renamed", keys("item:1", "item:2"), nil, `ALTER TABLE items RENAME `+odd+` TO "m`+c.high+`"`)
			w.step(p, "and after it", keys("item:3", "name:c"), nil, `INSERT INTO items VALUES (3, 'x', 'c', 'n', 'n')`)
			for _, args := range [][]string{{"doctor", "--config", w.config}, {"plan", "--config", w.config}, {"init", "--from-db", w.url}} {
				if code, stdout, stderr := w.command(args...); strings.Contains(stdout+stderr, "SQLSTATE") || code != 0 && args[0] != "doctor" {
					t.Errorf("%s: %d, %s%s", args[0], code, stdout, stderr)
				}
			}
			if n := p.logged("not streaming"); n > 0 {
				t.Errorf("it left the stream %d times", n)
			}
			p.stop()
		})
	}
}
