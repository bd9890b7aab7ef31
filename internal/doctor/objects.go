package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/keytype"
	"github.com/cdc-invalidator/cdc-invalidator/internal/provision"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// publications says what of the mapped tables the publication sends.
func (x *examination) publications(st *provision.State) {
	s, src := &st.Survey, x.File.Source
	if !s.HasPublication {
		sql := replication.CreatePublicationSQL(x.setup())
		c := Check{Code: "publication_missing", Severity: Fatal, Message: "publication " + src.Publication.Name + " does not exist", FixKind: SQL,
			Fix: sql + "\n-- or set source.publication.create_if_not_exists: true"}
		if src.Publication.CreateIfNotExists {
			c.Fix = sql + "\n-- as the owner of the tables (cdc-invalidator apply does it)"
			c.Message += ", and role " + st.Rights.Role + " may not create it: that takes CREATE on the database and the ownership of each table"
			if st.Rights.CreateInDatabase && len(st.Rights.NotOwned) == 0 {
				c = Check{Code: "publication_missing", Severity: Notice, Message: "publication " + src.Publication.Name + " does not exist; run creates it"}
			}
		}
		x.publication.add(c)
		return
	}
	clean := true
	for _, f := range s.Published {
		c := fromFinding(f)
		clean = clean && !c.Severity.Finding()
		x.publication.add(c)
	}
	if clean {
		x.publication.ok("publication", "publication %s sends all that is needed of the %s", src.Publication.Name, count(len(st.Desired.Tables), "mapped table", "mapped tables"))
	}
}

// mappedTables says what the tables themselves lack.
func (x *examination) mappedTables(st *provision.State) {
	for _, u := range st.Desired.Tables {
		clean := true
		for _, f := range append(slices.Clone(st.Survey.Tables), st.Survey.Writes...) {
			if f.Schema == u.Schema && f.Table == u.Table {
				x.tables.add(fromFinding(f))
				clean = false
			}
		}
		if clean {
			x.tables.add(Check{Code: "table", Severity: OK, Subject: "table " + replication.Qualified(u.Schema, u.Table),
				Message: "has its columns, and logs the old values that its mappings need"})
		}
	}
}

// keyTypes says of which columns readers are refused values, or all: those under which one row
// has several keys.
func (x *examination) keyTypes(ctx context.Context, url string) error {
	conn, err := replication.ConnectQuery(ctx, url, "doctor") // for_each queries mean what they mean to the daemon
	if err != nil {
		return err
	}
	defer replication.CloseControl(ctx, conn)
	types, err := keytype.Read(ctx, conn, x.Plan)
	if err != nil {
		return replication.ServerError("read the types of the columns that keys are made of", err)
	}
	lower, err := types.LowerFindings(ctx, conn, x.Plan)
	if err != nil {
		return replication.ServerError("compare {|lower} with the database's lower()", err)
	}
	for _, f := range append(types.Findings(x.Plan), lower...) {
		if f.Code == keytype.CodeUnknown {
			continue // said of the table, or of the query
		}
		c := Check{Code: f.Code, Severity: Warning, Subject: f.Where, Message: f.Problem, Fix: f.Fix, FixKind: File}
		if f.Notice {
			c.Severity = Notice
		}
		x.tables.add(c)
	}
	return nil
}

func fromFinding(f replication.Finding) Check {
	c := Check{Code: string(f.Code), Severity: Severity(f.Severity()), Subject: provision.Subject(f), Message: f.Problem, Fix: f.Fix, FixKind: fixKind(f.Fix)}
	if f.Severity() == replication.SeverityNotice {
		c.Severity = Notice
	}
	return c
}

func (x *examination) setup() replication.SetupOptions {
	src := x.File.Source
	return replication.SetupOptions{Slot: src.Slot.Name, Publication: src.Publication.Name,
		CreateSlot: src.Slot.CreateIfNotExists, CreatePublication: src.Publication.CreateIfNotExists, Tables: x.Plan.Tables()}
}

// muchWAL is how much an unread slot may keep before it deserves a word.
const muchWAL = 1 << 30

