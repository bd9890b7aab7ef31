package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// attach opens a stream on a real server, waiting while the slot is taken.
func attach(t *testing.T, url, slot string) *Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		s, err := OpenStream(ctx, StreamOptions{URL: url, Slot: slot, Publication: `odd "pub'`, StatusInterval: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
		if err == nil {
			t.Cleanup(func() { s.Close() })
			return s
		}
		if !errors.Is(err, ErrSlotInUse) {
			t.Fatal(err)
		}
	}
}

// transactions reads whole transactions with rows until n have come, and returns the
// inserted ids and the end of the last.
func transactions(t *testing.T, s *Stream, d *decoder.Decoder, n int) (ids []string, end lsn.LSN) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	rows := 0
	for n > 0 {
		if err := s.Fill(ctx); err != nil {
			t.Fatalf("%v, with %d transactions to come", err, n)
		}
		for {
			data, ok, err := s.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			m, err := d.Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			switch m.Kind {
			case decoder.KindBegin:
				rows = 0
			case decoder.KindChange:
				rows++
				ids = append(ids, string(m.Change.New[0].Data))
			case decoder.KindCommit:
				if end = m.Commit.EndLSN; rows > 0 {
					n--
				}
			}
		}
	}
	return ids, end
}

func TestStreamOfARealServer(t *testing.T) {
	for name, url := range map[string]func(*servertest.Database) string{
		"tcp":    func(db *servertest.Database) string { return db.URL },
		"socket": func(db *servertest.Database) string { return db.SocketURL },
	} {
		t.Run(name, func(t *testing.T) {
			db := servertest.Postgres(t)
			slot := db.Name + "_slot"
			db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY)", `CREATE PUBLICATION "odd ""pub'" FOR TABLE t`, createSlotSQL(slot))
			s, d := attach(t, url(db), slot), decoder.New()

			if _, err := OpenStream(t.Context(), StreamOptions{URL: url(db), Slot: slot, Publication: `odd "pub'`}); !errors.Is(err, ErrSlotInUse) {
				t.Errorf("a second stream: %v, want ErrSlotInUse", err)
			}

			db.Exec(t, "INSERT INTO t VALUES (1)", "INSERT INTO t SELECT generate_series(2, 4)", "INSERT INTO t VALUES (5)")
			ids, end := transactions(t, s, d, 3)
			if fmt.Sprint(ids) != "[1 2 3 4 5]" {
				t.Errorf("ids %v", ids)
			}
			s.Confirm(end)
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			conn := controlConn(t, db.URL)
			for confirmed := lsn.LSN(0); confirmed < end; {
				info, found, err := ReadSlot(t.Context(), conn, slot)
				if err != nil || !found {
					t.Fatal(found, err)
				}
				confirmed = info.ConfirmedLSN
			}

			// What was not confirmed comes again after the walsender died.
			db.Exec(t, "INSERT INTO t VALUES (6)")
			if ids, _ := transactions(t, s, d, 1); fmt.Sprint(ids) != "[6]" {
				t.Errorf("ids %v", ids)
			}
			db.Exec(t, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = "+quoteLiteral(slot))
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err := error(nil)
			for err == nil {
				if err = s.Fill(ctx); err == nil {
					for ok := true; ok && err == nil; {
						_, ok, err = s.Next()
					}
				}
			}
			if ctx.Err() != nil {
				t.Fatal("the stream did not notice that its walsender was killed")
			}
			again := attach(t, url(db), slot)
			if ids, _ := transactions(t, again, decoder.New(), 1); fmt.Sprint(ids) != "[6]" {
				t.Errorf("ids %v after attaching again, want the one that was not confirmed", ids)
			}
		})
	}
}

func TestNoSlotToAttachTo(t *testing.T) {
	db := servertest.Postgres(t)
	_, err := OpenStream(t.Context(), StreamOptions{URL: db.URL, Slot: db.Name + "_none", Publication: "p"})
	if err == nil || errors.Is(err, ErrSlotInUse) {
		t.Errorf("error %v", err)
	}
}
