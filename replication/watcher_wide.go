package replication

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

const (
	// wideInterval is how often all is compared where the event trigger announces DDL: for
	// what slips past it, such as a session that has switched it off.
	wideInterval = 10 * time.Second
	// quietShare is how much of its time the source may work on that: one part of it, with an
	// interval of a minute at most. With more than a few hundred tables it is longer than wideInterval.
	quietShare = 400
	quietMost  = time.Minute
	// wideShare is how much of its time the source may be looking, at most: one part of it.
	// Where that is not enough for a budget, freshness says so.
	wideShare = 10
	// askedShare is the same for looks that DDL asks for, which does not go on for ever.
	askedShare = 4
)

// WideInterval is the same where every look has to compare all, which takes the source a
// while.
func WideInterval(budget, took time.Duration) time.Duration {
	return max(LookInterval(budget), wideShare*took)
}

// MeasureLook is how long the source works on a look that compares all: the least of several,
// since what else the machine does is in each of them.
func MeasureLook(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse) (time.Duration, error) {
	const least, most, enough = 3, 20, 500 * time.Millisecond
	var took, all time.Duration
	for i := 0; i < least || i < most && all < enough; i++ {
		look, err := readWide(ctx, conn, publication, tables)
		if err != nil {
			return 0, err
		}
		all += look.took
		if i == 0 || look.took < took {
			took = look.took
		}
	}
	return took, nil
}

// wideLook is what watcher_wide.sql has found.
type wideLook struct {
	state CatalogState
	below []uint32      // tables below mapped ones
	took  time.Duration // by the server
}

func readWide(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse) (wideLook, error) {
	const op = "look at the catalogs"
	look := wideLook{state: make(CatalogState, len(tables))}
	schemas, names := tableNames(tables)
	rows, err := conn.Query(ctx, wideSQL, schemas, names, publication)
	if err != nil {
		return look, serverError(op, err, "")
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		var oid uint32
		var below []uint32
		var seconds float64
		var digests [len(digestKinds)]pgtype.DriverBytes // valid until the next row
		if err := rows.Scan(&n, &oid, &below, &digests[0], &digests[1], &digests[2], &digests[3], &digests[4], &digests[5], &seconds); err != nil {
			return look, serverError(op, err, "")
		}
		look.took = max(look.took, time.Duration(seconds*float64(time.Second)))
		if oid == 0 {
			look.state[tableKey(tables[n-1])] = ""
			continue
		}
		fp := strconv.AppendUint(make([]byte, 0, 12+len(digests)*(1+2*digestLen)), uint64(oid), 10)
		for _, d := range digests {
			fp = append(fp, '.')
			fp = hex.AppendEncode(fp, d[:min(digestLen, len(d))])
		}
		look.state[tableKey(tables[n-1])] = string(fp)
		look.below = append(look.below, below...)
	}
	return look, serverError(op, rows.Err(), "")
}

