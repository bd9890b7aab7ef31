package replication

import (
	"context"
	_ "embed"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

//go:embed watcher.sql
var watcherSQL string

// Status is what a control loop knows about itself. It is OK while the loop can
// prove what it is there to prove.
type Status struct {
	OK      bool
	Unknown bool      // not OK because nothing was proved yet, and nothing is known to be wrong
	Since   time.Time // of the last change of OK
	Reason  string
	Fix     string
}

// ChangeKind is one thing about a table that changed in the catalogs.
type ChangeKind string

// The kinds of change. Several often come together.
const (
	TableVanished      ChangeKind = "vanished"
	TableReplaced      ChangeKind = "replaced"   // created, or dropped and created again, or another renamed into its place
	StorageChanged     ChangeKind = "storage"    // rewritten or truncated, itself or a partition
	PartitionsChanged  ChangeKind = "partitions" // attached, detached, created or dropped
	ColumnsChanged     ChangeKind = "columns"
	IdentityChanged    ChangeKind = "identity"
	PublicationChanged ChangeKind = "publication" // membership, actions, filters, or the publication itself
)

// CatalogChange is one mapped table whose definition changed since the last look.
// Its rows may have changed without a word in the log, so everything that it maps
// to must count as stale, from a moment after this report.
type CatalogChange struct {
	Schema, Table string
	Kinds         []ChangeKind
	// Findings are what CheckCatalog and CheckPublication say about the table
	// now. While one of them is fatal the table's changes cannot be trusted: its
	// families must go at each change until it is mended.
	Findings []Finding
}

func (c CatalogChange) String() string {
	kinds := make([]string, len(c.Kinds))
	for i, k := range c.Kinds {
		kinds[i] = string(k)
	}
	return qualified(c.Schema, c.Table) + ": " + strings.Join(kinds, ", ") + " changed"
}

// CatalogState is what the catalogs said about each mapped table: its name to a
// fingerprint. It may be stored and given to a later watcher, which then reports
// what changed while nobody looked.
type CatalogState map[string]string

// OID is the one that the table had, 0 when that is not known.
func (s CatalogState) OID(schema, table string) uint32 {
	oid, _, _ := strings.Cut(s[qualified(schema, table)], ".")
	n, err := strconv.ParseUint(oid, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// WatcherOptions configures a CatalogWatcher.
type WatcherOptions struct {
	Connect     func(context.Context) (*pgx.Conn, error)
	Publication string
	Tables      []mapping.TableUse
	// Interval between looks, 1 s by default: how long a silent DDL can go
	// unnoticed. StaleAfter, 10 s by default, is after how long without a look
	// the status says so.
	Interval, StaleAfter time.Duration
	// Baseline is the state to compare the first look with. Without one, what the
	// first look finds counts as known.
	Baseline CatalogState
	// OnChange is told of changes, from the watcher's goroutine. The changes
	// count as reported when it returns nil; after an error they are reported
	// again at the next look. It may block; no look is taken meanwhile.
	OnChange func(context.Context, []CatalogChange) error
	Logger   *slog.Logger
	Metrics  *ControlMetrics // may be nil
}

// CatalogWatcher notices the DDL that logical replication is silent about:
// rewrites, drops, renames, partitions that come and go, and changes of the
// publication. It compares full states, so that nothing is missed between two
// looks or while it was not connected, only noticed later.
type CatalogWatcher struct {
	o    WatcherOptions
	look chan struct{} // asks for a look now

	mu       sync.Mutex
	tables   []mapping.TableUse
	state    CatalogState
	fatal    map[string]Finding // standing fatal findings by table
	misled   map[string]bool    // tables with a finding that Misleads
	lastLook time.Time          // of the making, before the first
	looked   bool
	lastErr  error
	since    time.Time
	wasOK    bool
	wait     []chan struct{} // closed at the end of the next good look that began later
	stopped  bool            // Run has ended: nobody would close them any more
}

// NewCatalogWatcher makes a watcher; Run runs it.
func NewCatalogWatcher(o WatcherOptions) *CatalogWatcher {
	if o.Interval <= 0 {
		o.Interval = time.Second
	}
	if o.StaleAfter <= 0 {
		o.StaleAfter = 10 * time.Second
	}
	if o.Metrics == nil {
		o.Metrics = NewControlMetrics(nil)
	}
	return &CatalogWatcher{
		o: o, look: make(chan struct{}, 1),
		tables: slices.Clone(o.Tables), state: maps.Clone(o.Baseline), fatal: map[string]Finding{},
		since: time.Now(), lastLook: time.Now(), wasOK: true,
	}
}

// Watch replaces the tables that are watched. What the next look finds of the
// added ones counts as known, so wait on the returned channel, which is closed
// after that look, before checking them and mapping their changes. It is closed
// without a look when Run ends.
func (w *CatalogWatcher) Watch(tables []mapping.TableUse) <-chan struct{} {
	done := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tables = slices.Clone(tables)
	if w.stopped {
		close(done)
		return done
	}
	w.wait = append(w.wait, done)
	w.Look()
	return done
}

// Look asks for a look now instead of at the next interval. It does not wait.
func (w *CatalogWatcher) Look() {
	select {
	case w.look <- struct{}{}:
	default: // one is asked for already
	}
}

// KnownOID is the oid that the table had at the last look, 0 when that is not known.
func (w *CatalogWatcher) KnownOID(schema, table string) uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.OID(schema, table)
}

// State is the state as of the last change that was reported.
func (w *CatalogWatcher) State() CatalogState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.state)
}

