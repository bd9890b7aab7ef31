package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

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
	PartitionsChanged  ChangeKind = "partitions" // attached, detached, created or dropped; or the table has become one
	ColumnsChanged     ChangeKind = "columns"
	IdentityChanged    ChangeKind = "identity"
	PublicationChanged ChangeKind = "publication" // membership, actions, filters, or the publication itself
	TableUnseen        ChangeKind = "unseen"      // its changes are not followed any more
	TableFollowed      ChangeKind = "followed"    // they are again, and what came meanwhile was missed
)

func changeKinds() []ChangeKind {
	return []ChangeKind{TableVanished, TableReplaced, StorageChanged, PartitionsChanged, ColumnsChanged, IdentityChanged, PublicationChanged, TableUnseen, TableFollowed}
}

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

const (
	// wideInterval is how often all is compared where the event trigger announces DDL: for
	// what slips past it, such as a session that has switched it off.
	wideInterval = 10 * time.Second
	// wideShare is how much of its time the source may be looking, at most: one part of it.
	// Where that is not enough for a budget, freshness says so.
	wideShare = 10
	// askedShare is the same for looks that DDL asks for, which does not go on for ever.
	askedShare = 4
)

// LookInterval is how often the catalogs are looked at: often enough for the strictest budget,
// of which the heartbeat takes a third.
func LookInterval(budget time.Duration) time.Duration {
	const least, most, share = 20 * time.Millisecond, time.Second, 5
	if budget == 0 {
		return most
	}
	return min(max(budget/share, least), most)
}

// WideInterval is the same where every look has to compare all, which takes the source a
// while.
func WideInterval(budget, took time.Duration) time.Duration {
	return max(LookInterval(budget), wideShare*took)
}

// MeasureLook is how long the source works on a look that compares all.
func MeasureLook(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse) (time.Duration, error) {
	var took time.Duration
	for range 3 { // the first ones fill caches of the session
		look, err := readWide(ctx, conn, publication, tables)
		if err != nil {
			return 0, err
		}
		took = look.took
	}
	return took, nil
}

// WatcherOptions configures a CatalogWatcher.
type WatcherOptions struct {
	Connect     func(context.Context) (*pgx.Conn, error)
	Publication string
	Tables      []mapping.TableUse
	// Interval between looks, 1 s by default: how long what no event trigger announces can
	// go unnoticed. StaleAfter, 10 s by default, is after how long without a look
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
//
// There are two looks. The short one costs little: it sees what fires no event trigger, and
// whether the trigger is as it was. Where the trigger is complete, all else is announced in
// the log, and short looks prove that nothing was missed. Whenever one finds a difference,
// DDL is announced, something stands against a table, or the trigger does not announce all, it
// is followed by a wide look, which compares everything. Where nothing calls for it there is
// one every ten seconds.
type CatalogWatcher struct {
	o    WatcherOptions
	look chan struct{} // asks for a look now

	mu       sync.Mutex
	interval time.Duration
	tables   []mapping.TableUse
	state    CatalogState
	standing map[string][]Finding // that are fatal, by table
	settling map[string]uint64    // followed again, once all transactions below are over
	misled   map[string]bool      // tables with a finding that misleads
	lastLook time.Time            // by our clock; of the making, before the first
	looked   bool                 // there was a wide look, which every table is checked at
	lastErr  error
	since    time.Time
	wasOK    bool
	wait     []chan struct{} // closed at the end of the next good look that began later
	stopped  bool            // Run has ended: nobody would close them any more

	seen, wideSeen  moment  // what the last look, and the last wide one, prove
	asked, answered uint64  // wide looks
	ddl             []int64 // transactions that announced some, which a wide look has to see
	announced       bool    // the event trigger announces all DDL that it can see

	// Of the goroutine that looks.
	trigger  string
	oids     []uint32
	below    belowTables
	lastWide time.Time
	took     time.Duration
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
		o: o, look: make(chan struct{}, 1), interval: o.Interval, asked: 1,
		tables: slices.Clone(o.Tables), state: maps.Clone(o.Baseline), settling: map[string]uint64{},
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
	w.ask()
	return done
}

// Look asks for a wide look now instead of at the next interval. It does not wait. Until
// then, no short look proves anything.
func (w *CatalogWatcher) Look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ask()
}

// Announce is Look for DDL of a transaction that came through the slot. It may not be
// visible yet, and a look that does not see it answers nothing.
func (w *CatalogWatcher) Announce(xid uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ddl = append(w.ddl, int64(xid))
	w.ask()
}

func (w *CatalogWatcher) ask() {
	w.asked++
	select {
	case w.look <- struct{}{}:
	default: // one is asked for already
	}
}

// SetInterval changes the interval between looks.
func (w *CatalogWatcher) SetInterval(d time.Duration) {
	w.mu.Lock()
	w.interval = d
	w.mu.Unlock()
	w.Look()
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
	} else if len(w.standing) > 0 {
		// The first is the one to mend first: a table that is gone is in no
		// publication either, and cannot be added to it.
		first := w.standing[slices.Min(slices.Collect(maps.Keys(w.standing)))][0]
		s = Status{Reason: first.String(), Fix: first.Fix}
	}
	if s.OK != w.wasOK {
		w.wasOK, w.since = s.OK, time.Now()
	}
	s.Since = w.since
	return s
}

// Proved is the moment, by the source's clock, up to which everything is reported that was
// visible and leaves no trace in the log: zero before the first look, and no later than the
// last one at which changes of every table were followed. why says what it waits for.
func (w *CatalogWatcher) Proved() (seen time.Time, why string) {
	m, why := w.provedAt()
	return m.source, why
}