// lookWide reads the state, reports what differs, and only then takes the new
// state for known: a report that failed is made again.
func (w *CatalogWatcher) lookWide(ctx context.Context, conn *pgx.Conn, short shortLook, asked uint64, ddl int, began time.Time) error {
	w.mu.Lock()
	tables, known, waiting := w.tables, w.state, w.wait
	quiet := w.announced && asked == w.answered
	w.mu.Unlock()
	look, err := readWide(ctx, conn, w.o.Publication, tables)
	if err != nil {
		return err
	}
	v, err := w.judge(ctx, conn, short, look.state, tables, known)
	if err != nil {
		return err
	}
	changed, kinds := diffStates(tables, known, v.state)
	// Before the report: what it makes stale is invalidated while it is made, and
	// no change after that may be taken at its word.
	w.mu.Lock()
	w.misled, w.standing, w.settling = v.misled, v.standing, v.settling
	w.mu.Unlock()
	took := look.took
	if w.o.OnLook != nil {
		more, err := w.o.OnLook(ctx, quiet && len(changed) == 0)
		if err != nil {
			return err
		}
		took += more
	}
	if err := w.report(ctx, changed, kinds, v.findings); err != nil {
		return err
	}
	w.trigger, w.lastWide = short.trigger, began
	w.recent = append(w.recent[max(0, len(w.recent)-2):], took)
	w.took = slices.Min(w.recent)
	// What the short look has found was there before. Where it was not asked for the same
	// tables, it is not known: the next one differs, and all is compared once more.
	w.belowNow = short.below
	if !slices.Equal(w.below, look.below) {
		w.below, w.belowNow = look.below, unknownBelow
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state, w.lastLook, w.looked, w.lastErr, w.answered = v.state, began, true, nil, asked
	if short.visible {
		w.ddl = w.ddl[ddl:]
	}
	if !v.unseen {
		w.wideSeen = moment{short.at, began}
	}
	w.seen = w.wideSeen // what short looks have proved since does not hold where something is unseen now
	for _, done := range waiting {
		close(done)
	}
	w.wait = w.wait[len(waiting):]
	return nil
}

// verdict is what a wide look has found of all tables.
type verdict struct {
	state    CatalogState
	findings []Finding
	standing map[string][]Finding
	settling map[string]uint64
	misled   map[string]bool
	unseen   bool // changes of some table are, or were until a moment ago
}

// judge checks the tables that have changed, and those that something stands against: it may
// have been mended by something that no digest shows.
func (w *CatalogWatcher) judge(ctx context.Context, conn *pgx.Conn, short shortLook, now CatalogState, tables []mapping.TableUse, known CatalogState) (verdict, error) {
	v := verdict{state: now, standing: map[string][]Finding{}, settling: map[string]uint64{}, misled: map[string]bool{}}
	var recheck, again []mapping.TableUse
	for _, u := range tables {
		key := tableKey(u)
		before, wasUnseen := seenState(known[key])
		_, wasKnown := known[key]
		if !w.looked || !wasKnown || wasUnseen || before != now[key] || len(w.standing[key]) > 0 {
			recheck = append(recheck, u)
		}
	}
	var err error
	if len(recheck) > 0 {
		if v.findings, err = checkTables(ctx, conn, w.o.Publication, recheck, tables); err == nil {
			err = findMoved(ctx, conn, recheck, known, v.findings)
		}
		if err != nil {
			return v, err
		}
	}
	for _, u := range recheck {
		key := tableKey(u)
		unseen := false
		for _, f := range findingsOf(v.findings, u) {
			if f.Severity() == SeverityFatal {
				v.standing[key] = append(v.standing[key], f)
			}
			if f.Code.Misleads() {
				v.misled[key] = true
			}
			unseen = unseen || f.Code.Unseen()
			if f.Code == TableMoved {
				now[key] = fmt.Sprint(known.OID(u.Schema, u.Table))
			}
		}
		before, wasUnseen := seenState(known[key])
		_, wasKnown := known[key]
		switch bound, waits := w.settling[key]; {
		case unseen:
			now[key] = unseenMark + now[key]
			v.unseen = true
		case wasKnown && slices.Contains(diffFingerprints(before, now[key]), PublicationChanged):
			again = append(again, u)
		case waits && short.xmin < bound:
			v.settling[key] = bound
		case wasUnseen && !waits:
			again = append(again, u)
		}
	}
	// A transaction that was open while its changes were not sent may still be, and become
	// visible after all that is invalidated now.
	if len(again) > 0 {
		bound, none, err := runningBelow(ctx, conn)
		if err != nil {
			return v, err
		}
		for _, u := range again {
			if !none {
				v.settling[tableKey(u)] = bound
			}
		}
	}
	for key := range v.settling {
		now[key] = unseenMark + now[key]
		v.unseen = true
	}
	return v, nil
}

// findMoved tells tables that have another name by now from those that are gone: their rows
// are read on under that name, or through a view.
func findMoved(ctx context.Context, conn *pgx.Conn, tables []mapping.TableUse, known CatalogState, findings []Finding) error {
	for i, f := range findings {
		if f.Code != TableMissing {
			continue
		}
		oid := known.OID(f.Schema, f.Table)
		if oid == 0 {
			continue
		}
		var schema, name []byte
		err := conn.QueryRow(ctx, `SELECT convert_to(s.nspname::text, getdatabaseencoding()), convert_to(c.relname::text, getdatabaseencoding()) FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace WHERE c.oid = $1`, oid).Scan(&schema, &name)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			continue
		case err != nil:
			return serverError("look for a table that was renamed", err, "")
		}
		names, err := NamesOf(conn).All([][]byte{schema, name})
		if err != nil {
			return err
		}
		moved := qualified(names[0], names[1])
		u := tables[slices.IndexFunc(tables, func(u mapping.TableUse) bool { return u.Schema == f.Schema && u.Table == f.Table })]
		findings[i] = Finding{Code: TableMoved, Schema: u.Schema, Table: u.Table,
			Problem: "it is " + moved + " now, and its changes arrive under that name",
			Fix:     "map " + moved + " instead, or give the table its name back"}
	}
	return nil
}

// runningBelow is a bound: every transaction that is open now and may have written has a
// lower id. none says that there are none.
func runningBelow(ctx context.Context, conn *pgx.Conn) (bound uint64, none bool, err error) {
	if bound, err = NextXID(ctx, conn); err != nil {
		return 0, false, err
	}
	var text string
	if err = conn.QueryRow(ctx, `SELECT pg_snapshot_xmin(pg_current_snapshot())::text`).Scan(&text); err != nil {
		return 0, false, serverError("ask which transactions are open", err, "")
	}
	low, err := strconv.ParseUint(text, 10, 64)
	return bound, low >= bound, err
}

func (w *CatalogWatcher) report(ctx context.Context, changed []mapping.TableUse, kinds [][]ChangeKind, findings []Finding) error {
	if len(changed) == 0 {
		return nil
	}
	changes := make([]CatalogChange, len(changed))
	for i, u := range changed {
		changes[i] = CatalogChange{Schema: u.Schema, Table: u.Table, Kinds: kinds[i], Findings: findingsOf(findings, u)}
		for _, k := range kinds[i] {
			w.o.Metrics.catalogChanges.WithLabelValues(string(k)).Inc()
		}
	}
	if w.o.OnChange == nil {
		return nil
	}
	if err := w.o.OnChange(ctx, changes); err != nil {
		return fmt.Errorf("report %d changed tables: %w", len(changes), err)
	}
	return nil
}

// findingsOf picks those about the table, and those about the publication.
func findingsOf(findings []Finding, u mapping.TableUse) []Finding {
	var of []Finding
	for _, f := range findings {
		if f.Table == "" || f.Schema == u.Schema && f.Table == u.Table {
			of = append(of, f)
		}
	}
	return of
}
