package provision

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// Rights is what the connected role may do.
type Rights struct {
	Role, Database   string
	Superuser        bool
	Replication      bool
	CreateInDatabase bool
	FreeSlots        int  // of max_replication_slots
	OwnsPublication  bool // as its owner or a member of it; true when there is none
	// NotOwned are the mapped tables that belong to roles that it is no member of.
	NotOwned map[string]string // qualified name to owner
}

func readRights(ctx context.Context, conn *pgx.Conn, d Desired) (Rights, error) {
	const op = "look up the role's rights"
	r := Rights{NotOwned: map[string]string{}}
	err := conn.QueryRow(ctx, `
		SELECT r.rolname::text, current_database()::text, r.rolsuper,
		       -- Managed services grant a role where they do not grant the attribute.
		       r.rolsuper OR r.rolreplication OR EXISTS (
		           SELECT FROM pg_roles g WHERE g.rolname IN ('rds_replication', 'rds_superuser', 'cloudsqlreplication') AND pg_has_role(r.oid, g.oid, 'MEMBER')),
		       has_database_privilege(current_database(), 'CREATE'),
		       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)::int,
		       coalesce((SELECT pg_has_role(r.oid, pubowner, 'USAGE') FROM pg_publication WHERE pubname = $1), true)
		FROM pg_roles r WHERE r.rolname = current_user`, d.Publication).
		Scan(&r.Role, &r.Database, &r.Superuser, &r.Replication, &r.CreateInDatabase, &r.FreeSlots, &r.OwnsPublication)
	if err != nil {
		return r, replication.ServerError(op, err)
	}
	schemas, names := make([]string, len(d.Tables)), make([]string, len(d.Tables))
	for i, u := range d.Tables {
		schemas[i], names[i] = u.Schema, u.Table
	}
	rows, err := conn.Query(ctx, `
		SELECT s.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text
		FROM unnest($1::text[], $2::text[]) AS u(schema, name)
		JOIN pg_namespace s ON s.nspname = u.schema::name
		JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = u.name::name
		WHERE NOT pg_has_role(c.relowner, 'USAGE')`, schemas, names)
	if err != nil {
		return r, replication.ServerError(op, err)
	}
	defer rows.Close()
	for rows.Next() {
		var schema, name, owner string
		if err := rows.Scan(&schema, &name, &owner); err != nil {
			return r, replication.ServerError(op, err)
		}
		r.NotOwned[replication.Qualified(schema, name)] = owner
	}
	if err := rows.Err(); err != nil {
		return r, replication.ServerError(op, err)
	}
	return r, nil
}

// table completes a step that alters a table.
func (r Rights) table(s *Step, schema, table string) {
	name := replication.Qualified(schema, table)
	s.Needs = "the owner of " + name
	if owner, foreign := r.NotOwned[name]; foreign {
		s.Needs += " (" + owner + ")"
		s.Lacking = true
	}
	s.grant = "run it as " + s.Needs + ", or as a superuser"
}

// publication completes a step that makes or alters the publication.
func (r Rights) publication(s *Step, exists bool) {
	s.Needs = "the owner of the publication and of the tables"
	s.Lacking = len(r.NotOwned) > 0 || !r.OwnsPublication
	if !exists {
		s.Needs = "CREATE on the database and the owner of the tables"
		s.Lacking = len(r.NotOwned) > 0 || !r.CreateInDatabase
	}
	if r.Superuser {
		s.Lacking = false
	}
	s.grant = "run it as " + s.Needs + ", or as a superuser"
}
