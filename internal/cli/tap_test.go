package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

const tapTestFile = `version: 1
source:
  url: %s
  publication: {name: pub}
redis:
  url: ${TAP_TEST_UNSET}
classes:
  critical: {staleness: 1s}
keys:
  user:   {key: "t:{tenant_id}:user:{id}", tenant: tenant_id, class: critical}
  mail:   {key: "t:{tenant_id}:mail:{email}", tenant: tenant_id, class: critical}
  page:   {key: "page:{product_id}", class: critical}
  search: {key: "t:{tenant_id}:search:{version}:{q}", version: "t:{tenant_id}:search", tenant: tenant_id, class: critical}
  cart:   {key: "cart:{cart_id}", class: critical}
mappings:
  - {table: public.users, keys: [user, mail, search]}
  - table: public.sellers
    keys:
      - page: {product_id: product_id}
        for_each: "SELECT id AS product_id FROM products WHERE seller_id = {id}"
  - {message: cart.changed, keys: [cart]}
`

// tapWorld is a database for tap: nothing but the publication is made.
func tapWorld(t *testing.T) (*servertest.Database, string) {
	t.Helper()
	db := servertest.Postgres(t)
	db.Exec(t, `CREATE TABLE users (id int PRIMARY KEY, tenant_id int NOT NULL, email text); ALTER TABLE users REPLICA IDENTITY FULL;
		CREATE TABLE sellers (id int PRIMARY KEY, name text);
		CREATE TABLE products (id int PRIMARY KEY, seller_id int); INSERT INTO products VALUES (71, 5), (72, 5);
		CREATE PUBLICATION pub FOR TABLE users, sellers WITH (publish_via_partition_root = true)`)
	return db, writeRunTestFile(t, fmt.Sprintf(tapTestFile, db.URL))
}

// tapping is `tap` in the background.
type tapping struct {
	lines  *bufio.Scanner // of stdout
	stderr *lockedBuffer
	ended  chan int
	cancel context.CancelFunc
}

func startTap(t *testing.T, args ...string) *tapping {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	p := &tapping{lines: bufio.NewScanner(r), stderr: &lockedBuffer{}, ended: make(chan int, 1), cancel: cancel}
	go func() {
		code := Main(ctx, append([]string{"tap"}, args...), strings.NewReader(""), w, p.stderr)
		w.Close()
		p.ended <- code
	}()
	t.Cleanup(func() { cancel(); r.Close() })
	eventually(t, "tap follows", func() bool {
		select {
		case code := <-p.ended:
			t.Fatalf("tap ended with %d: %s", code, p.stderr)
		default:
		}
		return strings.Contains(p.stderr.String(), "following publication pub")
	})
	return p
}

// next reads a line of stdout.
func (p *tapping) next(t *testing.T) string {
	t.Helper()
	if !p.lines.Scan() {
		t.Fatalf("no more lines: %v; stderr: %s", p.lines.Err(), p.stderr)
	}
	return p.lines.Text()
}

// finish reads the rest, and returns it with the exit code.
func (p *tapping) finish(t *testing.T) (rest []string, code int) {
	t.Helper()
	for p.lines.Scan() {
		rest = append(rest, p.lines.Text())
	}
	select {
	case code = <-p.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("tap does not end")
	}
	return rest, code
}

