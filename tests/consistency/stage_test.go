package consistency

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"
)

// reader reads a cell through a cache.
type reader interface {
	// read returns what the cell shows of each of its rows, see cell.parts. It may be
	// called by many at once. An error means that nothing was learned.
	read(ctx context.Context, c cell) ([]int64, error)
}

// stage is a world with something under test in it.
type stage struct {
	*world
	t      *testing.T
	result *result
	pauses pauses
}

// load is what every reader's loader does: it asks the source, and stops there if the
// scenario says so, which is between having seen the row and storing it.
func (s *stage) load(ctx context.Context, c cell, q querier) ([]int64, error) {
	s.result.loaded()
	shown, err := c.query(ctx, q, s.rows)
	if err != nil {
		return nil, err
	}
	return shown, s.pauses.pass(ctx, c)
}

// look reads and judges. It returns what was shown, for a scenario to look at.
func (s *stage) look(ctx context.Context, r reader, c cell) ([]int64, error) {
	return s.lookWithin(ctx, r, c, c.view.budget)
}

func (s *stage) lookWithin(ctx context.Context, r reader, c cell, budget time.Duration) ([]int64, error) {
	from := s.history.now()
	shown, err := r.read(ctx, c)
	to := s.history.now()
	if err != nil {
		s.result.fail()
		return nil, err
	}
	for i, p := range c.parts(s.rows) {
		s.result.note(c, s.history.judge(p, shown[i], from, to, budget))
	}
	return shown, nil
}

// see is look where an error is the scenario's end.
func (s *stage) see(r reader, c cell) []int64 {
	s.t.Helper()
	shown, err := s.look(context.Background(), r, c)
	if err != nil {
		s.t.Fatalf("read %s: %v", c, err)
	}
	return shown
}

// outcome of a read in the background.
type outcome struct {
	shown []int64
	err   error
}

// start reads in the background.
func (s *stage) start(r reader, c cell) <-chan outcome {
	out := make(chan outcome, 1)
	go func() {
		shown, err := s.look(context.Background(), r, c)
		out <- outcome{shown, err}
	}()
	return out
}

// startUntil reads in the background until a read has come to the pause: one that goes past
// the cache, since the daemon was late just then, does not.
func (s *stage) startUntil(x *pause, r reader, c cell) <-chan outcome {
	s.t.Helper()
	giveUp := time.After(patience)
	for {
		read := s.start(r, c)
		select {
		case <-x.reached:
			return read
		case o := <-read:
			if o.err != nil {
				s.t.Fatalf("read %s: %v", c, o.err)
			}
		case <-giveUp:
			s.t.Fatalf("no read of %s came to where it was to be stopped", c)
		}
	}
}

// finish waits for a read that start began.
func (s *stage) finish(out <-chan outcome) []int64 {
	s.t.Helper()
	select {
	case o := <-out:
		if o.err != nil {
			s.t.Fatal(o.err)
		}
		return o.shown
	case <-time.After(patience):
		s.t.Fatal("a read did not end")
		return nil
	}
}

// pauses stop loads between their query and their fill.
type pauses struct {
	mu    sync.Mutex
	armed map[string][]*pause
}

// pause is one load that is stopped, or will be.
type pause struct {
	reached chan struct{} // closed when the load is there
	resume  chan struct{} // the scenario closes it
}

// next stops the next load of a cell. Called twice, it stops the next two.
func (p *pauses) next(c cell) *pause { return p.nextUntil(c, make(chan struct{})) }

// nextUntil is next with a channel that may be shared by several pauses.
func (p *pauses) nextUntil(c cell, resume chan struct{}) *pause {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed == nil {
		p.armed = map[string][]*pause{}
	}
	x := &pause{reached: make(chan struct{}), resume: resume}
	p.armed[c.String()] = append(p.armed[c.String()], x)
	return x
}

// disarm forgets the pauses that no load has come to.
func (p *pauses) disarm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = nil
}

