package doctor

import (
	"slices"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

func TestEncodingWithoutAForm(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	admin := servertest.Connect(t, server.URL())
	for encoding, want := range map[string]Severity{"SQL_ASCII": Widens, "MULE_INTERNAL": Widens, "LATIN1": OK, "UTF8": OK} {
		name := "of_" + strings.ToLower(encoding)
		if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+name+" ENCODING '"+encoding+"' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"); err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, source: server.DatabaseURL(name), redis: servertest.Redis(t).URL, slot: name, create: true}
		if c := find(w.examine(), "encoding"); c.Severity != want || !strings.Contains(c.Message, encoding) {
			t.Errorf("%s: %+v", encoding, c)
		}
	}
}

func TestTablesWithLargeRows(t *testing.T) {
	db := servertest.Postgres(t)
	// Bytes that do not compress.
	const values = "(SELECT string_agg(sha512(i::text::bytea), '') FROM generate_series(1, 5000) i)"
	for _, sql := range []string{
		`CREATE TABLE files (id int PRIMARY KEY, name text, content bytea, note text)`,
		`CREATE TABLE "Full" (id int PRIMARY KEY, content bytea); ALTER TABLE "Full" REPLICA IDENTITY FULL`,
		`CREATE TABLE parts (id int PRIMARY KEY, content bytea) PARTITION BY RANGE (id); CREATE TABLE part1 PARTITION OF parts DEFAULT`,
		`CREATE TABLE mapped (id int PRIMARY KEY, content bytea)`,
		`CREATE TABLE small (id int PRIMARY KEY, content bytea); INSERT INTO small VALUES (1, 'x')`,
	} {
		db.Exec(t, sql)
	}
	var uses []mapping.TableUse
	for table, columns := range map[string][]string{"files": {"id", "name"}, "Full": {"id"}, "parts": {"id"}, "mapped": {"content", "id"}, "small": {"id"}} {
		uses = append(uses, mapping.TableUse{Schema: "public", Table: table, Columns: columns})
		if table != "small" {
			db.Exec(t, `INSERT INTO "`+table+`" (id, content) SELECT 1, `+values)
		}
	}
	db.Exec(t, `CREATE PUBLICATION pub FOR TABLE files, "Full", parts, mapped, small WITH (publish_via_partition_root = true)`)
	conn := db.Conn(t)
	check := func() map[string]Check {
		large, err := readLargeTables(t.Context(), conn, "pub", uses, 100<<10)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]Check{}
		for _, l := range large {
			found[l.name] = l.check("pub")
		}
		return found
	}
	found := check()
	if len(found) != 3 {
		t.Fatalf("found %v", found)
	}
	for _, table := range []string{"Full", "parts"} {
		if c := found[table]; c.FixKind != Person || strings.Contains(c.Fix, "ALTER PUBLICATION") {
			t.Errorf("%s: %+v", table, c)
		}
	}
	c := found["files"]
	if c.FixKind != SQL || !strings.Contains(c.Fix, "ADD TABLE public.files (id, name)") || !strings.Contains(c.Message, "content, note") {
		t.Errorf("files: %+v", c)
	}
	// What is recommended works, leaves nothing to find, and breaks no write.
	db.Exec(t, c.Fix, `UPDATE files SET content = 'x', name = 'y'`, `DELETE FROM files`)
	if found := check(); slices.Contains([]string{"files"}, found["files"].Code) || found["files"].Code != "" {
		t.Errorf("after the fix: %+v", found["files"])
	}
}
