// Package tap shows what the mappings make of a database's changes while they
// happen, and applies nothing. It reads the log through a temporary slot of its own,
// so a daemon that runs beside it, and its Redis, notice nothing.
//
// Two things are left out on purpose. What a row holds: values in keys are masked
// unless asked for. And, when there is more than the rate limit or the reader takes,
// whole lines: they are counted and told of, since a tap that held up the stream would
// make the server keep its log.
package tap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// Options configures Run.
type Options struct {
	URL, Publication string // of the source
	Plan             *mapping.Plan
	Filter           Filter
	ShowValues       bool // keys as they are, instead of masked
	Resolve          bool // run for_each queries
	JSON             bool // a JSON object a line
	MaxRate          int  // lines a second; 0 for no limit
	Count            int  // ends after so many lines; 0 for no end
	Duration         time.Duration
	Out              io.Writer // the lines
	Info             io.Writer // what there is to say about them
	Logger           *slog.Logger
}

// Filter says which invalidations are shown; an empty part shows all.
type Filter struct {
	Tables   []string // schema.table
	Families []string
	Tenant   *string // as it is in the database
}

// errEnough ends the loop when Count is reached.
var errEnough = errors.New("enough was shown")

// slowStart is how long making the slot may take before it is said what for.
const slowStart = 2 * time.Second

type tap struct {
	o       Options
	stream  *replication.Stream
	standby *replication.StandbyWatch
	dec     *decoder.Decoder
	tables  map[*decoder.Relation]*mapping.Table
	known   map[uint32]*decoder.Relation
	oids    map[string]uint32 // of the mapped tables, by schema.table, as last heard of
	out     mapping.Output
	tx      decoder.Begin
	view    view
	printer *printer
	limiter *rate.Limiter
	resolve *resolver
	sum     Summary
}

// Run shows invalidations until ctx ends, or as many or as long as the options say;
// all of these are a good end.
func Run(ctx context.Context, o Options) (Summary, error) {
	t := &tap{o: o, tables: map[*decoder.Relation]*mapping.Table{}, known: map[uint32]*decoder.Relation{}, oids: map[string]uint32{},
		limiter: rate.NewLimiter(rate.Inf, 1), sum: newSummary(), view: newView(o)}
	if o.MaxRate > 0 {
		t.limiter = rate.NewLimiter(rate.Limit(o.MaxRate), o.MaxRate)
	}
	t.standby = replication.NewStandbyWatch(replication.StandbyWatchOptions{Logger: o.Logger,
		Connect: func(ctx context.Context) (*pgx.Conn, error) { return replication.ConnectControl(ctx, o.URL, "tap") }})
	err := t.open(ctx)
	if t.stream != nil {
		defer func() { _ = t.stream.Close() }() // the slot goes with it
	}
	if t.resolve != nil {
		defer t.resolve.close(ctx)
	}
	if err == nil {
		err = t.run(ctx)
	}
	if ctx.Err() != nil {
		err = nil // asked to end: whatever failed because of it is no error
	}
	return t.sum, err
}

// open makes the slot, and says for what that waits when it does.
func (t *tap) open(ctx context.Context) error {
	control, err := replication.ConnectControl(ctx, t.o.URL, "tap")
	if err != nil {
		return err
	}
	defer replication.CloseControl(ctx, control)
	server, findings, err := replication.CheckTap(ctx, control, replication.SetupOptions{Publication: t.o.Publication, Tables: t.o.Plan.Tables()})
	if err != nil {
		return err
	}
	for _, f := range findings {
		if f.Severity() == replication.SeverityFatal {
			t.say("note: %s (the daemon would not start; fix: %s)", f, f.Fix)
		} else {
			t.say("note: %s (fix: %s)", f, f.Fix)
		}
	}
	catalog, err := replication.ReadCatalogState(ctx, control, t.o.Publication, t.o.Plan.Tables())
	if err != nil {
		return err
	}
	for _, u := range t.o.Plan.Tables() {
		t.oids[tableName(u)] = catalog.OID(u.Schema, u.Table)
	}
	if t.o.Resolve {
		epoch, err := replication.ReadEpoch(ctx, control)
		if err != nil {
			return err
		}
		if t.resolve, err = newResolver(ctx, t.o.URL, epoch); err != nil {
			return err
		}
	}
	type opened struct {
		stream *replication.Stream
		err    error
	}
	done := make(chan opened, 1)
	go func() {
		s, err := replication.OpenTemporaryStream(ctx, replication.StreamOptions{
			URL: t.o.URL, Slot: replication.TemporarySlotName("tap"), Publication: t.o.Publication,
			StatusInterval: replication.StatusInterval(server.WALSenderTimeout), Silence: replication.Silence(server.WALSenderTimeout), Logger: t.o.Logger, Withhold: t.standby.Withhold,
		})
		done <- opened{s, err}
	}()
	timer := time.NewTimer(slowStart)
	defer timer.Stop()
	for {
		select {
		case r := <-done:
			t.stream = r.stream
			if r.err == nil {
				t.dec = decoder.NewFor(r.stream.Encoding())
				t.say("following publication %s of database %s on a temporary slot; nothing is applied; Ctrl-C ends it", t.o.Publication, server.Database)
			}
			return r.err
		case <-timer.C:
			if names := replication.WaitingFor(ctx, control); names != "" {
				t.say("waiting for transactions that were open before: %s", names)
			}
			timer.Reset(10 * slowStart)
		}
	}
}

