package daemon

import (
	"context"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// promptAge is how old a transaction may be for its keys to be removed early. In a
// backlog of more than that, removing everything twice only makes it last longer.
const promptAge = 100 * time.Millisecond

// receiver reads the log, decodes and maps it, and fills the queue. It is the one
// goroutine that owns the replication connection.
type receiver struct {
	d        *daemon
	stream   *replication.Stream
	dec      *decoder.Decoder
	queue    *ordering.Queue
	early    *sink.Early
	prompt   bool // the open transaction was sent soon after its commit
	window   *ordering.Window
	timeline uint32
	// Transactions at or below skip were applied before this attachment.
	skip    lsn.LSN
	history history

	settler     *settler
	watcher     *replication.CatalogWatcher
	distrusting bool // there are tables whose changes do not tell all

	stamps *stamper
	plan   *mapping.Plan
	tables map[*decoder.Relation]*mapping.Table
	strays map[*decoder.Relation][]mapping.TableUse // see stray
	byID   map[uint32]*decoder.Relation             // as last described, to notice DDL
	last   *decoder.Relation                        // of the last change, with its table
	table  *mapping.Table

	begun decoder.Begin     // of the open transaction, to be skipped or not; zero outside of one
	near  *decoder.Relation // what was described or changed last in it

	tx       ordering.Txn
	skipping bool
	out      mapping.Output
	beat     time.Time // of the newest heartbeat in the open transaction
}

func (r *receiver) run(ctx context.Context) error {
	for {
		r.confirm()
		if err := r.stream.Fill(ctx); err != nil {
			return err
		}
		failpoint.Hit(failpoint.Received)
		if err := r.drain(ctx); err != nil {
			return err
		}
	}
}

// confirm hands on what may be confirmed by now; the stream tells Postgres with
// its next status update.
func (r *receiver) confirm() {
	r.settler.follows.Store(r.history.proved())
	r.stream.Confirm(r.window.Confirmable(r.window.Seen()))
	r.d.progress.read(r.stream.ReceivedLSN(), r.stream.ConfirmedLSN())
}

// farewell confirms what the applier finished after the stream was left, so that
// less is sent again at the next start.
func (r *receiver) farewell() error {
	r.confirm()
	failpoint.Hit(failpoint.Confirming)
	err := r.stream.Flush()
	failpoint.Hit(failpoint.Confirmed)
	return err
}

// drain handles everything that is buffered, with the queue locked but for the
// times when it is full.
func (r *receiver) drain(ctx context.Context) error {
	r.distrusting = r.watcher.Distrusting()
	r.queue.Lock()
	locked := true
	defer func() {
		if locked {
			r.queue.Unlock()
		}
	}()
	for {
		data, ok, err := r.stream.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := r.handle(data); err != nil {
			return err
		}
		for r.queue.Full() {
			r.queue.Unlock()
			locked = false
			r.d.metrics.backpressure.Inc()
			if err := r.stream.Hold(ctx, r.queue.Space()); err != nil {
				return err
			}
			r.confirm()
			r.queue.Lock()
			locked = true
		}
	}
	r.early.Flush()
	r.queue.CatchingUp(r.stream.CatchingUp())
	if !r.queue.Open() && !r.skipping {
		r.reload()
		return r.mark(r.stream.KeepaliveLSN())
	}
	return nil
}

// mark notes that there is nothing for this slot below end.
func (r *receiver) mark(end lsn.LSN) error {
	if err := r.history.reached(end); err != nil {
		return err
	}
	if !r.history.proved() {
		return nil // whose log this is the end of is not known yet
	}
	if !r.d.heartbeats() {
		r.queue.Disown()
	}
	r.queue.Mark(end)
	return nil
}

func (r *receiver) handle(data []byte) error {
	m, err := r.dec.Decode(data)
	if err != nil {
		return err
	}
	switch m.Kind {
	case decoder.KindChange:
		r.near = m.Change.Relation
		if r.skipping {
			return nil
		}
		r.queue.Row()
		rel := m.Change.Relation
		if rel != r.last {
			r.last, r.table = rel, r.tables[rel]
		}
		if r.table == nil {
			r.straying(rel)
			return nil
		}
		r.out.Reset()
		if r.distrusting && r.watcher.Distrusts(rel.Namespace, rel.Name) {
			r.table.Invalidate(&r.out)
		} else {
			r.table.Map(&m.Change, &r.out)
		}
		r.add()
	case decoder.KindBegin:
		r.begun, r.near = m.Begin, nil
		r.prompt = r.stream.Committed(m.Begin.CommitTime) < promptAge
		if err := r.history.begin(m.Begin.CommitLSN, m.Begin.XID, m.Begin.CommitTime); err != nil {
			return err
		}
		r.skipping = m.Begin.CommitLSN <= r.skip
		if r.skipping {
			return nil
		}
		// A plan that came while nothing did is in force for this one already.
		r.reload()
		r.tx = ordering.Txn{XID: m.Begin.XID, CommitLSN: m.Begin.CommitLSN, CommitTime: m.Begin.CommitTime}
		r.beat = time.Time{}
		r.queue.Begin(r.tx)
	case decoder.KindCommit:
		r.begun = decoder.Begin{}
		if r.d.overcome(m.Commit.CommitLSN) {
			r.d.health.process.ok(conditionStreaming)
		}
		if r.skipping {
			r.skipping = false
			return nil
		}
		p := ordering.Position{
			Timeline: r.timeline, CommitLSN: m.Commit.CommitLSN, EndLSN: m.Commit.EndLSN, CommitTime: m.Commit.CommitTime,
		}
		if r.d.file.Source.Heartbeat > 0 { // see heartbeats
			p.XID = r.tx.XID
		}
		r.queue.Commit(p, r.beat)
		failpoint.Hit(failpoint.Decoded)
	case decoder.KindRelation:
		r.near = m.Relation
		r.bind(m.Relation)
	case decoder.KindTruncate:
		if r.skipping {
			return nil
		}
		r.out.Reset()
		for _, rel := range m.Truncate.Relations {
			if t := r.tables[rel]; t != nil {
				t.Truncate(&r.out)
			} else {
				r.invalidateStray(rel)
			}
		}
		r.add()
	case decoder.KindLogical:
		r.message(&m.Logical)
	}
	return nil
}

// add queues what r.out holds, as part of the open transaction.
func (r *receiver) add() {
	for i := range r.out.Invalidations {
		inv := &r.out.Invalidations[i]
		if r.prompt && inv.Op == mapping.OpDelete && !inv.Family.Class.Held() && r.early.Add(inv.Key) {
			r.queue.AddPatient(inv)
		} else {
			r.queue.Add(inv)
		}
	}
	r.d.metrics.widened(&r.out)
}

func (r *receiver) message(m *decoder.Logical) {
	if m.Transactional && r.skipping {
		return
	}
	if string(m.Prefix) == replication.HeartbeatPrefix {
		if sent, ok := r.d.heartbeat.Observe(m.Content); ok && m.Transactional {
			r.beat = sent
		}
		return
	}
	if string(m.Prefix) == replication.DDLPrefix {
		r.ddl(m)
		return
	}
	if string(m.Prefix) == replication.NudgePrefix {
		r.settler.nudge(r.tx.CommitLSN)
		return
	}
	r.out.Reset()
	r.plan.Logical(m, &r.out)
	if m.Transactional {
		r.add()
		return
	}
	// It came at once, before its transaction's end, which it knows nothing of.
	r.queue.AddUngated(m.LSN, r.d.now(), r.out.Invalidations)
	r.d.metrics.widened(&r.out)
}

// bind prepares a described relation for its changes. A definition that differs
// from the one before means DDL in between; what it did to the rows is unknown,
// so the table's families go.
func (r *receiver) bind(rel *decoder.Relation) {
	before := r.byID[rel.ID]
	if before == rel {
		return
	}
	r.byID[rel.ID] = rel
	delete(r.tables, before)
	delete(r.strays, before)
	r.last, r.table = nil, nil
	t := r.plan.Bind(rel)
	if t == nil {
		r.stray(rel, before)
		return
	}
	r.tables[rel] = t
	r.d.tableBound(rel, t)
	if before != nil {
		r.watcher.Look() // the DDL is visible, since a later transaction has come
	}
	if before != nil && !r.skipping {
		r.out.Reset()
		t.Invalidate(&r.out)
		r.add()
	}
}

// reload takes a new plan between two transactions, once readers have been told which families are
// followed otherwise under it.
func (r *receiver) reload() {
	plan := r.d.plan.Load()
	if plan == r.plan || !r.stamps.ready(plan) {
		return
	}
	r.plan = plan
	clear(r.tables)
	clear(r.strays)
	r.last, r.table = nil, nil
	for rel := range r.dec.Relations {
		if t := plan.Bind(rel); t != nil {
			r.tables[rel] = t
			r.d.tableBound(rel, t)
		} else {
			r.stray(rel, nil)
		}
	}
	r.stamps.switched.Store(plan)
}
