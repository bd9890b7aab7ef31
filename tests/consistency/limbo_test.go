package consistency

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"
)

// limbo is a source whose commits wait for a standby that is not there: they are in the
// log, whoever follows that has them, and no session sees them.
type limbo struct {
	s       *stage
	waiting int
	commits sync.WaitGroup
}

// limbo needs a source of the stage's own.
func (s *stage) limbo() *limbo {
	s.t.Helper()
	l := &limbo{s: s}
	s.exec("CREATE TABLE IF NOT EXISTS probe (n int)", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
	s.t.Cleanup(l.commits.Wait)
	// The setting takes effect some time later: commits are sent until one waits. They
	// change no row.
	for l.waiting == 0 {
		done := make(chan struct{})
		l.commits.Go(func() {
			defer close(done)
			l.exec("INSERT INTO probe VALUES (1)")
		})
		s.eventually("a commit passes or waits", func() bool {
			select {
			case <-done:
				return true
			default:
				l.waiting = l.count()
				return l.waiting > 0
			}
		})
	}
	return l
}

func (l *limbo) count() int {
	return query[int](l.s.world, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
}

func (l *limbo) exec(sql string, args ...any) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, l.s.url)
	if err == nil {
		_, err = conn.Exec(ctx, sql, args...)
		closeNow(conn)
	}
	if err != nil {
		l.s.t.Errorf("a commit that waits for a standby: %v", err)
	}
}

// change brings a row into its next state, as far as the log: nobody sees it.
func (l *limbo) change(row int64) {
	l.s.t.Helper()
	n := l.s.history.begin(row)
	sql, args := writeSQL(row, n)
	l.commits.Go(func() {
		l.exec(sql, args...)
		l.s.history.end(row, n)
	})
	l.waiting++
	l.s.eventually("the commit waits", func() bool { return l.count() == l.waiting })
}

// release gives the standby up: all commits become visible, and return.
func (l *limbo) release() {
	l.s.t.Helper()
	l.s.exec("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
	l.commits.Wait()
	l.waiting = 0
}