// Looked is Proved by our clock: whatever was visible before it is reported.
func (w *CatalogWatcher) Looked() time.Time {
	m, _ := w.provedAt()
	return m.ours
}

// moment is the start of a look, by two clocks that do not compare.
type moment struct{ source, ours time.Time }

func (w *CatalogWatcher) provedAt() (seen moment, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, u := range w.tables {
		for _, f := range w.standing[tableKey(u)] {
			if f.Code.Unseen() {
				return w.seen, "changes are not seen: " + f.String()
			}
		}
		if _, ok := w.settling[tableKey(u)]; ok {
			return w.seen, "changes of table " + tableKey(u) + " are seen again; transactions from before are still open"
		}
	}
	switch {
	case w.lastErr != nil:
		why = w.lastErr.Error()
	case w.announced:
		why = "the catalogs were looked at last then"
	default:
		why = "the catalogs were compared last then, for which all of them have to be read without the event trigger"
	}
	if w.asked > w.answered {
		return w.wideSeen, why
	}
	return w.seen, why
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
	repeatForever(ctx, w.o.Connect, w.lookOnce, w.pace, w.look, func(err error, next time.Duration) {
		w.mu.Lock()
		w.lastErr = err
		w.mu.Unlock()
		w.o.Metrics.catalogErrors.Inc()
		w.o.Logger.Warn("cannot read the catalogs", "error", err, "retry_in", next)
	})
	return nil
}

// pace is how long the next look may be away. One that has to be wide must not cost the
// source too much.
func (w *CatalogWatcher) pace() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.announced && !w.unsettled() {
		return w.interval
	}
	return max(w.interval, wideShare*w.took)
}

// unsettled says whether something stands against a table that a look may find mended.
func (w *CatalogWatcher) unsettled() bool {
	if len(w.settling) > 0 || len(w.misled) > 0 {
		return true
	}
	for _, list := range w.standing {
		if slices.ContainsFunc(list, func(f Finding) bool { return f.Code.Unseen() }) {
			return true
		}
	}
	return false
}

// lookOnce takes a short look, and a wide one where that is called for.
func (w *CatalogWatcher) lookOnce(ctx context.Context, conn *pgx.Conn) error {
	failpoint.Hold(ctx, failpoint.CatalogLook)
	w.mu.Lock()
	asked, ddl := w.asked, w.ddl
	select {
	case <-w.look: // asked for before this look, which answers it
	default:
	}
	w.mu.Unlock()
	began := time.Now()
	short, err := readShort(ctx, conn, w.oids, ddl)
	if err != nil {
		return err
	}
	changed := short.trigger != w.trigger
	if changed {
		if err := w.readTrigger(ctx, conn); err != nil {
			return err
		}
	}
	w.mu.Lock()
	pending := asked > w.answered
	wide := changed || !w.announced || w.unsettled() || !maps.Equal(short.below, w.below) || began.Sub(w.lastWide) >= wideInterval
	if !short.visible {
		asked = w.answered
	} else if pending && !wide {
		wide = began.Sub(w.lastWide) >= askedShare*w.took
	}
	wide = wide || len(w.wait) > 0
	if !wide {
		if !pending {
			w.seen = moment{short.at, began}
		}
		w.lastLook, w.lastErr = began, nil
	}
	w.mu.Unlock()
	w.o.Metrics.catalogLooks.WithLabelValues(lookKind(wide)).Inc()
	if !wide {
		return nil
	}
	return w.lookWide(ctx, conn, short, asked, len(ddl), began)
}

func lookKind(wide bool) string {
	if wide {
		return "wide"
	}
	return "short"
}

// readTrigger learns what the event trigger announces after it has changed. Should it change
// meanwhile, the next look finds it changed again.
func (w *CatalogWatcher) readTrigger(ctx context.Context, conn *pgx.Conn) error {
	state, err := readDDLTriggers(ctx, conn)
	if err != nil {
		return err
	}
	w.mu.Lock()
	before := w.announced
	w.announced = state.Complete()
	now := w.announced
	w.mu.Unlock()
	switch first := !w.looked; {
	case before && !now:
		w.o.Logger.Warn("the event trigger does not announce all DDL any more: the catalogs are compared as often as the strictest budget needs", "fix", "cdc-invalidator apply")
	case now && !before && !first:
		w.o.Logger.Info("the event trigger announces all DDL again")
	}
	return nil
}

// lookWide reads the state, reports what differs, and only then takes the new
// state for known: a report that failed is made again.
func (w *CatalogWatcher) lookWide(ctx context.Context, conn *pgx.Conn, short shortLook, asked uint64, ddl int, began time.Time) error {
	w.mu.Lock()
	tables, known, waiting := w.tables, w.state, w.wait
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
	if err := w.report(ctx, changed, kinds, v.findings); err != nil {
		return err
	}
	w.trigger, w.oids, w.below, w.lastWide, w.took = short.trigger, look.oids, look.below, began, look.took
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
		var schema, name string
		err := conn.QueryRow(ctx, `SELECT s.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace WHERE c.oid = $1`, oid).Scan(&schema, &name)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			continue
		case err != nil:
			return serverError("look for a table that was renamed", err, "")
		}
		u := tables[slices.IndexFunc(tables, func(u mapping.TableUse) bool { return u.Schema == f.Schema && u.Table == f.Table })]
		findings[i] = Finding{Code: TableMoved, Schema: u.Schema, Table: u.Table,
			Problem: "it is " + qualified(schema, name) + " now, and its changes arrive under that name",
			Fix:     "map " + qualified(schema, name) + " instead, or give the table its name back"}
	}
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
