package daemon

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

const (
	// stuckAfter attachments that end with the same error at the same position are no
	// accident.
	stuckAfter = 3
	// The pauses between attempts then: somebody may repair the server.
	stuckFirstPause = 2 * time.Second
	stuckLastPause  = 30 * time.Second
	// skipInterval is how often it is looked whether somebody gives the transaction up.
	skipInterval = 500 * time.Millisecond
)

// obstacle is an error that will come again at each attachment, since it comes of what
// is in the log and not of a server that is away.
type obstacle struct {
	code   string  // SQLSTATE, or "format" for a message that cannot be decoded
	commit lsn.LSN // of the transaction; 0 where the server failed before it sent any of it
	near   lsn.LSN // something before it: where the server says that it was, or how far it had sent
	xid    uint32
	table  string // "" where it is not known
	passed lsn.LSN
	err    error
	times  int
}

func (o *obstacle) stuck() bool { return o != nil && o.times >= stuckAfter }

func (o *obstacle) same(p *obstacle) bool {
	return p != nil && o.code == p.code && o.commit == p.commit && (o.commit != 0 || o.near == p.near)
}

// String says where.
func (o *obstacle) String() string {
	if o.commit == 0 {
		return "stuck behind " + o.near.String()
	}
	return "stuck at " + o.commit.String()
}

func (o *obstacle) at() lsn.LSN {
	if o.commit == 0 {
		return o.near
	}
	return o.commit
}

func (o *obstacle) reason() string {
	s := fmt.Sprintf("%s: the transaction cannot be read, %d attempts ended with the same error", o, o.times)
	if o.table != "" {
		s += ", the last at a row of " + o.table
	}
	return s + ": " + o.err.Error()
}

func (o *obstacle) fix(slot string) string {
	repair := "see the server's log and repair what it complains of; the daemon tries again by itself. "
	if o.commit == 0 {
		return repair + "Else replace the slot, and everything cached counts as changed: SELECT pg_drop_replication_slot('" + slot + "');"
	}
	return repair + "Else give this one transaction up: cdc-invalidator skip --config <file> --position " + o.commit.String() +
		" --reason <why>; every mapped family is purged then, and nothing after it is lost"
}

// whereLSN finds the position in the context of a server's error, whose text is
// translated.
var whereLSN = regexp.MustCompile(`\b[0-9A-F]{1,8}/[0-9A-F]{1,8}\b`)

// newObstacle sorts an error of the stream; nil for what may be over the next time.
func (r *receiver) newObstacle(err error) *obstacle {
	o := &obstacle{err: err, times: 1, near: r.stream.ReceivedLSN()}
	var pg *pgconn.PgError
	var format *decoder.FormatError
	switch {
	case errors.As(err, &format):
		o.code = "format"
	case errors.As(err, &pg) && repeats(pg.Code):
		o.code = pg.Code
		if at, err := lsn.Parse(whereLSN.FindString(pg.Where)); err == nil {
			o.near = at
		}
	default:
		return nil
	}
	if o.commit = r.begun.CommitLSN; o.commit != 0 {
		o.xid = r.begun.XID
		if r.near != nil {
			o.table = r.near.String()
		}
	}
	// A later transaction does not come through before this one.
	o.passed = o.commit
	if o.passed == 0 {
		o.passed = max(r.d.heartbeat.LogEnd(), r.stream.ReceivedLSN())
	}
	return o
}

// repeats says whether a server's error comes of what it was asked to send. A server that
// stops, or a person who ends the connection, is no such thing.
func repeats(code string) bool {
	switch code[:min(2, len(code))] {
	case "08", "28", "57": // connection, authorization, operator intervention
		return false
	}
	switch code {
	case "53300", "55006": // no connection to spare, slot in use
		return false
	}
	return true
}

// met counts an obstacle.
func (d *daemon) met(o *obstacle) {
	if before := d.obstacle.Load(); o.same(before) {
		o.times, o.passed = before.times+1, before.passed
	}
	d.obstacle.Store(o)
	if !o.stuck() {
		return
	}
	d.metrics.stuck.Set(1)
	if d.health.process.failed(conditionStuck, o.reason(), o.fix(d.file.Source.Slot.Name)) {
		d.log.Error("stuck: the same error at the same position", "position", o.at(), "attempts", o.times, "table", o.table, "error", o.err, "fix", o.fix(d.file.Source.Slot.Name))
	}
}

// overcome says whether what is past at is past whatever stopped the stream last, and
// notes it.
func (d *daemon) overcome(at lsn.LSN) bool {
	o := d.obstacle.Load()
	if o == nil || at < o.passed || !d.obstacle.CompareAndSwap(o, nil) {
		return false
	}
	d.metrics.stuck.Set(0)
	if d.health.process.ok(conditionStuck) {
		d.log.Info("past what the stream was stuck at", "position", o.at())
	}
	return true
}

