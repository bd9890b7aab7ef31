package provision

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// combination is one way in which a table, its identity and publications can be.
type combination struct {
	primary     string // of the table: yes, deferrable, no
	index       string // a unique one beside it
	identity    string
	generated   string // a generated column
	partitioned bool
	others      []string // publications of others
	ours        string   // what there is of ours already
	key         string   // the column of the mapped key
}

// draw makes a combination; every value of every part comes up.
func draw(r *rand.Rand, version int) combination {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	c := combination{
		primary: pick("yes", "yes", "yes", "deferrable", "no"), index: pick("none", "email", "email id", "nullable", "partial", "expression", "deferrable"),
		identity: pick("default", "default", "default", "full", "nothing", "index"), generated: pick("none", "none", "stored", "virtual"),
		partitioned: r.IntN(3) == 0, ours: pick("none", "none", "has it", "lacks it", "inserts only", "not via root", "lacks it, not via root"), key: pick("id", "email", "email", "name"),
	}
	if c.generated == "virtual" && version < 180000 {
		c.generated = "stored"
	}
	for range r.IntN(3) {
		c.others = append(c.others, pick("table", "all", "schema", "list id", "list id email", "list all", "filter id", "filter email", "filter name", "inserts only", "leaf", "leaf list", "leaf filter", "via root", "via root list", "via root filter", "stored"))
	}
	return c
}