func (t *tap) say(format string, args ...any) { fmt.Fprintf(t.o.Info, format+"\n", args...) }

func (t *tap) run(ctx context.Context) error {
	began := time.Now()
	if t.o.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.o.Duration)
		defer cancel()
	}
	watching, stopWatching := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		_ = t.standby.Run(watching) // nil, always
	}()
	t.printer = newPrinter(t.o.Out, t.view.leftOut)
	err := t.follow(ctx)
	stopWatching()
	<-watched
	if printErr := t.printer.close(); printErr != nil {
		err = fmt.Errorf("write the lines: %w", printErr)
	} else if ctx.Err() != nil || errors.Is(err, errEnough) {
		err = nil
	}
	t.sum.LeftOut = t.printer.leftOutTotal()
	t.sum.Seconds = time.Since(began).Seconds()
	return err
}

func (t *tap) follow(ctx context.Context) error {
	for {
		if err := t.stream.Fill(ctx); err != nil {
			return replication.StreamError(err)
		}
		for {
			data, ok, err := t.stream.Next()
			if err != nil {
				return replication.StreamError(err)
			}
			if !ok {
				break
			}
			m, err := t.dec.Decode(data)
			if err == nil {
				err = t.handle(ctx, m)
			}
			if err != nil {
				return err
			}
		}
		// Nothing is kept for us: what was missed is not shown later.
		t.stream.Confirm(t.stream.ReceivedLSN())
	}
}

func (t *tap) handle(ctx context.Context, m *decoder.Message) error {
	t.out.Reset()
	switch m.Kind {
	case decoder.KindBegin:
		t.tx = m.Begin
		t.stream.Committed(m.Begin.CommitTime)
		t.sum.Transactions++
	case decoder.KindCommit:
		t.tx = decoder.Begin{}
	case decoder.KindRelation:
		return t.bind(ctx, m.Relation)
	case decoder.KindChange:
		t.sum.Rows++
		table := t.tables[m.Change.Relation]
		if table == nil {
			return nil
		}
		table.Map(&m.Change, &t.out)
		return t.show(ctx, t.tx, actionName(m.Change.Action), m.Change.Relation.String())
	case decoder.KindTruncate:
		for _, rel := range m.Truncate.Relations {
			table := t.tables[rel]
			if table == nil {
				continue
			}
			t.out.Reset()
			table.Truncate(&t.out)
			if err := t.show(ctx, t.tx, "truncate", rel.String()); err != nil {
				return err
			}
		}
	case decoder.KindLogical:
		return t.message(ctx, &m.Logical)
	}
	return nil
}

func actionName(a decoder.Action) string {
	switch a {
	case decoder.Insert:
		return "insert"
	case decoder.Update:
		return "update"
	}
	return "delete"
}

// bind prepares a table's changes. As in the daemon, another definition than before
// invalidates all that the table maps to.
func (t *tap) bind(ctx context.Context, rel *decoder.Relation) error {
	before := t.known[rel.ID]
	if before == rel || !t.tableWanted(rel.String()) {
		return nil
	}
	t.known[rel.ID] = rel
	delete(t.tables, before)
	table := t.o.Plan.Bind(rel)
	if table == nil {
		return nil
	}
	t.tables[rel] = table
	t.oids[rel.String()] = rel.ID
	if before == nil {
		return nil
	}
	table.Invalidate(&t.out)
	return t.show(ctx, t.tx, "ddl", rel.String())
}

func (t *tap) message(ctx context.Context, m *decoder.Logical) error {
	if string(m.Prefix) == replication.DDLPrefix {
		return t.ddl(ctx, m)
	}
	if len(t.o.Filter.Tables) > 0 || string(m.Prefix) == replication.HeartbeatPrefix || string(m.Prefix) == replication.NudgePrefix {
		return nil
	}
	t.o.Plan.Logical(m, &t.out)
	tx := t.tx
	if !m.Transactional { // outside of its transaction's end, of which it knows nothing
		tx = decoder.Begin{CommitLSN: m.LSN, CommitTime: time.Now()}
	}
	return t.show(ctx, tx, "message", string(m.Prefix))
}

