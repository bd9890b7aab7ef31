package provision

import (
	"slices"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// A publication that sends changes under the partitions' names speaks of the partitions only:
// that it lacks a partitioned table showed after it was changed, with the slot made.
func TestOnePlanIsCompleteForAPartitionedTable(t *testing.T) {
	for _, tc := range []struct {
		publication string
		want        []string
	}{
		{publication: "CREATE PUBLICATION pub FOR TABLE good", want: []string{"~ publication pub", "~ publication pub"}},
		{publication: "CREATE PUBLICATION pub FOR TABLE good, parts", want: []string{"~ publication pub"}},
		{publication: "CREATE PUBLICATION pub FOR TABLE good, parts1", want: []string{"~ publication pub", "~ publication pub"}},
		{publication: "CREATE PUBLICATION pub FOR TABLES IN SCHEMA public", want: []string{"~ publication pub"}},
		{publication: "CREATE PUBLICATION pub FOR TABLE good WITH (publish = 'insert, truncate')", want: []string{"~ publication pub", "~ publication pub", "~ publication pub"}},
	} {
		t.Run(tc.publication, func(t *testing.T) {
			db := servertest.Postgres(t)
			db.Exec(t, `CREATE TABLE good (id int PRIMARY KEY);
				CREATE TABLE parts (id int, t int, email text, PRIMARY KEY (id, t)) PARTITION BY LIST (t); ALTER TABLE parts REPLICA IDENTITY FULL;
				CREATE TABLE parts1 PARTITION OF parts FOR VALUES IN (1); ALTER TABLE parts1 REPLICA IDENTITY FULL`, tc.publication)
			conn := connect(t, db.URL)
			d := Desired{Slot: db.Name + "_slot", Publication: "pub", Identity: true, Tables: []mapping.TableUse{use("good", "id"), use("parts", "email", "id")}}
			plan := planFor(t, conn, d)
			want := append(slices.Clone(tc.want), "+ slot "+d.Slot)
			if got := signs(plan); !slices.Equal(got, want) {
				t.Fatalf("the plan is %q, want %q", got, want)
			}
			if err := Apply(t.Context(), conn, d, plan, &quiet{}); err != nil {
				t.Fatal(err)
			}
			if left := planFor(t, conn, d); !left.Nothing() {
				t.Errorf("after apply, left is %q", signs(left))
			}
		})
	}
}

// A publication of a schema, or of all tables, has the server refuse writes of tables that
// nobody mapped. Each is named, with statements that mend it as they stand, and nothing is
// made or changed while that is so.
func TestOurPublicationTakesNoWriteFromOtherTables(t *testing.T) {
	const options = " WITH (publish_via_partition_root)"
	for _, tc := range []struct{ publication, narrow string }{
		{"FOR TABLES IN SCHEMA public", "ALTER PUBLICATION pub SET TABLE public.good;"},
		{"FOR TABLES IN SCHEMA public, TABLE side.other", "ALTER PUBLICATION pub SET TABLE public.good;"},
		{"FOR ALL TABLES", "BEGIN;\nDROP PUBLICATION pub;\nCREATE PUBLICATION pub FOR TABLE public.good WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);\nCOMMIT;"},
		{"FOR TABLE good, audit_log, events, keyed", "ALTER PUBLICATION pub SET TABLE public.good;"},
	} {
		for _, narrow := range []bool{true, false} {
			t.Run(tc.publication, func(t *testing.T) {
				db := servertest.Postgres(t)
				db.Exec(t, `CREATE SCHEMA side; CREATE TABLE side.other (id int PRIMARY KEY);
					CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE fine (id int PRIMARY KEY); CREATE TABLE audit_log (id int);
					CREATE TABLE keyed (id int PRIMARY KEY); ALTER TABLE keyed REPLICA IDENTITY NOTHING;
					CREATE TABLE events (id int, t int) PARTITION BY LIST (t); CREATE TABLE events1 PARTITION OF events FOR VALUES IN (1)`)
				const application = "INSERT INTO audit_log VALUES (1); UPDATE audit_log SET id = 2; DELETE FROM audit_log; INSERT INTO events VALUES (1, 1); UPDATE events SET id = 2; INSERT INTO keyed VALUES (1); DELETE FROM keyed"
				db.Exec(t, application, "CREATE PUBLICATION pub "+tc.publication+options)
				admin := db.Conn(t)
				if _, err := admin.Exec(t.Context(), application); err == nil {
					t.Fatal("the application's writes work as it is")
				}
				conn := connect(t, db.URL)
				d := Desired{Slot: db.Name + "_slot", Publication: "pub", Identity: true, Tables: []mapping.TableUse{use("good", "id")}}
				plan := planFor(t, conn, d)
				var subjects []string
				for _, b := range plan.Blocked {
					subjects = append(subjects, b.Subject)
				}
				if want := []string{"table public.audit_log", "table public.events1", "table public.keyed"}; !slices.Equal(subjects, want) {
					t.Fatalf("it is blocked by %q, want %q", subjects, want)
				}
				if err := Apply(t.Context(), conn, d, plan, &quiet{}); err == nil {
					t.Error("apply went on")
				}
				if _, found, err := replication.ReadSlot(t.Context(), conn, d.Slot); err != nil || found {
					t.Errorf("there is a slot: %v", err)
				}
				for _, b := range plan.Blocked {
					sql, other, _ := strings.Cut(b.Fix, "\n-- or, ")
					if sql != tc.narrow {
						t.Errorf("the fix is %q", sql)
					}
					if narrow {
						db.Exec(t, b.Fix) // with its comments, and more than once
						continue
					}
					_, own, _ := strings.Cut(other, "\n-- ")
					db.Exec(t, own)
				}
				db.Exec(t, application)
				if got := signs(planFor(t, conn, d)); !slices.Equal(got, []string{"+ slot " + d.Slot}) {
					t.Errorf("left is %q", got)
				}
			})
		}
	}
}
