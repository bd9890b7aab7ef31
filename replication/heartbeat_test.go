package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

func startHeartbeat(t *testing.T, url string, o HeartbeatOptions) *Heartbeat {
	t.Helper()
	o.Connect, o.Logger = connectTo(url), controlLogger(t)
	h := NewHeartbeat(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return h
}

// heartbeatsIn takes the contents of all messages with our prefix from a slot.
func heartbeatsIn(t *testing.T, conn *pgx.Conn, slot string) [][]byte {
	t.Helper()
	rows, err := conn.Query(t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', 'pub', 'messages', 'true')`, slot)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		t.Fatal(err)
	}
	var contents [][]byte
	for _, m := range all {
		if m[0] == 'M' && m[1] == 1 { // transactional
			_, rest, ok := bytes.Cut(m, []byte(HeartbeatPrefix+"\x00"))
			if ok {
				contents = append(contents, rest[4:])
			}
		}
	}
	return contents
}

func heartbeatSlot(t *testing.T) (*servertest.Database, *pgx.Conn, string) {
	t.Helper()
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE PUBLICATION pub", createSlotSQL(db.Name+"_slot"))
	return db, controlConn(t, db.URL), db.Name + "_slot"
}

// waitForHeartbeats takes from the slot until there are n.
func waitForHeartbeats(t *testing.T, conn *pgx.Conn, slot string, n int) [][]byte {
	t.Helper()
	var got [][]byte
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if got = append(got, heartbeatsIn(t, conn, slot)...); len(got) >= n {
			return got
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d heartbeats, want %d", len(got), n)
		}
	}
}

func TestHeartbeatComesBackWithTheDatabasesTime(t *testing.T) {
	db, conn, slot := heartbeatSlot(t)
	var before, after time.Time
	if err := conn.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&before); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	h := startHeartbeat(t, db.URL, HeartbeatOptions{Interval: 20 * time.Millisecond, Metrics: NewControlMetrics(reg)})
	contents := waitForHeartbeats(t, conn, slot, 3)
	if err := conn.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&after); err != nil {
		t.Fatal(err)
	}
	last := before
	for _, c := range contents {
		at, ok := h.Observe(c)
		if !ok || at.Before(last.Truncate(time.Microsecond)) || at.After(after) {
			t.Errorf("%q: %v %v, want a time in [%v, %v]", c, at, ok, last, after)
		}
		last = at
		if again, ok := h.Observe(c); !ok || !again.Equal(at) {
			t.Errorf("the same message once more: %v %v", again, ok)
		}
	}
	// A stream that reconnects repeats older ones.
	if _, ok := h.Observe(contents[0]); ok {
		t.Error("an older heartbeat counts")
	}
	if !h.Status().OK {
		t.Errorf("%+v", h.Status())
	}
	if n := testutil.ToFloat64(h.o.Metrics.heartbeatSeen); n != float64(len(contents)) {
		t.Errorf("%v seen, want %d", n, len(contents))
	}
}

// Any role may emit messages with any prefix.
func TestHeartbeatIgnoresForeignMessages(t *testing.T) {
	db, conn, slot := heartbeatSlot(t)
	h := startHeartbeat(t, db.URL, HeartbeatOptions{Interval: time.Hour})
	other := NewHeartbeat(HeartbeatOptions{})
	genuine := string(waitForHeartbeats(t, conn, slot, 1)[0])
	future := fmt.Sprint(time.Now().Add(time.Hour).UnixMicro())
	head := genuine[:strings.LastIndexByte(genuine, ' ')+1]
	for _, content := range []string{
		"", "1", "1 ", "hello", genuine[:len(genuine)/2], head, head + "x", head + " 5", head + "99999999999999999999",
		"2" + genuine[1:],
		string(other.head(1)) + future,            // another process's
		string(h.head(2)) + future,                // one that was not sent yet
		strings.Replace(genuine, "1 0", "1 1", 1), // another sequence number under the same tag
		strings.Replace(genuine, "1 0", "1 +", 1), // a number in another spelling
		strings.ToUpper(head) + future,            // the tag in another spelling
		genuine + "\x00", genuine + " ", " " + genuine,
	} {
		if at, ok := h.Observe([]byte(content)); ok {
			t.Errorf("%q counts as of %v", content, at)
		}
	}
	at, ok := h.Observe([]byte(genuine))
	if !ok {
		t.Fatal("the genuine one does not count")
	}
	// Somebody who reads the log can copy the tag, but only after the first.
	if forged, ok := h.Observe([]byte(head + future)); ok && !forged.Equal(at) {
		t.Errorf("a copy moved the time to %v", forged)
	}
}

// What is outstanding must not cost memory while the stream is far behind.
func TestHeartbeatOutstandingIsFree(t *testing.T) {
	h := NewHeartbeat(HeartbeatOptions{})
	h.sent = 1_000_000
	if at, ok := h.Observe(append(h.head(3), "1000000"...)); !ok || !at.Equal(time.Unix(1, 0)) {
		t.Errorf("an old one: %v %v", at, ok)
	}
	if _, ok := h.Observe(append(h.head(1_000_000), "2000000"...)); !ok {
		t.Error("the newest does not count")
	}
}