// stuckPause is how long to wait before the next attempt.
func stuckPause(o *obstacle) time.Duration {
	return min(stuckLastPause, stuckFirstPause<<min(o.times-stuckAfter, 5))
}

// waitStuck waits for the next attempt, and meanwhile for somebody who gives the
// transaction up.
func (d *daemon) waitStuck(ctx context.Context, o *obstacle) {
	ctx, cancel := context.WithTimeout(ctx, stuckPause(o))
	defer cancel()
	told := false
	tick := time.NewTicker(skipInterval)
	defer tick.Stop()
	for {
		// For the command; it is of use only while somebody is there to answer it.
		if o.commit != 0 && !told {
			err := d.sink.TellStuck(ctx, sink.Stuck{Position: o.commit.String(), Table: o.table, Code: o.code, Attempts: o.times}, 2*stuckLastPause)
			told = err == nil
			if err != nil && ctx.Err() == nil {
				d.log.Debug("redis was not told that the stream is stuck", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if d.skipRequested(ctx, o) {
			return
		}
	}
}

// skipRequested answers a request to give a transaction up, and says whether it has done
// so.
func (d *daemon) skipRequested(ctx context.Context, o *obstacle) bool {
	req, found, err := d.sink.SkipRequest(ctx)
	if err != nil || !found || req.Answer != "" {
		return false // redis is away, as the condition of that name says, or nobody asks
	}
	// Not bounded by the pause: half of it must not be left.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), skipTimeout)
	defer cancel()
	refused := ""
	switch {
	case o.commit == 0:
		refused = "the server failed before it said which transaction it is: replace the slot instead"
	case req.Position != o.commit.String():
		refused = "the stream is stuck at " + o.commit.String() + ", not at " + req.Position
	default:
		if err = d.skip(ctx, o, req); err != nil {
			d.log.Warn("the transaction was not skipped; trying again", "position", req.Position, "error", err)
			return false
		}
	}
	req.Answer, req.Refused = "skipped", false
	if refused != "" {
		d.log.Warn("a request to skip a transaction is refused", "position", req.Position, "because", refused)
		req.Answer, req.Refused = refused, true
	}
	if err := d.sink.AnswerSkip(ctx, req); err != nil {
		d.log.Warn("the request to skip a transaction was not answered", "error", err)
	}
	return refused == ""
}

// skipTimeout bounds giving a transaction up; the server reads the log up to it again.
const skipTimeout = 5 * time.Minute

// skip gives one transaction up: a gap, published before the slot moves, whose purge the
// next session does. A process that ends anywhere in between leaves a published gap, which
// the next one closes; whether the slot had moved or not makes no difference to that.
//
// All families are purged, since nobody has seen what else is in the transaction. That
// covers also what was received before it and is not confirmed yet, which the slot will
// not send again either.
func (d *daemon) skip(ctx context.Context, o *obstacle, req sink.SkipRequest) error {
	control, err := replication.ConnectControl(ctx, d.sourceURL(), "skip")
	if err != nil {
		return err
	}
	defer replication.CloseControl(ctx, control)
	// Purged before others see it, old values could be cached again.
	var text string
	if err := control.QueryRow(ctx, "SELECT pg_current_snapshot()::text").Scan(&text); err != nil {
		return replication.ServerError("ask for a snapshot", err)
	}
	snapshot, err := ordering.ParseSnapshot(text)
	if err != nil {
		return err
	}
	if !snapshot.Visible(o.xid) {
		return fmt.Errorf("transaction %d is not visible to other sessions yet: a synchronous standby may be missing", o.xid)
	}
	reason := fmt.Sprintf("the transaction at %s was skipped: %s", o.commit, req.Reason)
	d.owed = reason
	if err := d.publishGap(ctx, reason); err != nil {
		return err
	}
	failpoint.Hit(failpoint.SkipPublished)
	if err := replication.AdvanceSlot(ctx, control, d.file.Source.Slot.Name, o.commit+1); err != nil {
		return err
	}
	failpoint.Hit(failpoint.SkipAdvanced)
	d.metrics.skips.Inc()
	d.log.Error("a transaction was skipped", "position", o.commit, "table", o.table, "reason", req.Reason)
	d.overcome(o.passed)
	return nil
}

// settleSkip answers a request that was carried out by a process that ended before it
// could say so.
func (d *daemon) settleSkip(ctx context.Context, confirmed lsn.LSN) error {
	req, found, err := d.sink.SkipRequest(ctx)
	if err != nil || !found || req.Answer != "" {
		return err
	}
	at, err := lsn.Parse(req.Position)
	if err != nil || at >= confirmed {
		return nil // stuck there or not: the next attempts tell
	}
	req.Answer = "skipped"
	return d.sink.AnswerSkip(ctx, req)
}