func (x *examination) replicationSlot(ctx context.Context, conn *pgx.Conn, st *provision.State) error {
	s, src := &st.Survey, x.File.Source
	const op = "look at the slot's limits"
	var keep int64 // megabytes
	var idle, failover string
	var free int
	err := conn.QueryRow(ctx, `
		SELECT (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
		       coalesce((SELECT CASE WHEN setting <> '0' THEN current_setting(name) END FROM pg_settings WHERE name = 'idle_replication_slot_timeout'), ''),
		       coalesce((SELECT to_jsonb(s) ->> 'failover' FROM pg_replication_slots s WHERE slot_name = $1), ''),
		       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)::int`, src.Slot.Name).
		Scan(&keep, &idle, &failover, &free)
	if err != nil {
		return replication.ServerError(op, err)
	}
	if err := x.unfinishedTaps(ctx, conn); err != nil {
		return err
	}
	if !s.HasSlot {
		x.missingSlot(st, free)
		x.keepSize(keep)
		return nil
	}
	slot := s.Slot
	switch {
	case errors.Is(s.SlotProblem, replication.ErrSlotLost):
		x.slot.add(Check{Code: "slot_lost", Severity: Warning, Message: fmt.Sprintf("slot %s has lost its WAL: run replaces it, and everything cached counts as changed since %s", slot.Name, slot.ConfirmedLSN),
			FixKind: SQL, Fix: "ALTER SYSTEM SET max_slot_wal_keep_size = <more>; SELECT pg_reload_conf();  -- so that it does not happen again"})
		return nil
	case errors.Is(s.SlotProblem, replication.ErrSlotUnfinished):
		x.slot.add(Check{Code: "slot_unfinished", Severity: Warning, FixKind: SQL, Fix: slot.CancelCreationSQL() + "  -- gives it up; or wait until it is done",
			Message: fmt.Sprintf("pid %d is still creating slot %s, and waits for transactions that are open. Until then it keeps WAL, and nobody reads it", slot.ActivePID, slot.Name)})
		return nil
	case s.SlotProblem != nil:
		x.problem(x.slot, "slot", Fatal, s.SlotProblem)
		return nil
	}
	state := "nobody reads it"
	if slot.Active {
		state = fmt.Sprintf("read by pid %d", slot.ActivePID)
	}
	x.slot.ok("slot", "slot %s: pgoutput, two_phase is off, %s, confirmed %s", slot.Name, state, slot.ConfirmedLSN)
	retained := Check{Code: "slot_retained", Severity: OK, Message: "it keeps " + size(slot.RetainedBytes) + " of WAL"}
	used := slot.SafeWALSize >= 0 && slot.SafeWALSize < slot.RetainedBytes
	if slot.WALStatus == "unreserved" || used || slot.RetainedBytes > muchWAL && !slot.Active {
		retained.Severity, retained.FixKind = Warning, Person
		retained.Fix = "start the daemon, or see why it is behind; raise max_slot_wal_keep_size meanwhile if the disk allows it"
		if slot.SafeWALSize >= 0 {
			retained.Message += fmt.Sprintf(", and is lost after %s more", size(slot.SafeWALSize))
		}
		if !slot.Active {
			retained.Fix = "start the daemon; if it is gone for good: SELECT pg_drop_replication_slot('" + slot.Name + "');"
		}
	}
	x.slot.add(retained)
	x.keepSize(keep)
	if idle != "" {
		x.slot.add(Check{Code: "idle_replication_slot_timeout", Severity: Notice, Message: "the server drops the slot's WAL when no daemon has read it for " + idle + ": that is a gap"})
	}
	if failover == "false" {
		x.slot.add(Check{Code: "slot_failover", Severity: Notice,
			Message: "it is no failover slot, so it is not there after a failover of Postgres and is made anew. A new timeline is a gap either way"})
	}
	return nil
}

// unfinishedTaps names slots of the command tap that are still being created: they wait for
// open transactions, keep WAL, and may have nobody any more who waits for them.
func (x *examination) unfinishedTaps(ctx context.Context, conn *pgx.Conn) error {
	slots, err := replication.UnfinishedTaps(ctx, conn)
	for _, slot := range slots {
		x.slot.add(Check{Code: "slot_unfinished", Severity: Warning, FixKind: SQL, Fix: slot.CancelCreationSQL() + "  -- gives it up; or wait until it is done",
			Message: fmt.Sprintf("pid %d is still creating slot %s for a tap, and waits for transactions that are open. Until then it keeps WAL", slot.ActivePID, slot.Name)})
	}
	return err
}

func (x *examination) missingSlot(st *provision.State, free int) {
	src := x.File.Source
	c := Check{Code: "slot_missing", Severity: Fatal, Message: "slot " + src.Slot.Name + " does not exist", FixKind: SQL,
		Fix: replication.CreateSlotSQL(src.Slot.Name) + "\n-- or set source.slot.create_if_not_exists: true"}
	switch {
	case free <= 0:
		c.Code, c.Message = "slots_taken", c.Message+", and all replication slots are taken"
		c.Fix = "ALTER SYSTEM SET max_replication_slots = <more>;  -- and restart the server; or drop one that nothing needs"
	case !src.Slot.CreateIfNotExists:
	case st.Survey.HasPublication || src.Publication.CreateIfNotExists:
		c = Check{Code: "slot_missing", Severity: Notice, Message: c.Message + "; run creates it, and changes are followed from then on"}
	default:
		c = Check{Code: "slot_missing", Severity: Notice, Message: c.Message + "; run creates it once the publication is there"}
	}
	x.slot.add(c)
}

func (x *examination) keepSize(megabytes int64) {
	if megabytes < 0 {
		x.slot.add(Check{Code: "max_slot_wal_keep_size", Severity: Notice, FixKind: SQL,
			Message: "max_slot_wal_keep_size is -1: while no daemon reads, the log is kept until the disk is full. With a limit it is a gap instead",
			Fix:     "ALTER SYSTEM SET max_slot_wal_keep_size = '<less than the disk has free>'; SELECT pg_reload_conf();"})
		return
	}
	x.slot.ok("max_slot_wal_keep_size", "max_slot_wal_keep_size is %s", size(megabytes<<20))
}

// size is a number of bytes for people.
func size(n int64) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if f < 1024 {
			break
		}
		f, unit = f/1024, u
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") + " " + unit
}