// With a synchronous standby that never answers, other commits hang; heartbeats
// must not.
func TestHeartbeatDoesNotWaitForAStandby(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	db := servertest.NewDatabase(t, server, "sync")
	db.Exec(t, "CREATE PUBLICATION pub", createSlotSQL("s"), "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
	defer db.Exec(t, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
	conn := controlConn(t, db.URL)
	began := time.Now()
	h := startHeartbeat(t, db.URL, HeartbeatOptions{Interval: 20 * time.Millisecond})
	contents := waitForHeartbeats(t, conn, "s", 3)
	if d := time.Since(began); d >= heartbeatTimeout {
		t.Errorf("three heartbeats took %s: each waited until it was given up", d)
	}
	if _, ok := h.Observe(contents[2]); !ok {
		t.Error("it does not count")
	}
}

func TestHeartbeatSurvivesTheServersAbsence(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{Durable: true})
	db := servertest.NewDatabase(t, server, "beats")
	db.Exec(t, "CREATE PUBLICATION pub", createSlotSQL("s"))
	h := startHeartbeat(t, db.URL, HeartbeatOptions{Interval: 20 * time.Millisecond, StaleAfter: 400 * time.Millisecond})
	if _, ok := h.Observe(waitForHeartbeats(t, controlConn(t, db.URL), "s", 1)[0]); !ok {
		t.Fatal("the first does not count")
	}
	if err := server.Stop(t.Context(), localserver.Immediate); err != nil {
		t.Fatal(err)
	}
	s := waitForStatus(t, func() Status {
		s := h.Status()
		s.OK = s.OK || !strings.Contains(s.Reason, "connect to the source") // wait for the cause to be known
		return s
	}, false)
	if s.Fix == "" || !strings.Contains(s.Reason, "no heartbeat has come back") {
		t.Errorf("%+v", s)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn := controlConn(t, db.URL)
	waitForStatus(t, func() Status {
		for _, c := range heartbeatsIn(t, conn, "s") {
			h.Observe(c)
		}
		return h.Status()
	}, true)
}

func TestHeartbeatOnAReadOnlyRole(t *testing.T) {
	db, conn, slot := heartbeatSlot(t)
	roleURL := createRole(t, db, "_ro", "")
	db.Exec(t, `ALTER ROLE "`+db.Name+`_ro" SET default_transaction_read_only = on`)
	startHeartbeat(t, roleURL, HeartbeatOptions{Interval: time.Hour})
	waitForHeartbeats(t, conn, slot, 1)
}

func TestHeartbeatWithoutInterval(t *testing.T) {
	h := NewHeartbeat(HeartbeatOptions{Logger: controlLogger(t)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Run(ctx); err != nil {
		t.Error(err)
	}
	h.arrived = h.arrived.Add(-time.Hour)
	if !h.Status().OK {
		t.Error("heartbeats are off, and missed")
	}
}

func BenchmarkHeartbeatObserve(b *testing.B) {
	h := NewHeartbeat(HeartbeatOptions{})
	h.sent = 1
	content := append(h.head(1), "1000000"...)
	for b.Loop() {
		if _, ok := h.Observe(content); !ok {
			b.Fatal("does not count")
		}
	}
}

// Whatever a role puts into a message, nothing but what we sent counts, and
// nothing panics.
func FuzzHeartbeatObserve(f *testing.F) {
	h := NewHeartbeat(HeartbeatOptions{})
	h.sent = 5
	for seq := range uint64(7) {
		f.Add(append(h.head(seq), "1700000000000000"...))
	}
	f.Add([]byte("1 0000000000000001 00000000000000000000000000000000 1"))
	f.Fuzz(func(t *testing.T, content []byte) {
		seq, at, ok := h.parse(content)
		if ok && !bytes.Equal(content[:len(h.head(seq))], h.head(seq)) {
			t.Errorf("%q counts as heartbeat %d of %v", content, seq, at)
		}
		if at, ok := h.Observe(content); ok && (seq < 1 || seq > 5) {
			t.Errorf("%q counts as of %v", content, at)
		}
	})
}

// A clock may be set while a session lasts, so each heartbeat tells the source's.
func TestHeartbeatTellsTheSourcesTime(t *testing.T) {
	db, _, _ := heartbeatSlot(t)
	told := make(chan [3]time.Time)
	ctx := t.Context()
	startHeartbeat(t, db.URL, HeartbeatOptions{Interval: time.Millisecond, OnTime: func(theirs, asked, answered time.Time) {
		select {
		case told <- [3]time.Time{asked, theirs, answered}:
		case <-ctx.Done():
		}
	}})
	for range 2 {
		at := <-told
		if at[1].Before(at[0].Add(-time.Millisecond)) || at[1].After(at[2].Add(time.Millisecond)) {
			t.Errorf("asked at %v, told %v, answered at %v", at[0], at[1], at[2])
		}
	}
}

// What the fix names has to be there: the function's arguments differ by version.
func TestHeartbeatNamesTheRightThatItLacks(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, `DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
		EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f); END LOOP; END $$`)
	conn := controlConn(t, createRole(t, db, "_beats", ""))
	h := NewHeartbeat(HeartbeatOptions{})
	var refused *ConfigError
	if err := h.send(t.Context(), conn); !errors.As(err, &refused) || refused.Fix == "" {
		t.Fatalf("%v", err)
	}
	db.Exec(t, refused.Fix)
	if err := h.send(t.Context(), conn); err != nil {
		t.Errorf("after %s: %v", refused.Fix, err)
	}
	if grant, err := HeartbeatGrant(t.Context(), conn); err != nil || grant != "" {
		t.Errorf("%q, %v: nothing is missing", grant, err)
	}
}
