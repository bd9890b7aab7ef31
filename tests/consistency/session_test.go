package consistency

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

// operation of a session on a view of its row.
type operation struct {
	cell  string
	write bool
	n     int64 // the state that was written
}

// register is what a session sees of a cell: what it wrote last. Reads that it makes at
// the same time, in several processes, must all see that.
// registerModel is of one cell.
func registerModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return int64(-1) }, // not known: whatever is read first
		Step: func(state, input, output any) (bool, any) {
			op := input.(operation)
			if op.write {
				return true, op.n
			}
			seen := output.(int64)
			return state.(int64) == -1 || state.(int64) == seen, seen
		},
		DescribeOperation: func(input, output any) string {
			op := input.(operation)
			if op.write {
				return fmt.Sprintf("%s := %s", op.cell, stateName(op.n))
			}
			return fmt.Sprintf("%s is %s", op.cell, stateName(output.(int64)))
		},
	}
}

func byCell(history []porcupine.Operation) map[string][]porcupine.Operation {
	by := map[string][]porcupine.Operation{}
	for _, op := range history {
		c := op.Input.(operation).cell
		by[c] = append(by[c], op)
	}
	return by
}

// describe the end of a history, for who has to find out why.
func describe(ops []porcupine.Operation) string {
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var b strings.Builder
	for _, op := range ops[max(0, len(ops)-40):] {
		fmt.Fprintf(&b, "  %12s to %12s  client %d: %s\n", time.Duration(op.Call), time.Duration(op.Return), op.ClientId, registerModel().DescribeOperation(op.Input, op.Output))
	}
	return b.String()
}

// The model must refuse a read of what was replaced.
func TestRegisterModel(t *testing.T) {
	w := func(from, to, n int64) porcupine.Operation {
		return porcupine.Operation{Input: operation{"c", true, n}, Call: from, Return: to, Output: int64(0)}
	}
	r := func(from, to, n int64) porcupine.Operation {
		return porcupine.Operation{Input: operation{cell: "c"}, Call: from, Return: to, Output: n}
	}
	if !porcupine.CheckOperations(registerModel(), []porcupine.Operation{w(1, 2, 5), r(3, 6, 5), r(4, 5, 5), w(7, 8, 6), r(9, 10, 6)}) {
		t.Error("a right history is refused")
	}
	if porcupine.CheckOperations(registerModel(), []porcupine.Operation{w(1, 2, 5), r(3, 6, 5), w(7, 8, 6), r(9, 10, 5)}) {
		t.Error("a read of what was replaced is taken")
	}
}

// Sessions that have a row each write it, and read it in several processes with the
// write's token, other views of it too.
func sessions(s *stage) {
	d := s.world.start()
	fleet := s.libraries(3)
	s.playSessions(fleet, everyView(), 25)
	s.settle(d)
	s.compareCached()
}

// The same while the daemon stands still: nothing is invalidated, and the cache is
// trusted until it is as old as the budgets. Only the tokens tell the readers.
func sessionsDaemonStopped(s *stage) {
	d := s.world.start()
	fleet := s.libraries(3)
	views := viewsOf(item, listed, lingering, soft)
	rounds := 1
	if longForm() {
		rounds = 4
	}
	for range rounds {
		s.settle(d)
		for _, l := range fleet {
			s.readAll(views, l)
		}
		s.signal(d, syscall.SIGSTOP)
		s.playSessions(fleet, views, 5)
		s.signal(d, syscall.SIGCONT)
	}
	s.settle(d)
	s.compareCached()
}

// A reader with a token has got the old value, and before it decides, the daemon has
// applied the change and the reader's process has learned that. What was learned then proves
// nothing about what was got before.
func tokenAppliedMeanwhile(s *stage) {
	d := s.world.start()
	a := s.newLibrary()
	for i, v := range viewsOf(item, soft) {
		c := cell{view: v, row: int64(4*i + 4)}
		s.see(a, c)
		s.signal(d, syscall.SIGSTOP) // for a moment, so that the old value is there still
		s.change(c.row)
		token, err := cache.TokenAfterCommit(context.Background(), s.conn)
		if err != nil {
			s.t.Fatal(err)
		}
		got := a.pauses.answered("get", plainKey(c))
		out := make(chan outcome, 1)
		go func() {
			shown, err := a.readAt(context.Background(), c, cache.AtLeast(token))
			out <- outcome{shown, err}
		}()
		got.await(s)
		s.signal(d, syscall.SIGCONT)
		s.settle(d)
		// Its process looks at the control hash ten times within the strictest budget.
		looks := a.pauses
		for range 2 {
			look := looks.answered("hmget", "inv:source:{"+s.slot+"}")
			look.await(s)
			close(look.resume)
		}
		close(got.resume)
		if shown := s.finish(out); shown[0] != s.history.latest(c.row) {
			s.t.Errorf("a read of %s with the token of state %d returned %d", c, s.history.latest(c.row), shown[0])
		}
	}
	s.settle(d)
	s.compareCached()
}

func (s *stage) libraries(n int, opts ...cache.Option) []*library {
	s.t.Helper()
	var out []*library
	for range n {
		out = append(out, s.newLibrary(opts...))
	}
	return out
}

// playSessions has eight sessions write their rows so many times, and checks each one's history.
func (s *stage) playSessions(fleet []*library, views []*view, writes int) {
	s.t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range int64(8) {
		wg.Go(func() {
			history, err := s.session(fleet, views, 5*i%s.rows, writes)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				s.t.Errorf("session %d: %v", i, err)
				return
			}
			for cell, ops := range byCell(history) {
				if porcupine.CheckOperationsTimeout(registerModel(), ops, patience) != porcupine.Ok {
					s.t.Errorf("session %d: its history of %s is not linearizable: a read with a token missed the session's own write\n%s", i, cell, describe(ops))
				}
			}
		})
	}
	wg.Wait()
}

func (s *stage) session(fleet []*library, views []*view, row int64, writes int) (history []porcupine.Operation, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.url)
	if err != nil {
		return nil, err
	}
	defer closeNow(conn)
	for range writes {
		from := s.history.now()
		n, err := s.write(ctx, conn, row)
		if err != nil {
			return nil, err
		}
		to := s.history.now()
		token, err := cache.TokenAfterCommit(ctx, conn)
		if err != nil {
			return nil, err
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, v := range views {
			for _, c := range v.cellsOf(row) {
				p := c.parts(s.rows)[0]
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: 0, Input: operation{c.String(), true, p.shows(n)}, Call: int64(from), Output: int64(0), Return: int64(to)})
				mu.Unlock()
				for id, l := range fleet {
					wg.Go(func() {
						from := s.history.now()
						shown, readErr := l.readAt(ctx, c, cache.AtLeast(token))
						to := s.history.now()
						mu.Lock()
						defer mu.Unlock()
						if readErr != nil {
							err = readErr
							return
						}
						s.result.note(c, s.history.judge(p, shown[0], from, to, c.view.budget))
						history = append(history, porcupine.Operation{ClientId: id + 1, Input: operation{cell: c.String()}, Call: int64(from), Output: shown[0], Return: int64(to)})
					})
				}
			}
		}
		wg.Wait()
		if err != nil {
			return nil, err
		}
	}
	return history, nil
}