// pass is called by a load.
func (p *pauses) pass(ctx context.Context, c cell) error {
	p.mu.Lock()
	var x *pause
	if q := p.armed[c.String()]; len(q) > 0 {
		x, p.armed[c.String()] = q[0], q[1:]
	}
	p.mu.Unlock()
	if x == nil {
		return nil
	}
	close(x.reached)
	select {
	case <-x.resume:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await waits until the load is there.
func (x *pause) await(s *stage) {
	s.t.Helper()
	select {
	case <-x.reached:
	case <-time.After(patience):
		s.t.Fatal("the load never got to its pause")
	}
}

// traffic is writers and readers at work, through any failure of the servers, until
// end is called. Readers look at what was written last half of the time: a fill is
// dangerous there.
type traffic struct {
	s      *stage
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	recent atomic.Int64 // the row that was written last
	writes atomic.Int64
	reads  atomic.Int64
}

// Rates that two cores bear beside the servers; what counts is that every row is read
// between its changes, and while it changes.
const (
	writesPerSecond = 200
	readsPerSecond  = 3000
)

// traffic starts writers, who share the rows, and two goroutines of each reader.
func (s *stage) traffic(writers int, views []*view, readers ...reader) *traffic {
	s.t.Helper()
	tr := &traffic{s: s}
	tr.ctx, tr.cancel = context.WithCancel(context.Background())
	s.t.Cleanup(tr.end)
	writing, reading := rate.NewLimiter(writesPerSecond, 10), rate.NewLimiter(readsPerSecond, 100)
	for i := range writers {
		tr.wg.Go(func() { tr.write(int64(i), int64(writers), writing) })
	}
	for i, r := range readers {
		for j := range 2 {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(j)))
			tr.wg.Go(func() { tr.read(r, views, rng, reading) })
		}
	}
	return tr
}

// end stops the traffic. What is under way is finished: every row's state is known then.
func (tr *traffic) end() {
	tr.cancel()
	tr.wg.Wait()
}

// go on for so many more writes and reads.
func (tr *traffic) until(writes, reads int64) {
	tr.s.t.Helper()
	w, r := tr.writes.Load()+writes, tr.reads.Load()+reads
	tr.s.eventually("there is more traffic", func() bool { return tr.writes.Load() >= w && tr.reads.Load() >= r })
}

// write changes the rows that are this writer's, in an order of its own.
func (tr *traffic) write(mine, of int64, limit *rate.Limiter) {
	rng := rand.New(rand.NewPCG(1, uint64(mine)))
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			closeNow(conn)
		}
	}()
	for limit.Wait(tr.ctx) == nil {
		row := mine + of*rng.Int64N((tr.s.rows-mine+of-1)/of)
		n := tr.s.history.begin(row)
		for {
			err := tr.put(&conn, row, n)
			if err == nil {
				break
			}
			if conn != nil {
				closeNow(conn)
				conn = nil
			}
			rest(context.Background(), 20*time.Millisecond)
		}
		tr.s.history.end(row, n)
		tr.recent.Store(row)
		tr.writes.Add(1)
	}
}

// put writes a state. It must succeed in the end, also after the traffic's end: until
// then nobody knows the row's state.
func (tr *traffic) put(conn **pgx.Conn, row, n int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if *conn == nil {
		c, err := pgx.Connect(ctx, tr.s.url)
		if err != nil {
			return err
		}
		*conn = c
	}
	sql, args := writeSQL(row, n)
	_, err := (*conn).Exec(ctx, sql, args...)
	return err
}

func (tr *traffic) read(r reader, views []*view, rng *rand.Rand, limit *rate.Limiter) {
	for limit.Wait(tr.ctx) == nil {
		c := cell{view: views[rng.IntN(len(views))], row: tr.recent.Load()}
		if rng.IntN(2) == 0 {
			c.row = rng.Int64N(tr.s.rows)
		}
		if c.view.byName {
			c.name = rng.Int64N(2)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, err := tr.s.look(ctx, r, c)
		cancel()
		if err != nil {
			rest(tr.ctx, 10*time.Millisecond)
			continue
		}
		tr.reads.Add(1)
	}
}

// rest keeps one who was refused from trying again without end.
func rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