// Distrusting says whether there is any table whose changes cannot be trusted.
func (w *CatalogWatcher) Distrusting() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.misled) > 0
}

// Distrusts says whether the log may keep something of this table's changes to
// itself: rows of a partition without the identity that the root has, say. Each
// change of the table must then count as one of all its rows.
func (w *CatalogWatcher) Distrusts(schema, table string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.misled[qualified(schema, table)]
}

// Status is not OK when there was no look for too long, or when what the last
// one found is not fit to be followed.
func (w *CatalogWatcher) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := Status{OK: w.looked, Unknown: !w.looked}
	if !w.looked {
		s.Reason = "the catalogs were not looked at yet"
	}
	if age := time.Since(w.lastLook); age > w.o.StaleAfter {
		s = Status{Reason: fmt.Sprintf("the catalogs could not be read for %s, so a silent DDL change may have gone unnoticed", age.Round(time.Second)),
			Fix: "see that the source answers and the role may connect"}
		if w.lastErr != nil {
			s.Reason += ": " + w.lastErr.Error()
		}
	} else if len(w.fatal) > 0 {
		key := slices.Min(slices.Collect(maps.Keys(w.fatal)))
		s = Status{Reason: w.fatal[key].String(), Fix: w.fatal[key].Fix}
	}
	if s.OK != w.wasOK {
		w.wasOK, w.since = s.OK, time.Now()
	}
	s.Since = w.since
	return s
}

// Unfollowed says whether, at the last look, the publication lacked a table that is there,
// or an action that counts.
func (w *CatalogWatcher) Unfollowed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.fatal {
		if strings.HasPrefix(f.Code, "publication_") {
			return true
		}
	}
	return false
}

// Run looks at the catalogs until ctx ends, over one connection that it makes
// again whenever it fails. It returns nil.
func (w *CatalogWatcher) Run(ctx context.Context) error {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.stopped = true
		for _, done := range w.wait {
			close(done)
		}
		w.wait = nil
	}()
	pace := func() time.Duration { return w.o.Interval }
	repeatForever(ctx, w.o.Connect, w.lookOnce, pace, w.look, func(err error, next time.Duration) {
		w.mu.Lock()
		w.lastErr = err
		w.mu.Unlock()
		w.o.Metrics.catalogErrors.Inc()
		w.o.Logger.Warn("cannot read the catalogs", "error", err, "retry_in", next)
	})
	return nil
}

