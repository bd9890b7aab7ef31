package replication

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Survey is what Setup would meet: everything that it looks at, and nothing changed.
type Survey struct {
	Server         Server
	ServerProblems []*ConfigError
	Publication    Publication
	HasPublication bool
	Slot           Slot
	HasSlot        bool
	// SlotProblem is why the slot cannot serve as it is: a ConfigError, or an error
	// that is ErrSlotLost.
	SlotProblem error
	// Tables are findings about tables as they are, Published about what the
	// publication sends of them.
	Tables, Published []Finding
	// Writes are findings about writes of the application's that the server refuses.
	Writes []Finding
	DDL    DDLTriggerState
}

// ReadSurvey asks all of it.
func ReadSurvey(ctx context.Context, conn *pgx.Conn, o SetupOptions) (s Survey, err error) {
	if s.Server, err = ReadServer(ctx, conn); err != nil {
		return s, err
	}
	s.ServerProblems = s.Server.Problems()
	if s.Server.Version < minServerVersion {
		return s, nil // its catalogs lack what the rest asks for
	}
	if s.Slot, s.HasSlot, err = ReadSlot(ctx, conn, o.Slot); err != nil {
		return s, err
	}
	if s.Publication, s.HasPublication, err = ReadPublication(ctx, conn, o.Publication); err != nil {
		return s, err
	}
	if s.HasSlot {
		s.SlotProblem = s.Slot.check(s.Server.Database)
		if s.SlotProblem == nil && !s.HasPublication {
			s.SlotProblem = publicationAfterSlot(o, s.Slot)
		}
	}
	if s.Tables, err = CheckCatalog(ctx, conn, o.Publication, o.Tables); err != nil {
		return s, err
	}
	if s.Published, err = CheckPublication(ctx, conn, o.Publication, o.Tables); err != nil {
		return s, err
	}
	if s.Published, err = askOthers(ctx, conn, s.Publication, o, s.Tables, s.Published); err != nil {
		return s, err
	}
	if s.Writes, err = CheckWrites(ctx, conn, o.Publication, o.Tables); err != nil {
		return s, err
	}
	s.DDL, err = readDDLTriggers(ctx, conn)
	return s, err
}

// DDLTriggerState is the event trigger as the catalog has it.
type DDLTriggerState struct {
	HasFunction, FunctionCurrent bool
	// Foreign is a role that owns the function or its schema, and is neither a superuser nor
	// who made the triggers: it can change what runs within everybody's DDL.
	Foreign string
	// Triggers are those that call the function or have the name of one that should,
	// by name.
	Triggers map[string]FoundTrigger
}

// FoundTrigger is one event trigger.
type FoundTrigger struct {
	Event  string
	Always bool // fires in every session
	Ours   bool // calls the function
	Tagged bool // for some commands only
}

// Complete says whether all DDL that it can see is announced.
func (s DDLTriggerState) Complete() bool {
	if !s.FunctionCurrent || s.Foreign != "" {
		return false
	}
	for _, t := range DDLTriggers() {
		if f, found := s.Triggers[t.Name]; !found || !f.Ours || !f.Always || f.Tagged || f.Event != t.Event {
			return false
		}
	}
	return true
}

// Absent says whether there is nothing of it.
func (s DDLTriggerState) Absent() bool { return !s.HasFunction && len(s.Triggers) == 0 }

func readDDLTriggers(ctx context.Context, conn *pgx.Conn) (DDLTriggerState, error) {
	const op = "look up the event trigger"
	s := DDLTriggerState{Triggers: map[string]FoundTrigger{}}
	var source string
	var function uint32
	var asMade bool
	err := conn.QueryRow(ctx, `
		SELECT p.oid, p.prosrc, p.prosecdef AND l.lanname = 'plpgsql' AND coalesce(p.proconfig, '{}') = ARRAY['search_path=pg_catalog, pg_temp', 'lock_timeout=200ms', 'jit=off']
		FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
		WHERE n.nspname = $1 AND p.proname = $2 AND p.pronargs = 0`, DDLSchema, DDLFunction).Scan(&function, &source, &asMade)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return s, serverError(op, err, "")
	}
	s.HasFunction = err == nil
	s.FunctionCurrent = s.HasFunction && asMade && source == DDLFunctionSource()
	// Whoever made the triggers may be no superuser on a managed service.
	err = conn.QueryRow(ctx, `
		SELECT coalesce(string_agg(DISTINCT quote_ident(r.rolname), ', '), '')
		FROM (SELECT nspowner AS owner FROM pg_namespace WHERE nspname = $1 UNION ALL SELECT proowner FROM pg_proc WHERE oid = $2::oid) o
		JOIN pg_roles r ON r.oid = o.owner
		WHERE NOT r.rolsuper AND r.rolname <> current_user
		  AND NOT EXISTS (SELECT FROM pg_event_trigger e WHERE e.evtfoid = $2::oid AND e.evtowner = r.oid)`, DDLSchema, function).Scan(&s.Foreign)
	if err != nil {
		return s, serverError(op, err, "")
	}
	var names []string
	for _, t := range DDLTriggers() {
		names = append(names, t.Name)
	}
	rows, err := conn.Query(ctx, `
		SELECT evtname::text, evtevent::text, evtenabled = 'A', evtfoid = $1::oid, evttags IS NOT NULL FROM pg_event_trigger
		WHERE evtfoid = $1::oid OR evtname = ANY($2::text[])`, function, names)
	if err != nil {
		return s, serverError(op, err, "")
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var f FoundTrigger
		if err := rows.Scan(&name, &f.Event, &f.Always, &f.Ours, &f.Tagged); err != nil {
			return s, serverError(op, err, "")
		}
		s.Triggers[name] = f
	}
	return s, serverError(op, rows.Err(), "")
}

// ProbeReplication opens a connection as the stream would, asks it which cluster it
// has reached, and closes it: the one way to know that the role, pg_hba.conf, the free
// walsenders and whatever stands in between allow it.
func ProbeReplication(ctx context.Context, url, role string) (systemID string, err error) {
	const op = "connect for replication"
	grant := "ALTER ROLE " + Identifier(role) + " REPLICATION;\n-- on a managed service grant its role instead, such as rds_replication"
	conn, _, err := dialReplication(ctx, url)
	if err != nil {
		return "", serverError(op, err, grant)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the connection is given up, whatever it says
	}()
	system, err := pglogrepl.IdentifySystem(ctx, conn)
	return system.SystemID, serverError(op, err, grant)
}

// CreateSlotSQL makes the slot.
func CreateSlotSQL(name string) string { return createSlotSQL(name) }

// CreatePublicationSQL makes the publication.
func CreatePublicationSQL(o SetupOptions) string {
	return createPublicationSQL(o.Publication, o.Tables)
}

// Run runs statements that mend something, as one transaction. What is missing when
// the role may not is told by grant.
func Run(ctx context.Context, conn *pgx.Conn, op string, sql []string, grant string) error {
	b := &pgconn.Batch{}
	for _, s := range sql {
		b.ExecParams(s, nil, nil, nil, nil)
	}
	_, err := conn.PgConn().ExecBatch(ctx, b).ReadAll()
	return serverError(op, err, grant)
}

// ServerError sorts an error of a control connection: what waiting mends
// (UnavailableError), what a person has to mend (ConfigError), and the rest.
func ServerError(op string, err error) error { return serverError(op, err, "") }
