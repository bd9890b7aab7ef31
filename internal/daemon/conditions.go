package daemon

import (
	"strings"
	"sync"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// The conditions that the admin API shows. Their names are part of the interface.
const (
	conditionStreaming = "streaming"
	conditionSource    = "source"
	conditionRedis     = "redis"
	conditionLag       = "lag"
	conditionGap       = "gap"
	conditionMappings  = "mappings"
	conditionIdentity  = "replica_identity"
	conditionCatalog   = "catalog"
	conditionHeartbeat = "heartbeat"
	conditionStandby   = "synchronous_standby"
	conditionHeld      = "held"
	conditionStuck     = "stuck"
	conditionStamps    = "stamps"
	// conditionBackground is of the work beside the stream, see chores.go.
	conditionBackground = "background"
)

// conditionKind is what is fixed of a condition.
type conditionKind struct {
	name string
	// ready: readiness depends on it. That is: streaming, both servers up, no gap, lag
	// within the strictest budget.
	ready bool
	// session: checked by each session anew, so that what one has found good dies with it.
	session bool
	fix     string
}

// conditionKinds are the conditions that somebody sets, in the order of the pages. lag,
// catalog and heartbeat are computed when somebody asks.
func conditionKinds() []conditionKind {
	return []conditionKind{
		{name: conditionStreaming, ready: true, fix: "see the reason; the daemon goes on trying"},
		{name: conditionStuck, ready: true},
		{name: conditionSource, ready: true, session: true, fix: "see that the source accepts ordinary connections from the daemon's role"},
		{name: conditionRedis, ready: true, session: true, fix: "see that Redis is reachable and takes writes; invalidations wait in the slot meanwhile"},
		{name: conditionGap, ready: true, session: true, fix: "nothing to do: readers use the cache again as soon as all that came before is visible; look for why the slot or Redis changed"},
		{name: conditionMappings, fix: "correct the file and reload again; the mappings from before are in force"},
		{name: conditionIdentity, session: true},
		{name: conditionHeld, session: true, fix: "see that Redis is reachable and takes writes; what is held back of classes with linger or max_rate stays in Redis meanwhile"},
		{name: conditionBackground, ready: true, session: true, fix: "see the reason; the daemon tries again by itself"},
		{name: conditionStamps, session: true, fix: "end them: SELECT pid, xact_start, state FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start; and look at pg_prepared_xacts"},
	}
}

func fixFor(condition string) string {
	for _, k := range conditionKinds() {
		if k.name == condition {
			return k.fix
		}
	}
	return ""
}

// verdict is what a check has found.
type verdict struct {
	by          *checks
	state       admin.State
	reason, fix string
	since       time.Time
}

// board holds the verdicts. Each is written by the one who checks that condition, in
// the name of its session: what a session found good says nothing once it has ended, and
// what it found bad is shown until the next one has looked, or streams.
type board struct {
	started time.Time
	process *checks // of what outlives sessions

	mu       sync.Mutex
	verdicts map[string]verdict
	session  *checks // nil between two sessions
	turned   time.Time
}

// checks is the right to say how conditions are, of the process or of one session. One
// that has ended has none, and a nil one never had any.
type checks struct {
	board *board

	// Guarded by the board's lock.
	streams  bool
	watcher  *replication.CatalogWatcher
	findings []replication.Finding // what widens
	chores   []chore               // that fail
}

func newBoard() *board {
	now := time.Now()
	b := &board{started: now, turned: now, verdicts: map[string]verdict{}}
	b.process = &checks{board: b}
	return b
}

// begin begins a session. Nothing of it has been checked yet.
func (b *board) begin() *checks {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.session, b.turned = &checks{board: b}, time.Now()
	return b.session
}

// current is the session that runs, nil when none does.
func (b *board) current() *checks {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.session
}

// end ends the session.
func (c *checks) end() {
	c.board.mu.Lock()
	defer c.board.mu.Unlock()
	if c.board.session == c {
		c.board.session, c.board.turned = nil, time.Now()
	}
}

// streaming notes that all that the session needs is there. watcher is the session's.
func (c *checks) streaming(watcher *replication.CatalogWatcher) {
	c.board.mu.Lock()
	defer c.board.mu.Unlock()
	c.streams, c.watcher = true, watcher
}

// ok says that a condition holds, and reports whether it was known not to.
func (c *checks) ok(name string) (again bool) {
	return c.set(name, admin.StateOK, "", "") == admin.StateFailed
}

// failed says that a condition does not hold, and reports whether that is news.
func (c *checks) failed(name, reason, fix string) (news bool) {
	return c.set(name, admin.StateFailed, reason, fix) != admin.StateFailed
}

// set returns the state from before.
func (c *checks) set(name string, state admin.State, reason, fix string) (before admin.State) {
	if c == nil {
		return state
	}
	b := c.board
	b.mu.Lock()
	defer b.mu.Unlock()
	was, checked := b.verdicts[name]
	if c != b.process && c != b.session { // it has ended
		return state
	}
	v := verdict{by: c, state: state, reason: reason, fix: fix, since: time.Now()}
	if checked && was.state == state {
		v.since = was.since
	}
	b.verdicts[name] = v
	if !checked {
		return admin.StateUnknown
	}
	return was.state
}

// widening replaces what is known to make invalidations wider than they need to be: of
// one table, or with an empty name of all of them.
func (c *checks) widening(schema, table string, found []replication.Finding) {
	if c == nil {
		return
	}
	c.board.mu.Lock()
	var list []replication.Finding
	if table != "" {
		for _, f := range c.findings {
			if f.Table != "" && (f.Schema != schema || f.Table != table) {
				list = append(list, f)
			}
		}
	}
	for _, f := range found {
		if f.Severity() != replication.SeverityFatal { // these keep a session from starting, or are the watcher's
			list = append(list, f)
		}
	}
	c.findings = list
	c.board.mu.Unlock()
	if len(list) == 0 {
		c.ok(conditionIdentity)
		return
	}
	texts, fixes := make([]string, len(list)), make([]string, len(list))
	for i, f := range list {
		texts[i], fixes[i] = f.String(), f.Fix
	}
	c.failed(conditionIdentity, strings.Join(texts, "; "), strings.Join(fixes, " "))
}

// conditions are the verdicts as they are to be shown now.
func (b *board) conditions() []admin.Condition {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []admin.Condition
	for _, k := range conditionKinds() {
		v, checked := b.verdicts[k.name]
		c := admin.NewCondition(k.name, v.state, v.reason, v.fix)
		c.Since = v.since
		switch {
		case !checked:
			c = admin.NewCondition(k.name, admin.StateUnknown, "not checked yet", "")
			c.Since = b.started
		case !k.session || v.by == b.session:
		case v.state == admin.StateFailed && (b.session == nil || !b.session.streams): // the last that is known
		default:
			c = admin.NewCondition(k.name, admin.StateUnknown, "not checked since the last attachment ended", "")
			c.Since = b.turned
		}
		c.Ready = k.ready
		out = append(out, c)
	}
	return out
}

// watching is the watcher of the session that streams, nil when none does.
func (b *board) watching() *replication.CatalogWatcher {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session == nil {
		return nil
	}
	return b.session.watcher
}

// since is when the session that runs, or the pause between two, began.
func (b *board) since() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.turned
}