// lookOnce reads the state, reports what differs, and only then takes the new
// state for known: a report that failed is made again.
func (w *CatalogWatcher) lookOnce(ctx context.Context, conn *pgx.Conn) error {
	failpoint.Hold(ctx, failpoint.CatalogLook)
	w.mu.Lock()
	tables, known, waiting := w.tables, w.state, w.wait
	select {
	case <-w.look: // asked for before this look, which answers it
	default:
	}
	w.mu.Unlock()
	began := time.Now()
	now, err := readCatalogState(ctx, conn, w.o.Publication, tables)
	if err != nil {
		return err
	}
	changed, kinds := diffStates(tables, known, now)
	w.mu.Lock()
	recheck := slices.Clone(changed)
	for _, u := range tables {
		if _, bad := w.fatal[tableKey(u)]; bad && !slices.ContainsFunc(changed, func(c mapping.TableUse) bool { return tableKey(c) == tableKey(u) }) {
			recheck = append(recheck, u) // it may have been mended by something that no digest shows
		}
	}
	w.mu.Unlock()
	fatal, misled := map[string]Finding{}, map[string]bool{}
	if len(recheck) > 0 {
		findings, err := checkTables(ctx, conn, w.o.Publication, recheck)
		if err != nil {
			return err
		}
		for _, u := range recheck {
			for _, f := range findingsOf(findings, u) {
				// The first is the one to mend first: a table that is gone is in no
				// publication either, and cannot be added to it.
				if _, have := fatal[tableKey(u)]; !have && f.Severity == SeverityFatal {
					fatal[tableKey(u)] = f
				}
				if f.Misleads {
					misled[tableKey(u)] = true
				}
			}
		}
		// Before the report: what it makes stale is invalidated while it is made, and
		// no change after that may be taken at its word.
		w.mu.Lock()
		w.misled = misled
		w.mu.Unlock()
		if err := w.report(ctx, changed, kinds, findings); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state, w.fatal, w.misled, w.lastLook, w.looked, w.lastErr = now, fatal, misled, began, true, nil
	for _, done := range waiting {
		close(done)
	}
	w.wait = w.wait[len(waiting):]
	w.o.Metrics.catalogLooks.Inc()
	return nil
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

func tableKey(u mapping.TableUse) string { return qualified(u.Schema, u.Table) }

// fingerprint parts, in this order; see watcher.sql.
var digestKinds = [...]ChangeKind{StorageChanged, PartitionsChanged, ColumnsChanged, IdentityChanged, PublicationChanged}

const digestLen = 16 // bytes kept of each SHA-256

// ReadCatalogState is what a watcher's look would find now, for a Baseline.
func ReadCatalogState(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse) (CatalogState, error) {
	return readCatalogState(ctx, conn, publication, tables)
}

// readCatalogState asks the one question of a look.
func readCatalogState(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse) (CatalogState, error) {
	const op = "look at the catalogs"
	schemas, names := tableNames(tables)
	rows, err := conn.Query(ctx, watcherSQL, schemas, names, publication)
	if err != nil {
		return nil, serverError(op, err, "")
	}
	defer rows.Close()
	state := make(CatalogState, len(tables))
	for rows.Next() {
		var n int
		var oid uint32
		var digests [len(digestKinds)]pgtype.DriverBytes // valid until the next row
		if err := rows.Scan(&n, &oid, &digests[0], &digests[1], &digests[2], &digests[3], &digests[4]); err != nil {
			return nil, serverError(op, err, "")
		}
		if oid == 0 {
			state[tableKey(tables[n-1])] = ""
			continue
		}
		fp := strconv.AppendUint(make([]byte, 0, 12+len(digests)*(1+2*digestLen)), uint64(oid), 10)
		for _, d := range digests {
			fp = append(fp, '.')
			fp = hex.AppendEncode(fp, d[:min(digestLen, len(d))])
		}
		state[tableKey(tables[n-1])] = string(fp)
	}
	return state, serverError(op, rows.Err(), "")
}

// diffStates lists the tables that are known and differ. An unknown one is new
// to the watcher, not to the source.
func diffStates(tables []mapping.TableUse, known, now CatalogState) (changed []mapping.TableUse, kinds [][]ChangeKind) {
	for _, u := range tables {
		before, wasKnown := known[tableKey(u)]
		if after := now[tableKey(u)]; wasKnown && before != after {
			changed = append(changed, u)
			kinds = append(kinds, diffFingerprints(before, after))
		}
	}
	return changed, kinds
}

func diffFingerprints(before, after string) []ChangeKind {
	if after == "" {
		return []ChangeKind{TableVanished}
	}
	b, a := strings.Split(before, "."), strings.Split(after, ".")
	if len(a) != len(b) || a[0] != b[0] {
		return []ChangeKind{TableReplaced}
	}
	var kinds []ChangeKind
	for i, kind := range digestKinds {
		if a[i+1] != b[i+1] {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}
