package replication

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// HeartbeatPrefix is the prefix of the logical messages that a Heartbeat emits.
const HeartbeatPrefix = "cdc_invalidator.heartbeat"

// A heartbeat's content is "1 <sequence, 16 hex> <tag, 32 hex> <microseconds
// since 1970 by the database's clock>".
const (
	heartbeatVersion = "1"
	heartbeatTagLen  = 16
)

// heartbeatTimeout bounds one heartbeat, connection included. It is the client's
// bound because the server's statement_timeout does not cover the commit.
const heartbeatTimeout = 5 * time.Second

// HeartbeatOptions configures a Heartbeat.
type HeartbeatOptions struct {
	Connect  func(context.Context) (*pgx.Conn, error)
	Interval time.Duration
	// StaleAfter is after how long without a heartbeat of ours coming back the
	// status says so; at least 10 intervals, 10 s by default.
	StaleAfter time.Duration
	// OnTime is told with each heartbeat what the source's clock said between two
	// moments of ours. May be nil.
	OnTime  func(theirs, asked, answered time.Time)
	Logger  *slog.Logger
	Metrics *ControlMetrics // may be nil
}

// Heartbeat commits a small logical message at a steady pace, so that an idle
// source is known to be idle and not silent. When one comes back through the
// slot, everything that was visible when it was sent has come before it.
//
// Any role may emit messages with our prefix, and a restarted daemon finds those
// of its predecessor. So each carries a tag that only this process can make:
// the sequence number under a key drawn at start. What is outstanding need not be
// remembered, however far behind the stream is.
type Heartbeat struct {
	o      HeartbeatOptions
	key    [32]byte
	logEnd atomic.Uint64

	changed chan struct{} // the interval

	mu       sync.Mutex
	interval time.Duration
	sent     uint64 // sequence of the last one tried
	seen     uint64 // highest that came back
	seenTime time.Time
	arrived  time.Time // by our clock, of the last that came back
	lastErr  error
	wasOK    bool
	since    time.Time
}

// NewHeartbeat makes a heartbeat; Run runs it.
func NewHeartbeat(o HeartbeatOptions) *Heartbeat {
	if o.Metrics == nil {
		o.Metrics = NewControlMetrics(nil)
	}
	now := time.Now()
	h := &Heartbeat{o: o, interval: o.Interval, changed: make(chan struct{}, 1), arrived: now, since: now, wasOK: true}
	_, _ = rand.Read(h.key[:]) // never fails: the runtime would sooner end the process
	return h
}

// SetInterval changes the pace of a heartbeat that has one.
func (h *Heartbeat) SetInterval(d time.Duration) {
	h.mu.Lock()
	h.interval = d
	h.mu.Unlock()
	select {
	case h.changed <- struct{}{}:
	default: // noted already
	}
}

func (h *Heartbeat) pace() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.interval
}

// Run sends heartbeats until ctx ends and returns nil. Without an interval it
// only waits.
func (h *Heartbeat) Run(ctx context.Context) error {
	if h.o.Interval <= 0 {
		<-ctx.Done()
		return nil
	}
	repeatForever(ctx, h.connect, h.send, h.pace, h.changed, func(err error, next time.Duration) {
		h.mu.Lock()
		h.lastErr = err
		h.mu.Unlock()
		h.o.Metrics.heartbeatErrs.Inc()
		h.o.Logger.Warn("cannot send heartbeats", "error", err, "retry_in", next)
	})
	return nil
}

func (h *Heartbeat) connect(ctx context.Context) (*pgx.Conn, error) {
	bounded, cancel := context.WithTimeout(ctx, heartbeatTimeout)
	defer cancel()
	conn, err := h.o.Connect(bounded)
	if err != nil {
		return nil, err
	}
	// A heartbeat proves order in the log, for which our own flush is enough. It
	// must not hang on a standby that is missing, nor wait for the WAL writer.
	if _, err := conn.Exec(bounded, `SET synchronous_commit = local`); err != nil {
		CloseControl(ctx, conn)
		return nil, serverError("prepare the heartbeat's connection", err, "")
	}
	return conn, nil
}

func (h *Heartbeat) send(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, heartbeatTimeout)
	defer cancel()
	h.mu.Lock()
	h.sent++
	content := h.head(h.sent)
	h.mu.Unlock()
	// The time is taken by the database before the message's transaction commits,
	// so whatever was visible by then lies before it in the log. It travels in the
	// message because the message may well be back before this statement's answer.
	var at string
	var theirs time.Time
	asked := time.Now()
	err := conn.QueryRow(ctx, `
		SELECT pg_logical_emit_message(true, $1, $2 || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text)::text, clock_timestamp()`,
		HeartbeatPrefix, string(content)).Scan(&at, &theirs)
	if err != nil {
		return messageError(ctx, conn, "send a heartbeat", err)
	}
	h.o.Metrics.heartbeatSent.Inc()
	if h.o.OnTime != nil {
		h.o.OnTime(theirs, asked, time.Now())
	}
	if end, err := lsn.Parse(at); err == nil {
		h.logEnd.Store(uint64(end))
	}
	h.mu.Lock()
	h.lastErr = nil
	h.mu.Unlock()
	return nil
}

