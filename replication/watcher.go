package replication

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
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
	// OnLook is part of each look that compares everything, which counts when it returns nil. quiet says that
	// nothing has changed, or is to be looked for; took is how long the source has worked on it. May be nil.
	OnLook func(ctx context.Context, quiet bool) (took time.Duration, err error)
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
// one every ten seconds, or less often where it is long.
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
	below    []uint32 // tables below mapped ones
	belowNow string   // a digest of them
	lastWide time.Time
	recent   []time.Duration // what the last wide looks took
	took     time.Duration   // the least of them: what else the machine did is in each
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