// fields is a line's columns after the time and the position.
func fields(t *testing.T, line string) string {
	t.Helper()
	m := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z  [0-9A-F]+/[0-9A-F]+ +(.*)$`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("no such line: %q", line)
	}
	return strings.Join(strings.Fields(m[1]), " ")
}

func TestTapShowsEveryKindOfInvalidation(t *testing.T) {
	db, path := tapWorld(t)
	p := startTap(t, "-c", path, "--show-values")
	for _, c := range []struct {
		sql  string
		want []string
	}{
		{`INSERT INTO users VALUES (1, 7, 'a b@x')`, []string{
			"insert public.users delete user t:7:user:1",
			"insert public.users delete mail t:7:mail:a%20b@x",
			"insert public.users advance search t:7:search"}},
		{`UPDATE users SET email = 'c@x' WHERE id = 1`, []string{
			"update public.users delete user t:7:user:1",
			"update public.users delete mail t:7:mail:c@x",
			"update public.users delete mail t:7:mail:a%20b@x",
			"update public.users advance search t:7:search"}},
		{`DELETE FROM users`, []string{
			"delete public.users delete user t:7:user:1",
			"delete public.users delete mail t:7:mail:c@x",
			"delete public.users advance search t:7:search"}},
		{`TRUNCATE users`, []string{
			"truncate public.users purge user (the whole family)",
			"truncate public.users purge mail (the whole family)",
			"truncate public.users purge search (the whole family)"}},
		{`INSERT INTO sellers VALUES (5, 'x')`, []string{
			"insert public.sellers lookup page for_each $1 = 5: SELECT id AS product_id FROM products WHERE seller_id = $1"}},
		{`SELECT pg_logical_emit_message(true, 'cart.changed', '{"cart_id": 9}')`, []string{"message cart.changed delete cart cart:9"}},
		{`SELECT pg_logical_emit_message(false, 'cart.changed', '{"cart": 9}')`, []string{"message cart.changed purge cart (the whole family) widened: message"}},
		{`ALTER TABLE sellers ADD COLUMN more int; INSERT INTO sellers VALUES (6, 'x')`, []string{
			"ddl public.sellers purge page (the whole family)",
			"insert public.sellers lookup page for_each $1 = 6: SELECT id AS product_id FROM products WHERE seller_id = $1"}},
	} {
		db.Exec(t, c.sql)
		for _, want := range c.want {
			if got := fields(t, p.next(t)); got != want {
				t.Errorf("%s:\n got %s\nwant %s", c.sql, got, want)
			}
		}
	}
	var slots []string
	rows, err := db.Conn(t).Query(t.Context(), "SELECT slot_name || ' ' || temporary || ' ' || active FROM pg_replication_slots WHERE database = current_database()")
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		slots = append(slots, s)
	}
	if len(slots) != 1 || !regexp.MustCompile(`^cdc_invalidator_tap_[0-9a-f]{12} true true$`).MatchString(slots[0]) {
		t.Errorf("slots while it runs: %q", slots)
	}
	p.cancel()
	if rest, code := p.finish(t); code != exitOK || len(rest) != 0 || !strings.Contains(p.stderr.String(), "18 invalidations in ") ||
		!strings.Contains(p.stderr.String(), "18 shown, 0 left out") {
		t.Errorf("exit code %d, %q, stderr %s", code, rest, p.stderr)
	}
	conn := db.Conn(t)
	eventually(t, "its slot is gone", func() bool {
		var n int
		err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()").Scan(&n)
		return err == nil && n == 0
	})
}

// DDL that the log says nothing of is in the event trigger's messages.
func TestTapShowsAnnouncedDDL(t *testing.T) {
	db, path := tapWorld(t)
	db.Exec(t, replication.DDLFunctionSQL()...)
	for _, trigger := range replication.DDLTriggers() {
		db.Exec(t, trigger.CreateSQL()...)
	}
	users := []string{"ddl public.users purge user (the whole family)", "ddl public.users purge mail (the whole family)", "ddl public.users purge search (the whole family)"}
	sellers := []string{"ddl public.sellers purge page (the whole family)"}
	end := []string{"message cart.changed delete cart cart:1"}
	for _, c := range []struct {
		args []string
		want []string
	}{
		{nil, slices.Concat(users, sellers, sellers, users, end)},
		{[]string{"--family", "page,cart"}, slices.Concat(sellers, sellers, end)},
		{[]string{"--table", "public.sellers"}, slices.Concat(sellers, sellers)},
	} {
		p := startTap(t, append([]string{"-c", path, "--show-values", "--duration", "20s", "--count", fmt.Sprint(len(c.want))}, c.args...)...)
		db.Exec(t,
			`ALTER TABLE users ALTER email TYPE varchar USING upper(email)`,
			`ALTER TABLE products ALTER seller_id TYPE int USING seller_id + 1`, // nothing maps it
			`CREATE INDEX ON sellers (name)`,                                    // of no consequence
			`ALTER TABLE sellers RENAME TO vendors`,
			`ALTER TABLE vendors RENAME TO sellers`, // the name means the table that it meant before
			`ALTER PUBLICATION pub SET (publish = 'insert, update, delete')`,
			`SELECT pg_logical_emit_message(false, 'cdc_invalidator.ddl', '{"version": 1, "publications": ["pub"]}')`,
			`SELECT pg_logical_emit_message(true, 'cart.changed', '{"cart_id": 1}')`)
		lines, code := p.finish(t)
		var got []string
		for _, l := range lines {
			got = append(got, fields(t, l))
		}
		if code != exitOK || !slices.Equal(got, c.want) {
			t.Errorf("%v: exit code %d\n got %q\nwant %q", c.args, code, got, c.want)
		}
	}
}

func TestTapMasksValuesButTellsEqualOnesApart(t *testing.T) {
	db, path := tapWorld(t)
	p := startTap(t, "-c", path, "--json")
	db.Exec(t, `INSERT INTO users VALUES (4711, 8123, 'canary@example.org')`, `UPDATE users SET email = 'second-canary@example.org'`,
		`INSERT INTO sellers VALUES (4711, 'x')`)
	var all []map[string]any
	var text strings.Builder
	for range 3 + 4 + 1 {
		line := p.next(t)
		text.WriteString(line + "\n")
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil || m["type"] != "invalidation" || m["masked"] != true {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, m)
	}
	for _, secret := range []string{"canary", "example.org", ":4711", ":8123", `"8123"`, `"4711"`} {
		if strings.Contains(text.String(), secret) {
			t.Errorf("%s is shown:\n%s", secret, &text)
		}
	}
	key := func(i int) string { return fmt.Sprint(all[i]["key"]) }
	if !regexp.MustCompile(`^t:\*[0-9a-f]{8}:user:\*[0-9a-f]{8}$`).MatchString(key(0)) || key(0) != key(3) {
		t.Errorf("one key, shown as %s and %s", key(0), key(3))
	}
	if key(1) != key(5) || key(4) == key(5) {
		t.Errorf("the update's keys are %s and %s, inserted was %s", key(4), key(5), key(1))
	}
	if id := strings.TrimPrefix(key(0)[strings.Index(key(0), ":user:"):], ":user:"); fmt.Sprint(all[7]["params"]) != "["+id+"]" {
		t.Errorf("the lookup asks with %v, the user's id is %s", all[7]["params"], id)
	}
	if tenant := fmt.Sprint(all[0]["tenant"]); !strings.HasPrefix(key(0), "t:"+tenant+":") {
		t.Errorf("tenant %s of key %s", tenant, key(0))
	}
	p.cancel()
	rest, code := p.finish(t)
	var sum struct {
		Type        string
		Shown, Rows int
		Ops         map[string]int
	}
	if code != exitOK || len(rest) != 1 || json.Unmarshal([]byte(rest[0]), &sum) != nil || sum.Type != "summary" || sum.Shown != 8 || sum.Rows != 3 || sum.Ops["delete"] != 5 {
		t.Errorf("exit code %d, %q", code, rest)
	}
	// Another run draws another key: what was written down cannot be found by trying.
	again := startTap(t, "-c", path, "--json", "--count", "1")
	db.Exec(t, `UPDATE users SET id = id`)
	if line := again.next(t); strings.Contains(line, key(0)) {
		t.Errorf("the same mask in two runs: %s", line)
	}
	if _, code := again.finish(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

func TestTapFilters(t *testing.T) {
	db, path := tapWorld(t)
	change := `INSERT INTO users VALUES (1, 7, 'a'), (2, 8, 'b'); INSERT INTO sellers VALUES (5, 'x'); TRUNCATE users;
		SELECT pg_logical_emit_message(true, 'cart.changed', '{"cart_id": 9}')`
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"--table", "public.sellers"}, []string{"lookup page"}},
		{[]string{"--family", "mail,cart"}, []string{"delete mail", "delete mail", "purge mail", "delete cart"}},
		{[]string{"--tenant", "8"}, []string{"delete user", "delete mail", "advance search", "purge user", "purge mail", "purge search"}},
		{[]string{"--tenant", "8", "--family", "user", "--table", "public.users"}, []string{"delete user", "purge user"}},
	} {
		p := startTap(t, append([]string{"-c", path, "--count", fmt.Sprint(len(c.want))}, c.args...)...)
		db.Exec(t, change)
		lines, code := p.finish(t)
		var got []string
		for _, l := range lines {
			got = append(got, strings.Join(strings.Fields(fields(t, l))[2:4], " "))
		}
		if code != exitOK || strings.Join(got, ";") != strings.Join(c.want, ";") {
			t.Errorf("%v: exit code %d, got %q, want %q", c.args, code, got, c.want)
		}
		db.Exec(t, "TRUNCATE sellers")
	}
}

func TestTapLeavesOutWhatExceedsTheRate(t *testing.T) {
	db, path := tapWorld(t)
	p := startTap(t, "-c", path, "--json", "--family", "user", "--max-rate", "5", "--duration", "4s")
	db.Exec(t, `INSERT INTO users SELECT i, 7, i || '@x' FROM generate_series(1, 3000) i`)
	lines, code := p.finish(t)
	shown, missing := 0, 0
	for _, l := range lines {
		var m struct {
			Type           string
			Lines          int
			Shown, LeftOut int `json:"-"`
		}
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatal(err)
		}
		switch m.Type {
		case "invalidation":
			shown++
		case "left_out":
			missing += m.Lines
		}
	}
	if code != exitOK || shown < 5 || shown > 30 || shown+missing != 3000 {
		t.Errorf("exit code %d, %d shown, %d left out, want 3000 together", code, shown, missing)
	}
}

func TestTapResolvesLookups(t *testing.T) {
	db, path := tapWorld(t)
	p := startTap(t, "-c", path, "--show-values", "--resolve", "--count", "5")
	db.Exec(t, `INSERT INTO sellers VALUES (5, 'x')`)
	lines := []string{p.next(t), p.next(t), p.next(t)} // before the query can fail
	db.Exec(t, `ALTER TABLE products RENAME TO gone`, `INSERT INTO sellers VALUES (6, 'x')`)
	rest, code := p.finish(t)
	lines = append(lines, rest...)
	want := []string{
		"insert public.sellers lookup page for_each $1 = 5: SELECT id AS product_id FROM products WHERE seller_id = $1",
		"insert public.sellers delete page page:71 (for_each)",
		"insert public.sellers delete page page:72 (for_each)",
		"insert public.sellers lookup page for_each $1 = 6: SELECT id AS product_id FROM products WHERE seller_id = $1",
		"insert public.sellers purge page (the whole family) widened: lookup (for_each)",
	}
	if code != exitOK || len(lines) != len(want) {
		t.Fatalf("exit code %d, %q, stderr %s", code, lines, p.stderr)
	}
	for i, l := range lines {
		if got := fields(t, l); got != want[i] {
			t.Errorf("got %s\nwant %s", got, want[i])
		}
	}
}

// Whoever stops reading gets fewer lines; the source is not held up by it.
func TestTapDoesNotHoldUpTheSource(t *testing.T) {
	db, path := tapWorld(t)
	p := startTap(t, "-c", path, "--max-rate", "0")
	db.Exec(t, `INSERT INTO users SELECT i, 7, i || '@x' FROM generate_series(1, 20000) i`)
	conn := db.Conn(t)
	var end string
	if err := conn.QueryRow(t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&end); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the slot is confirmed past all of it", func() bool {
		var ok bool
		err := conn.QueryRow(t.Context(), "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots WHERE database = current_database()", end).Scan(&ok)
		return err == nil && ok
	})
	p.cancel()
	lines, code := p.finish(t)
	if code != exitOK || len(lines) > 10000 || !regexp.MustCompile(`6\d{4} invalidations.* [1-9]\d{4} left out`).MatchString(p.stderr.String()) {
		t.Errorf("exit code %d, %d lines, stderr %s", code, len(lines), p.stderr)
	}
}

func TestTapSaysForWhatItWaits(t *testing.T) {
	db, path := tapWorld(t)
	open := db.Conn(t)
	if _, err := open.Exec(t.Context(), "BEGIN; INSERT INTO products VALUES (99, 1)"); err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() { done <- Main(ctx, []string{"tap", "-c", path}, strings.NewReader(""), io.Discard, &log) }()
	pid := fmt.Sprintf("pid %d", open.PgConn().PID())
	eventually(t, "it names the transaction", func() bool {
		return strings.Contains(log.String(), "waiting for transactions that were open before") && strings.Contains(log.String(), pid)
	})
	cancel() // Ctrl-C while it waits
	if code := <-done; code != exitOK {
		t.Errorf("exit code %d: %s", code, &log)
	}
}

func TestTapRefusals(t *testing.T) {
	db, path := tapWorld(t)
	noPublication := writeRunTestFile(t, strings.Replace(fmt.Sprintf(tapTestFile, db.URL), "{name: pub}", "{name: other}", 1))
	unset := writeRunTestFile(t, fmt.Sprintf(tapTestFile, "${TAP_TEST_UNSET}"))
	away := writeRunTestFile(t, fmt.Sprintf(tapTestFile, "postgres://u:canary@127.0.0.1:1/db"))
	for _, c := range []struct {
		args []string
		code int
		want []string
	}{
		{nil, exitUsage, []string{"--config is needed"}},
		{[]string{"-c", path, "--table", "users"}, exitUsage, []string{"the mapped ones are public.sellers, public.users"}},
		{[]string{"-c", path, "--family", "usr"}, exitUsage, []string{"there are user, mail, page"}},
		{[]string{"-c", path, "--max-rate", "-1"}, exitUsage, []string{"negative"}},
		{[]string{"-c", noPublication}, exitConfig, []string{"publication other", "CREATE PUBLICATION other FOR TABLE public.sellers, public.users"}},
		{[]string{"-c", unset}, exitConfig, []string{"TAP_TEST_UNSET is not set", ":3:"}},
		{[]string{"-c", away}, exitUnavailable, []string{"connect to the source"}},
		{[]string{"-c", path + ".none"}, exitConfig, []string{"read the mappings"}},
	} {
		var out, errOut bytes.Buffer
		code := Main(t.Context(), append([]string{"tap"}, c.args...), strings.NewReader(""), &out, &errOut)
		for _, want := range c.want {
			if code != c.code || out.Len() > 0 || !strings.Contains(errOut.String(), want) || strings.Contains(errOut.String(), "canary") {
				t.Errorf("%v: exit code %d, want %d; stdout %q, stderr %q, want %q in it", c.args, code, c.code, &out, &errOut, want)
			}
		}
	}
}

func TestTapWithoutAFreeSlot(t *testing.T) {
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"max_replication_slots": "1"}})
	db := servertest.NewDatabase(t, pg, "full")
	db.Exec(t, `CREATE TABLE users (id int PRIMARY KEY, tenant_id int, email text); CREATE TABLE sellers (id int PRIMARY KEY);
		CREATE PUBLICATION pub FOR TABLE users, sellers; SELECT pg_create_physical_replication_slot('s')`)
	code, _, errOut := runMain(t, "tap", "-c", writeRunTestFile(t, fmt.Sprintf(tapTestFile, db.URL)))
	if code != exitConfig || !strings.Contains(errOut, "all replication slots of the server are taken") || !strings.Contains(errOut, "max_replication_slots") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	db.Exec(t, `SELECT pg_drop_replication_slot('s')`)
}
