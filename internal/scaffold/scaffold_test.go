package scaffold

import (
	"bytes"
	"context"
	"errors"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	cdcinvalidator "github.com/cdc-invalidator/cdc-invalidator"
	"github.com/cdc-invalidator/cdc-invalidator/internal/keytype"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

func TestMain(m *testing.M) { servertest.VerifyMain(m) }

// connect opens the connection that the command opens.
func connect(t *testing.T, db *servertest.Database) *pgx.Conn {
	t.Helper()
	conn, err := replication.ConnectControl(t.Context(), db.URL, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { replication.CloseControl(context.Background(), conn) })
	return conn
}

// schemaDatabase is a database with testdata/schema.sql.
func schemaDatabase(t *testing.T) *pgx.Conn {
	t.Helper()
	sql, err := os.ReadFile("testdata/schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, servertest.Postgres(t))
	if _, err := conn.Exec(t.Context(), "SET search_path = public; "+string(sql)+"; SET search_path = pg_catalog"); err != nil {
		t.Fatal(err)
	}
	return conn
}

func generate(t *testing.T, conn *pgx.Conn, o Options) (Result, string) {
	t.Helper()
	r, err := Generate(t.Context(), conn, o)
	if err != nil {
		t.Fatal(err)
	}
	return r, string(r.YAML)
}

func parse(t *testing.T, text string) (*mapping.File, *mapping.Plan) {
	t.Helper()
	file, err := mapping.Parse("mappings.yaml", []byte(text), mapping.Env{AllowUnset: true})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	plan, err := mapping.Compile(file)
	if err != nil {
		t.Fatal(err)
	}
	return file, plan
}

var byTenant = Options{TenantColumn: "tenant_id"}

// prose has one blank behind the #, and a statement five; what is commented out has
// neither.
var prose = regexp.MustCompile(`^ *#(| \S.*| {5}\S.*)$`)

// enable takes away the one # in front of everything that is commented out.
func enable(text string) string {
	lines := strings.Split(text, "\n")
	for i := slices.Index(lines, "keys:"); i < len(lines); i++ {
		if l := lines[i]; strings.HasPrefix(strings.TrimLeft(l, " "), "#") && !prose.MatchString(l) {
			lines[i] = strings.Replace(l, "#", "", 1)
		}
	}
	return strings.Join(lines, "\n")
}

func TestTheFileIsValidAsItStands(t *testing.T) {
	conn := schemaDatabase(t)
	r, text := generate(t, conn, byTenant)
	if first, _, _ := strings.Cut(text, "\n"); first != "# yaml-language-server: $schema=./mappings.schema.json" {
		t.Errorf("the first line is %q", first)
	}
	_, plan := parse(t, text)
	if r.Families != len(plan.Families()) || r.Families < 35 {
		t.Errorf("%d families of %d", len(plan.Families()), r.Families)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(cdcinvalidator.MappingsSchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("s.json", document); err != nil {
		t.Fatal(err)
	}
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	if err := c.MustCompile("s.json").Validate(v); err != nil {
		t.Error(err)
	}
	for _, secret := range []string{"canary-row-value", conn.Config().Host + ":" + strconv.Itoa(int(conn.Config().Port)), "postgres://"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in the file", secret)
		}
	}
	for _, want := range []string{"  url: ${DATABASE_URL}", "  url: ${REDIS_URL:-redis://localhost:6379}"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the file", want)
		}
	}
}

// run starts with the file: publication and slot are made, and no table in it
// breaks the application or goes unseen.
func TestRunStartsWithTheFile(t *testing.T) {
	conn := schemaDatabase(t)
	_, text := generate(t, conn, byTenant)
	_, plan := parse(t, text)
	result, err := replication.Setup(t.Context(), conn, replication.SetupOptions{
		Slot: "scaffold", Publication: "scaffold", CreateSlot: true, CreatePublication: true, Tables: plan.Tables()})
	if err != nil {
		t.Fatal(err)
	}
	if !result.PublicationCreated || !result.SlotCreated {
		t.Errorf("%+v", result)
	}
	if _, err := conn.Exec(t.Context(), "UPDATE public.users SET email = email || '!' WHERE id = 1; DELETE FROM public.users WHERE id = 2"); err != nil {
		t.Error(err)
	}
}

// What is commented out is right, too: every suggestion, every table that is left
// out, and the server takes every query.
func TestWhatIsCommentedOutIsValid(t *testing.T) {
	conn := schemaDatabase(t)
	_, text := generate(t, conn, byTenant)
	file, _ := parse(t, enable(text))
	queries := 0
	braces := regexp.MustCompile(`\{(\w+)\}`)
	for _, m := range file.Mappings {
		for _, u := range m.Keys {
			if u.ForEach == "" {
				continue
			}
			queries++
			n := 0
			sql := braces.ReplaceAllStringFunc(u.ForEach, func(string) string { n++; return "$" + strconv.Itoa(n) })
			described, err := conn.Prepare(t.Context(), "", sql)
			if err != nil {
				t.Errorf("%s: %v", u.ForEach, err)
				continue
			}
			var returned []string
			for _, f := range described.Fields {
				returned = append(returned, f.Name)
			}
			for v, column := range u.Vars {
				if v != "tenant_id" && !slices.Contains(returned, column) {
					t.Errorf("%s: {%s} is no column of it", u.ForEach, column)
				}
			}
		}
	}
	if queries < 15 {
		t.Errorf("only %d queries", queries)
	}
	for _, table := range []string{"audit_log", "cache_entries", "country_codes", "deferred", "page_views", "silent", "lorries", "vehicles"} {
		if !slices.ContainsFunc(file.Mappings, func(m *mapping.MappingSpec) bool { return m.Table == table }) {
			t.Errorf("%s is not in the file", table)
		}
	}
}

// The statements that the file names make every mapping exact.
func TestTheNamedStatementsMendTheReplicaIdentities(t *testing.T) {
	conn := schemaDatabase(t)
	r, text := generate(t, conn, byTenant)
	if want := []string{"billing.invoices", "public.employees", "public.metrics", "public.tickets", "public.users"}; !slices.Equal(r.Wide, want) {
		t.Errorf("wide are %v, want %v", r.Wide, want)
	}
	statements := regexp.MustCompile(`(?m)^  # {5}(ALTER TABLE .* REPLICA IDENTITY .*;)$`).FindAllStringSubmatch(text, -1)
	if len(statements) < 6 {
		t.Errorf("%d statements", len(statements))
	}
	for _, s := range statements {
		if _, err := conn.Exec(t.Context(), s[1]); err != nil {
			t.Errorf("%s: %v", s[1], err)
		}
	}
	if r, _ := generate(t, conn, byTenant); len(r.Wide) > 0 {
		t.Errorf("still wide: %v", r.Wide)
	}
}

func TestEachKindOfTable(t *testing.T) {
	_, text := generate(t, schemaDatabase(t), byTenant)
	unbroken := regexp.MustCompile(`\n *# `).ReplaceAllString(text, " ") // prose as it was before it was broken into lines
	for name, want := range map[string]string{
		"size":                         "# public.users (about 1,230 rows, ",
		"uuid key":                     "\n  products: {key: \"products:{id}\", class: critical}\n",
		"composite key":                "\n  order_items: {key: \"order_items:{order_id}:{line}\", class: critical}\n",
		"tenant in the key":            "\n  roles: {key: \"t:{tenant_id}:roles:{name}\", tenant: tenant_id, class: critical}\n",
		"tenant beside the key":        "\n  users: {key: \"t:{tenant_id}:users:{id}\", tenant: tenant_id, class: critical}\n",
		"tenant is the key":            "\n  tenant_settings: {key: \"t:{tenant_id}:tenant_settings\", tenant: tenant_id, class: critical}\n",
		"same name in two schemas":     "\n  billing_users: {key: \"billing_users:{id}\", class: critical}\n",
		"upper case":                   "\n  - table: \"Legacy App.Kunde\"\n    keys:\n      - Kunde: {Nr_: \"Nr.\"}\n",
		"reserved variable":            "\n      - Order: {Order_ID: \"Order ID\", row_version: version, user: user}\n",
		"a $ begins no reference":      "\n  - table: \"public.a$$b\"\n    keys:\n      - a_b: {x__y: \"x$$$$y\"}\n",
		"word of the format":           "\n  for_each_2: {key: \"for_each_2:{gr__e}\", class: critical}\n",
		"the daemon's own prefix":      "\n  inv: {key: \"row:inv:{source}:{id}\", class: critical}\n",
		"root of partitions":           "\n  # public.events (3 partitions, not analyzed yet). Replica identity: the primary key (day, id), which is enough.\n  - table: public.events\n",
		"identity by an index":         "Replica identity: index currencies_code_key (code), which is enough. Never\n  # drop that index before the identity is another one: the server refuses every UPDATE and DELETE then.\n  - table: public.currencies\n",
		"an index that would do":       "What mends it:\n  #     ALTER TABLE public.tickets REPLICA IDENTITY FULL;\n",
		"no primary key":               "\n  # public.audit_log (not analyzed yet) is left out: it has no primary key, and no other replica identity: once it is\n",
		"an index instead of a key":    "\n  #     ALTER TABLE public.country_codes REPLICA IDENTITY FULL;\n  #- table: public.country_codes\n",
		"a partial index is no key":    "\n  #     ALTER TABLE public.drafts ADD PRIMARY KEY (...);\n",
		"generated tenant":             "\n  derived: {key: \"derived:{id}\", class: critical}\n",
		"identity nothing":             "\n  #     ALTER TABLE public.silent REPLICA IDENTITY DEFAULT;\n",
		"unlogged":                     "is left out: it is unlogged or temporary",
		"dot in a name":                "\n  # public.dotted.name (not analyzed yet) is left out: a dot",
		"child by inheritance":         "\n      - circles\n      # It inherits from public.shapes, and its rows are read there too.\n      - shapes\n",
		"child without a key":          "# public.vehicles (not analyzed yet) is left out: public.lorries inherits from it",
		"self reference, upwards":      "\n      #- categories: {id: parent_id}\n",
		"self reference, downwards":    "\n      #- categories: {id: id}\n      #  for_each: \"SELECT id FROM public.categories WHERE parent_id = {id}\"\n",
		"composite foreign key":        "\n      #  for_each: \"SELECT project_id, id FROM public.documents WHERE tenant_id = {tenant_id} AND project_id = {id}\"\n",
		"foreign key to another key":   "\n      #- products: {id: id}\n      #  for_each: \"SELECT id FROM public.products WHERE sku = {sku}\"\n",
		"identity for a suggestion":    "Needs the old value of\n      # product_id in the log:\n      #     ALTER TABLE public.order_items REPLICA IDENTITY FULL;\n      #- products: {id: product_id}\n",
		"no index":                     "There is no index on public.categories (parent_id), so it reads all of that table each time.",
		"names that need braces":       "found by a query. Not possible: a column with such a name cannot stand in a query's braces.",
		"no tenant in the changed row": "Not possible: users is by tenant, and public.orders has no column tenant_id.",
	} {
		if !strings.Contains(text, want) && !strings.Contains(unbroken, want) {
			t.Errorf("%s: not in the file: %s", name, want)
		}
	}
	for _, not := range []string{"table: public.events_2024", "active_users", "of_extension", "pg_catalog"} {
		if strings.Contains(text, not) {
			t.Errorf("%q is in the file", not)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// Key columns under which one row has several texts get the normal form that brings them together, or a word.
func TestColumnsWithSeveralTexts(t *testing.T) {
	conn := schemaDatabase(t)
	if _, err := conn.Exec(t.Context(), `CREATE EXTENSION citext SCHEMA public; CREATE DOMAIN public.code AS bpchar;
		CREATE COLLATION public.nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE TABLE public.several (tenant_id public.citext, mail public.citext, amount numeric, code public.code, price numeric(10,2), short char(4), n int,
			PRIMARY KEY (tenant_id, mail, amount, code, price, short, n));
		CREATE TABLE public.weights (w float8 PRIMARY KEY); CREATE TABLE public.loose (name text COLLATE public.nocase PRIMARY KEY)`); err != nil {
		t.Fatal(err)
	}
	_, text := generate(t, conn, byTenant)
	unbroken := regexp.MustCompile(`\n *# `).ReplaceAllString(text, " ")
	for _, want := range []string{
		`several: {key: "t:{tenant_id|lower}:several:{mail|lower}:{amount|number}:{code|rtrim}:{price}:{short}:{n}", tenant: tenant_id, class: critical}`,
		"Column w (double precision) is a float, of which 0 and -0 are equal",
		"Column name (text) has the collation public.nocase, under which different texts are equal. Readers are refused all but the row's own text: make keys of another column",
	} {
		if !strings.Contains(unbroken, want) {
			t.Errorf("not in the file: %s\n%s", want, text)
		}
	}
	_, plan := parse(t, text)
	types, err := keytype.Read(t.Context(), conn, plan)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range types.Findings(plan) {
		if f.Where == "family several" {
			t.Errorf("doctor would say %s: %s", f.Where, f.Problem)
		}
	}
	parse(t, enable(text))
}

func TestFilters(t *testing.T) {
	conn := schemaDatabase(t)
	tables := func(o Options) string {
		_, text := generate(t, conn, o)
		_, plan := parse(t, text)
		var list []string
		for _, u := range plan.Tables() {
			list = append(list, u.Schema+"."+u.Table)
		}
		return strings.Join(list, " ")
	}
	if got := tables(Options{Schemas: []string{"billing", "private"}}); got != "billing.invoices billing.users private.users" {
		t.Error(got)
	}
	if got := tables(Options{Schemas: []string{"billing", "private"}, Exclude: []string{"inv*", "private.users"}}); got != "billing.users" {
		t.Error(got)
	}
	if _, text := generate(t, conn, Options{}); strings.Contains(text, "tenant:") {
		t.Error("there are tenants without a tenant column")
	}
	for _, o := range []Options{{Schemas: []string{"none"}}, {Exclude: []string{"*"}}} {
		if _, err := Generate(t.Context(), conn, o); !errors.Is(err, ErrNothing) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// A role that may not read a single row is enough.
func TestNoRightOnAnyTableIsNeeded(t *testing.T) {
	conn := schemaDatabase(t)
	if _, err := conn.Exec(t.Context(), "CREATE ROLE scaffold_reader; SET ROLE scaffold_reader"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := conn.Exec(context.Background(), "RESET ROLE; DROP ROLE scaffold_reader"); err != nil {
			t.Error(err)
		}
	}()
	if r, _ := generate(t, conn, byTenant); r.Families < 35 {
		t.Errorf("%d families", r.Families)
	}
}

func TestEstimatesAreRounded(t *testing.T) {
	for n, want := range map[int64]string{0: "0 rows", 1: "1 row", 999: "999 rows", 1234: "1,230 rows", 12_350: "12,400 rows", 1_999_999: "2,000,000 rows"} {
		if got := counted(n, "row"); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for n, want := range map[int64]string{8192: "8 kB", 1 << 20: "1.0 MB", 5 << 30: "5.0 GB", 300 << 30: "300 GB", 5000 << 40: "5000 TB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
