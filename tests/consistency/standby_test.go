package consistency

import (
	"context"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// standby is a hot standby of the stage's source.
type standby struct {
	s    *stage
	url  string
	conn *pgx.Conn
}

func (s *stage) newStandby() *standby {
	s.t.Helper()
	server := servertest.Standby(s.t, s.pg, localserver.PostgresOptions{})
	u, err := url.Parse(s.url)
	if err != nil {
		s.t.Fatal(err)
	}
	address := server.DatabaseURL(strings.TrimPrefix(u.Path, "/"))
	return &standby{s: s, url: address, conn: servertest.Connect(s.t, address)}
}

func (b *standby) exec(sql string) {
	b.s.t.Helper()
	if _, err := b.conn.Exec(context.Background(), sql); err != nil {
		b.s.t.Fatalf("%s: %v", sql, err)
	}
}

// stop makes it stand still: what it shows gets older and older.
func (b *standby) stop() {
	b.s.t.Helper()
	b.exec("SELECT pg_wal_replay_pause()")
	b.s.eventually("the standby stands still", func() bool {
		var state string
		return b.conn.QueryRow(context.Background(), "SELECT pg_get_wal_replay_pause_state()").Scan(&state) == nil && state == "paused"
	})
}

func (b *standby) goOn() {
	b.s.t.Helper()
	b.exec("SELECT pg_wal_replay_resume()")
}

// caughtUp waits until it shows what the source does.
func (b *standby) caughtUp() {
	b.s.t.Helper()
	now := b.s.position().String()
	b.s.eventually("the standby has caught up", func() bool {
		var ok bool
		return b.conn.QueryRow(context.Background(), "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", now).Scan(&ok) == nil && ok
	})
}

// Readers load from a standby, which stands still while rows change. What it shows
// then must not be stored.
func standbyStands(s *stage) {
	d := s.world.start()
	b := s.newStandby()
	var fleet []reader
	libs := make([]*library, 2)
	for i := range libs {
		libs[i] = s.newLibrary(cache.WithReplica(s.poolOf(b.url)))
		fleet = append(fleet, libs[i])
	}
	views := viewsOf(item, byName, listed, page)
	s.settle(d)
	b.caughtUp()
	s.eventually("loads run on the standby", func() bool {
		s.unlink("item:4")
		s.wantNow(libs[0], cell{view: views[0], row: 4})
		return libs[0].onStandby.Load() > 0
	})
	for row := range int64(6) {
		b.stop()
		s.change(row)
		s.settle(d)
		for _, l := range libs {
			for _, v := range views {
				for _, c := range v.cellsOf(row) {
					s.wantNow(l, c)
				}
			}
		}
		s.compareCached()
		b.goOn()
	}
	if !longForm() {
		s.wantSettled(d, views, fleet...)
		return
	}
	tr := s.traffic(2, everyView(), fleet...)
	for range 4 {
		b.stop()
		next := elapsed(150 * time.Millisecond)
		s.eventually("it has stood still for a while", next)
		b.goOn()
		tr.until(30, 300)
	}
	s.someTraffic(tr)
	tr.end()
	if libs[0].onStandby.Load()+libs[1].onStandby.Load() < 20 {
		s.t.Error("hardly any load ran on the standby: the scenario proves nothing")
	}
	s.wantSettled(d, everyView(), fleet...)
}