// ddl shows what the daemon makes of a message of the event trigger.
func (t *tap) ddl(ctx context.Context, m *decoder.Logical) error {
	if !m.Transactional {
		return nil // never sent by the trigger
	}
	ddl, parseErr := replication.ParseDDL(m.Content)
	for _, u := range t.o.Plan.Tables() {
		name := tableName(u)
		// What cannot be read may have touched any table.
		touched := parseErr != nil || ddl.Touches(u, t.o.Publication, func(oid uint32) bool { return oid == t.oids[name] })
		for _, rel := range ddl.Relations {
			if rel.Schema == u.Schema && rel.Name == u.Table && rel.OID != 0 {
				t.oids[name] = rel.OID
			}
		}
		if !touched || !t.tableWanted(name) {
			continue
		}
		t.out.Reset()
		t.o.Plan.InvalidateTable(u.Schema, u.Table, &t.out)
		if err := t.show(ctx, t.tx, "ddl", name); err != nil {
			return err
		}
	}
	return nil
}

func tableName(u mapping.TableUse) string { return u.Schema + "." + u.Table }

func (t *tap) tableWanted(name string) bool {
	return len(t.o.Filter.Tables) == 0 || slices.Contains(t.o.Filter.Tables, name)
}

// show prints what t.out holds.
func (t *tap) show(ctx context.Context, tx decoder.Begin, action, table string) error {
	for reason, n := range t.out.Widened {
		if n > 0 {
			t.sum.Widened[mapping.Reason(reason).String()] += int64(n)
		}
	}
	e := event{Time: tx.CommitTime, Position: tx.CommitLSN, XID: tx.XID, Action: action, Table: table, widened: widenings(&t.out)}
	for i := range t.out.Invalidations {
		inv := &t.out.Invalidations[i]
		if !t.wanted(inv) {
			continue
		}
		shown, err := t.line(ctx, e, inv)
		if err != nil {
			return err
		}
		if shown && inv.Lookup != nil && t.resolve != nil {
			if err := t.showAnswer(ctx, e, inv.Lookup); err != nil {
				return err
			}
		}
	}
	return nil
}

// showAnswer runs a for_each query and prints what it brings. The server is answered
// meanwhile: a query may take longer than it lets a client be silent.
func (t *tap) showAnswer(ctx context.Context, e event, call *mapping.LookupCall) error {
	var out mapping.Output
	done := make(chan struct{})
	var failed error
	go func() {
		defer close(done)
		failed = t.resolve.answer(ctx, e.XID, call, &out)
	}()
	err := t.stream.Hold(ctx, done)
	<-done
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	e.Resolved, e.widened = true, widenings(&out)
	for i := range out.Invalidations {
		if _, err := t.line(ctx, e, &out.Invalidations[i]); err != nil {
			return err
		}
	}
	return nil
}

// line prints one invalidation, unless there are too many.
func (t *tap) line(ctx context.Context, e event, inv *mapping.Invalidation) (shown bool, err error) {
	t.sum.Invalidations++
	t.sum.Ops[inv.Op.String()]++
	if !t.limiter.Allow() {
		t.printer.leaveOut()
		return false, nil
	}
	shown, err = t.printer.print(ctx, t.stream, t.view.line(e, inv))
	if !shown || err != nil {
		return false, err
	}
	t.sum.Shown++
	if t.o.Count > 0 && t.sum.Shown >= int64(t.o.Count) {
		return true, errEnough
	}
	return true, nil
}

func (t *tap) wanted(inv *mapping.Invalidation) bool {
	if f := t.o.Filter.Families; len(f) > 0 && !slices.Contains(f, inv.Family.Name) {
		return false
	}
	if t.o.Filter.Tenant == nil {
		return true
	}
	// Where the tenant is not known, all of them are meant, this one too.
	if inv.Family.TenantVar == "" || inv.Tenant == nil {
		return inv.Family.TenantVar != ""
	}
	tenant, ok := inv.Family.Tenant([]byte(*t.o.Filter.Tenant))
	return ok && string(inv.Tenant) == string(tenant)
}

func widenings(out *mapping.Output) (reasons []string) {
	for reason, n := range out.Widened {
		if n > 0 {
			reasons = append(reasons, mapping.Reason(reason).String())
		}
	}
	return reasons
}

// event is what the lines of one change have in common.
type event struct {
	Time     time.Time
	Position lsn.LSN
	XID      uint32
	Action   string
	Table    string
	Resolved bool
	widened  []string
}
