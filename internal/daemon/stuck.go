package daemon

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
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
	said   lsn.LSN // where the server says that it was; 0 where it does not
	near   lsn.LSN // something before it: said, or how far it had sent the first time
	xid    uint32
	table  string // "" where it is not known
	passed lsn.LSN
	err    error
	times  int
}

func (o *obstacle) stuck() bool { return o != nil && o.times >= stuckAfter }

// same says whether it is the one that p was. Without any position the code has to do:
// nothing has come past p since, and how far the server had sent depends on its keepalives.
func (o *obstacle) same(p *obstacle) bool {
	return p != nil && o.code == p.code && o.commit == p.commit && (o.commit != 0 || o.said == p.said)
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
	what, then := "this one transaction", "every mapped family is purged then, and nothing after it is lost"
	if o.commit == 0 {
		what = "all that is in the log by now"
		then = "every mapped family is purged then. Where the server cannot pass it even so, replace the slot, which means the same: SELECT pg_drop_replication_slot('" + slot + "');"
	}
	return repair + "Else give " + what + " up: cdc-invalidator skip --config <file> --position " + o.at().String() + " --reason <why>; " + then
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
			o.said, o.near = at, at
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
		o.times, o.passed, o.near = before.times+1, before.passed, before.near
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
		if !told {
			err := d.tellStuck(ctx, o, 2*stuckLastPause)
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

func (d *daemon) tellStuck(ctx context.Context, o *obstacle, ttl time.Duration) error {
	d.stuckTold = true // also after an error: it may be there
	return d.sink.TellStuck(ctx, sink.Stuck{Position: o.at().String(), Behind: o.commit == 0, Table: o.table, Code: o.code, Attempts: o.times}, ttl)
}

// untellStuck takes back what was told once the stream is past it: who reads it would ask for
// something that is not there any more.
func (d *daemon) untellStuck(ctx context.Context, c *checks) {
	if !d.stuckTold || d.obstacle.Load() != nil {
		return
	}
	err := d.sink.ForgetStuck(ctx)
	d.chore(c, choreStuck, err)
	d.stuckTold = err != nil
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
	if req.Position != o.at().String() {
		refused = "the stream is " + o.String() + ", not at " + req.Position
	} else if err = d.skip(ctx, o, &req); err != nil {
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || !repeats(pg.Code) {
			d.log.Warn("the transaction was not skipped; trying again", "position", req.Position, "error", err)
			return false
		}
		refused = "the server cannot pass it even without sending it: replace the slot instead, SELECT pg_drop_replication_slot('" + d.file.Source.Slot.Name + "'): " + err.Error()
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
// not send again either. It covers just as well what comes after it: where the transaction
// is not known, all that is in the log by now is given up with it. What of that is not
// visible yet, the new stamps wait for (stamper).
func (d *daemon) skip(ctx context.Context, o *obstacle, req *sink.SkipRequest) error {
	control, err := replication.ConnectControl(ctx, d.sourceURL(), "skip")
	if err != nil {
		return err
	}
	defer replication.CloseControl(ctx, control)
	to, what := o.commit+1, "the transaction at "+o.commit.String()
	if o.commit == 0 {
		if to, err = replication.FlushedEnd(ctx, control); err != nil {
			return err
		}
		what = fmt.Sprintf("the log from %s to %s", o.near, to)
	} else if err := d.wantVisible(ctx, control, o.xid); err != nil {
		return err
	}
	reason := fmt.Sprintf("%s was skipped: %s", what, req.Reason)
	d.owed = reason
	if err := d.publishGap(ctx, reason); err != nil {
		return err
	}
	failpoint.Hit(failpoint.SkipPublished)
	// Whoever asked waits for the answer as long as this is there.
	if err := d.tellStuck(ctx, o, skipTimeout); err != nil {
		return err
	}
	req.Begun = true
	if err := d.sink.RequestSkip(ctx, *req); err != nil {
		return err
	}
	if err := replication.AdvanceSlot(ctx, control, d.file.Source.Slot.Name, to); err != nil {
		return err
	}
	failpoint.Hit(failpoint.SkipAdvanced)
	d.metrics.skips.Inc()
	d.log.Error("a transaction was skipped", "what", what, "table", o.table, "reason", req.Reason)
	d.overcome(max(to-1, o.passed))
	return nil
}

// wantVisible is an error while others do not see a transaction.
func (d *daemon) wantVisible(ctx context.Context, control *pgx.Conn, xid uint32) error {
	var text string
	if err := control.QueryRow(ctx, "SELECT pg_current_snapshot()::text").Scan(&text); err != nil {
		return replication.ServerError("ask for a snapshot", err)
	}
	snapshot, err := ordering.ParseSnapshot(text)
	if err != nil {
		return err
	}
	if !snapshot.Visible(xid) {
		return fmt.Errorf("transaction %d is not visible to other sessions yet: a synchronous standby may be missing", xid)
	}
	return nil
}

// settleSkip answers a request that a process began to carry out and ended, and one for
// what the slot has passed without any skip.
func (d *daemon) settleSkip(ctx context.Context, confirmed lsn.LSN) error {
	if stuck, found, err := d.sink.Stuck(ctx); err != nil || !found {
		return err // nobody may ask
	} else if at, err := lsn.Parse(stuck.Position); err == nil && at < confirmed {
		d.stuckTold = true
	}
	req, found, err := d.sink.SkipRequest(ctx)
	if err != nil || !found || req.Answer != "" {
		return err
	}
	at, err := lsn.Parse(req.Position)
	if err != nil || at >= confirmed {
		return nil // stuck there or not: the next attempts tell
	}
	req.Answer, req.Refused = "skipped", !req.Begun
	if req.Refused {
		req.Answer = "the stream got past " + req.Position + " without it"
	}
	return d.sink.AnswerSkip(ctx, req)
}