// messageError says what a logical message that could not be sent asks for.
func messageError(ctx context.Context, conn *pgx.Conn, op string, err error) error {
	grant := ""
	if lacksRight(err) {
		var askErr error
		if grant, askErr = HeartbeatGrant(ctx, conn); askErr != nil {
			return errors.Join(serverError(op, err, ""), askErr)
		}
	}
	return serverError(op, err, grant)
}

// HeartbeatGrant is the SQL that lets the connection's role send heartbeats, "" where
// it may. The server is asked, since the function's arguments differ by version.
func HeartbeatGrant(ctx context.Context, conn *pgx.Conn) (string, error) {
	var grant string
	err := conn.QueryRow(ctx, `
		SELECT coalesce(string_agg(format('GRANT EXECUTE ON FUNCTION %s TO %I;', oid::regprocedure, current_user), E'\n'), '')
		FROM pg_proc
		WHERE proname = 'pg_logical_emit_message' AND pronamespace = 'pg_catalog'::regnamespace
		  AND proargtypes[2] = 'text'::regtype AND NOT has_function_privilege(oid, 'EXECUTE')`).Scan(&grant)
	return grant, serverError("look up the right to send heartbeats", err, "")
}

// LogEnd is where the source's log ended when the last heartbeat was written; 0
// before the first.
func (h *Heartbeat) LogEnd() lsn.LSN { return lsn.LSN(h.logEnd.Load()) }

// head is a content up to the time.
func (h *Heartbeat) head(seq uint64) []byte {
	b := fmt.Appendf(nil, "%s %016x ", heartbeatVersion, seq)
	mac := hmac.New(sha256.New, h.key[:])
	mac.Write(b)
	b = hex.AppendEncode(b, mac.Sum(nil)[:heartbeatTagLen])
	return append(b, ' ')
}

// Observe takes the content of a message with HeartbeatPrefix that came through
// the slot. For one of ours it returns when, by the database's clock, everything
// before it was already visible. ok is false for anybody else's, and for one that
// is older than one seen before: a reconnected stream repeats itself.
//
// Each heartbeat counts at its first arrival, with the time that it brings then:
// a copy with another time, made by somebody who can read the log, comes later.
func (h *Heartbeat) Observe(content []byte) (sentAt time.Time, ok bool) {
	seq, sentAt, ok := h.parse(content)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !ok || seq > h.sent || seq < h.seen:
		h.o.Metrics.heartbeatOther.Inc()
		return time.Time{}, false
	case seq == h.seen:
		return h.seenTime, true
	}
	h.seen, h.seenTime, h.arrived = seq, sentAt, time.Now()
	h.o.Metrics.heartbeatSeen.Inc()
	return sentAt, true
}

func (h *Heartbeat) parse(content []byte) (seq uint64, sentAt time.Time, ok bool) {
	const seqEnd = len(heartbeatVersion) + 1 + 16
	const headLen = seqEnd + 1 + 2*heartbeatTagLen + 1
	if len(content) <= headLen || !bytes.HasPrefix(content, []byte(heartbeatVersion+" ")) {
		return 0, time.Time{}, false
	}
	seq, err := strconv.ParseUint(string(content[len(heartbeatVersion)+1:seqEnd]), 16, 64)
	if err != nil || seq == 0 || !hmac.Equal(h.head(seq), content[:headLen]) {
		return 0, time.Time{}, false
	}
	micros, err := strconv.ParseInt(string(content[headLen:]), 10, 64)
	if err != nil {
		return 0, time.Time{}, false
	}
	return seq, time.UnixMicro(micros).UTC(), true
}

// Status is not OK when none of our heartbeats came back for too long: they
// cannot be sent, the stream is far behind, or the slot is on another server than
// the one that the heartbeats reach.
func (h *Heartbeat) Status() Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := Status{OK: true}
	if h.interval > 0 && h.seen == 0 {
		s = Status{Unknown: true, Reason: "no heartbeat has come back yet"}
	}
	staleAfter := h.o.StaleAfter
	if staleAfter <= 0 {
		staleAfter = max(10*time.Second, 10*h.interval)
	}
	if age := time.Since(h.arrived); h.interval > 0 && age > staleAfter {
		s = Status{Reason: fmt.Sprintf("no heartbeat has come back for %s", age.Round(time.Second))}
		if h.lastErr != nil {
			s.Reason += ": " + h.lastErr.Error()
			s.Fix = "see that the source answers and takes writes from the role"
		} else {
			s.Fix = "the stream is behind, or source.url reaches a different server each time: name one primary"
		}
	}
	if s.OK != h.wasOK {
		h.wasOK, h.since = s.OK, time.Now()
	}
	s.Since = h.since
	return s
}