// statements make it, in order. One that the server does not take is left out: the
// combination is then another one.
func (c combination) statements(name string, version int) (list []string) {
	columns := []string{"id int NOT NULL", "email text NOT NULL", "name text"}
	switch c.index {
	case "nullable", "partial", "expression":
		columns[1] = "email text"
	}
	switch c.generated {
	case "stored":
		columns = append(columns, "g text GENERATED ALWAYS AS (lower(email)) STORED")
	case "virtual":
		columns = append(columns, "g text GENERATED ALWAYS AS (lower(email)) VIRTUAL")
	}
	switch c.primary {
	case "yes":
		columns = append(columns, "PRIMARY KEY (id)")
	case "deferrable":
		columns = append(columns, "PRIMARY KEY (id) DEFERRABLE")
	}
	create := "CREATE TABLE " + name + " (" + strings.Join(columns, ", ") + ")"
	tables := []string{name}
	if c.partitioned {
		create += " PARTITION BY RANGE (id)"
		list = append(list, create, fmt.Sprintf("CREATE TABLE %s_1 PARTITION OF %s FOR VALUES FROM (0) TO (100)", name, name),
			fmt.Sprintf("CREATE TABLE %s_2 PARTITION OF %s DEFAULT", name, name))
		tables = append(tables, name+"_1", name+"_2")
	} else {
		list = append(list, create)
	}
	index := "(email)"
	if c.partitioned {
		index = "(email, id)" // has to have the partition key
	}
	switch c.index {
	case "email", "nullable":
		list = append(list, fmt.Sprintf("CREATE UNIQUE INDEX %s_u ON %s %s", name, name, index))
	case "email id":
		list = append(list, fmt.Sprintf("CREATE UNIQUE INDEX %s_u ON %s (email, id)", name, name))
	case "partial":
		list = append(list, fmt.Sprintf("CREATE UNIQUE INDEX %s_u ON %s %s WHERE id > 0", name, name, index))
	case "expression":
		list = append(list, fmt.Sprintf("CREATE UNIQUE INDEX %s_u ON %s (lower(email), id)", name, name))
	case "deferrable":
		list = append(list, fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT %s_u UNIQUE (email, id) DEFERRABLE", name, name))
	}
	for i, t := range tables {
		switch c.identity {
		case "full", "nothing":
			list = append(list, "ALTER TABLE "+t+" REPLICA IDENTITY "+c.identity)
		case "index":
			if i == 0 {
				list = append(list, fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY USING INDEX %s_u", name, name))
			}
		}
	}
	all := "id, email, name"
	if c.generated == "stored" && version >= 180000 {
		all += ", g"
	}
	leaf := tables[len(tables)-1]
	for i, o := range c.others {
		pub := fmt.Sprintf("CREATE PUBLICATION %s_o%d FOR ", name, i)
		switch o {
		case "table":
			list = append(list, pub+"TABLE "+name)
		case "all":
			list = append(list, pub+"ALL TABLES")
		case "schema":
			list = append(list, pub+"TABLES IN SCHEMA public")
		case "list id":
			list = append(list, pub+"TABLE "+name+" (id)")
		case "list id email":
			list = append(list, pub+"TABLE "+name+" (id, email)")
		case "list all":
			list = append(list, pub+"TABLE "+name+" ("+all+")")
		case "filter id", "filter email", "filter name":
			list = append(list, pub+"TABLE "+name+" WHERE ("+strings.TrimPrefix(o, "filter ")+" IS NOT NULL)")
		case "inserts only":
			list = append(list, pub+"TABLE "+name+" (id) WITH (publish = 'insert')")
		case "leaf":
			list = append(list, pub+"TABLE "+leaf)
		case "leaf list":
			list = append(list, pub+"TABLE "+leaf+" (id)")
		case "leaf filter":
			list = append(list, pub+"TABLE "+leaf+" WHERE (email IS NOT NULL)")
		case "via root":
			list = append(list, pub+"TABLE "+name+" WITH (publish_via_partition_root)")
		case "via root list":
			list = append(list, pub+"TABLE "+name+" (id, email) WITH (publish_via_partition_root)")
		case "via root filter":
			list = append(list, pub+"TABLE "+name+" WHERE (name IS NOT NULL) WITH (publish_via_partition_root)")
		case "stored":
			if version >= 180000 {
				list = append(list, pub+"TABLE "+name+" WITH (publish_generated_columns = stored)")
			}
		}
	}
	ours := "CREATE PUBLICATION " + name + "_p "
	switch c.ours {
	case "has it":
		list = append(list, ours+"FOR TABLE "+name+" WITH (publish_via_partition_root)")
	case "lacks it":
		list = append(list, ours+"WITH (publish_via_partition_root)")
	case "lacks it, not via root":
		list = append(list, ours+"FOR TABLE "+name+"_keyed")
	case "inserts only":
		list = append(list, ours+"FOR TABLE "+name+", "+name+"_beside WITH (publish = 'insert', publish_via_partition_root)")
	case "not via root":
		list = append(list, ours+"FOR TABLE "+name)
	}
	return append(list, "GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC")
}

// applicationWrites tries what an application does, and says what the server refused.
func applicationWrites(t *testing.T, app *pgx.Conn, tables ...string) map[string]string {
	t.Helper()
	refused := map[string]string{}
	for _, table := range tables {
		columns := " (id, email, name) VALUES "
		for _, sql := range []string{"INSERT INTO " + table + columns + "(1, 'A', 'n'), (101, 'B', 'n')", "UPDATE " + table + " SET name = 'm'", "UPDATE " + table + " SET email = email || 'x'",
			"UPDATE " + table + " SET id = id + 1", "DELETE FROM " + table} {
			if _, err := app.Exec(t.Context(), sql); err != nil {
				refused[sql] = err.Error()
			}
		}
		if _, err := app.Exec(t.Context(), "TRUNCATE "+table); err != nil {
			t.Fatal(err)
		}
	}
	return refused
}

// Whatever a table, its identity and the publications of others are: the application can
// write after apply what it could write before. What cannot be had is refused with the
// reason, and where the application cannot write already, that is found.
func TestApplyTakesNoWriteFromTheApplication(t *testing.T) {
	t.Parallel()
	db := servertest.Postgres(t)
	role := "app_" + db.Name
	db.Exec(t, "CREATE ROLE "+role+" LOGIN PASSWORD 'x'", "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC")
	cfg, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	app := servertest.Connect(t, fmt.Sprintf("postgres://%s:x@%s:%d/%s?sslmode=disable", role, cfg.Host, cfg.Port, db.Name))
	admin := db.Conn(t)
	t.Cleanup(func() {
		_ = app.Close(context.Background())
		if _, err := admin.PgConn().Exec(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role).ReadAll(); err != nil {
			t.Error(err)
		}
	})
	conn := connect(t, db.URL)
	server, err := replication.ReadServer(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 9))
	seen := map[string]int{}
	for i := range 120 {
		c, name := draw(r, server.Version), fmt.Sprintf("t%d", i)
		db.Exec(t, "CREATE TABLE "+name+"_beside (id int, email text, name text)", // without a primary key
			"CREATE TABLE "+name+"_keyed (id int PRIMARY KEY)")
		for _, sql := range c.statements(name, server.Version) {
			if _, err := admin.Exec(t.Context(), sql); err != nil {
				seen["not taken by the server"]++
			}
		}
		tables := []string{name, name + "_beside"}
		before := applicationWrites(t, app, tables...)
		d := Desired{Slot: db.Name + "_slot", Publication: name + "_p", Identity: true, Tables: []mapping.TableUse{use(name, c.key)}}
		for attempt := range 2 { // one plan is complete
			plan := planFor(t, conn, d)
			for k := range plan.Steps {
				if plan.Steps[k].Object == "slot" {
					plan.Steps = plan.Steps[:k]
					break
				}
			}
			if len(plan.Blocked) > 0 {
				if attempt > 0 {
					t.Errorf("%d %+v: after apply it is blocked: %+v", i, c, plan.Blocked)
				}
				seen["blocked"]++
				if !strings.Contains(plan.Blocked[0].Problem, "UPDATE and DELETE") && !strings.Contains(c.ours, "not via root") {
					t.Errorf("%d %+v: %+v", i, c, plan.Blocked)
				}
				break
			}
			if len(plan.Steps) == 0 {
				break
			}
			if attempt > 0 {
				t.Errorf("%d %+v: after apply there is more to do: %q", i, c, signs(plan))
				break
			}
			if err := Apply(t.Context(), conn, d, plan, &quiet{}); err != nil {
				t.Fatalf("%d %+v: %v\n%+v", i, c, err, plan)
			}
			seen["applied"]++
		}
		after := applicationWrites(t, app, tables...)
		for sql, err := range after {
			if _, already := before[sql]; !already {
				t.Errorf("%d %+v: %s worked, and after apply: %s", i, c, sql, err)
			}
		}
		for sql, err := range before {
			if _, still := after[sql]; still && !strings.Contains(sql, "_beside") && strings.Contains(err, "identity") {
				seen["refused before"]++
				if plan := planFor(t, conn, d); len(plan.Blocked) == 0 {
					t.Errorf("%d %+v: %s is refused, and nothing says so: %s", i, c, sql, err)
				}
			}
		}
		if len(before) > 0 && len(after) == 0 {
			seen["repaired"]++
		}
		db.Exec(t, "DROP TABLE "+name+", "+name+"_beside, "+name+"_keyed CASCADE", fmt.Sprintf("DROP PUBLICATION IF EXISTS %s_p, %s_o0, %s_o1", name, name, name))
	}
	t.Logf("%v", seen)
	for _, what := range []string{"blocked", "applied", "refused before", "repaired"} {
		if seen[what] < 3 {
			t.Errorf("%s came up %d times", what, seen[what])
		}
	}
}
