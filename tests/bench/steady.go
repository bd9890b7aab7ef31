package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
	"github.com/jackc/pgx/v5"
)

// writers is how many connections commit at once; with fewer, a slow commit would
// hold back the rate.
const writers = 8

// steady commits one-row updates at a fixed rate and measures, for each, the time
// from the commit's return to Redis having removed the key (its keyspace
// notification). The bare loop and the daemon take turns.
func (b *bench) steady(ctx context.Context, name string, rate int) error {
	if err := b.rdb.ConfigSet(ctx, "notify-keyspace-events", "Eg").Err(); err != nil {
		return err
	}
	defer b.rdb.ConfigSet(ctx, "notify-keyspace-events", "")
	type result struct {
		p50, p99, p999 float64
		gated          string // p99 of the second removal
	}
	fmt.Printf("\n%s: UPDATE committed to key gone, ms\n\n", name)
	fmt.Println("| transport | loop | p50 | p99 | p99.9 | p50 x bare | p99 x bare | p99 of the second removal, after the gate |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	for _, t := range []struct{ name, url string }{{"TCP", b.pg.URL()}, {"Unix", b.pg.SocketURL()}} {
		var bare, own []result
		for range b.runs {
			for _, daemon := range []bool{false, true} {
				h, second, err := b.steadyRun(ctx, t.url, rate, daemon)
				if err != nil {
					return err
				}
				q := func(p float64) float64 { return float64(h.ValueAtQuantile(p)) / 1e3 }
				r := result{q(50), q(99), q(99.9), second}
				if daemon {
					own = append(own, r)
				} else {
					bare = append(bare, r)
				}
			}
		}
		mid := func(rs []result, f func(result) float64) float64 {
			vs := make([]float64, len(rs))
			for i, r := range rs {
				vs[i] = f(r)
			}
			slices.Sort(vs)
			return vs[len(vs)/2]
		}
		p50, p99, p999 := func(r result) float64 { return r.p50 }, func(r result) float64 { return r.p99 }, func(r result) float64 { return r.p999 }
		fmt.Printf("| %s | bare | %.2f | %.2f | %.2f | | | |\n", t.name, mid(bare, p50), mid(bare, p99), mid(bare, p999))
		fmt.Printf("| %s | cdc-invalidator | %.2f | %.2f | %.2f | %.2f | %.2f | %s |\n", t.name, mid(own, p50), mid(own, p99), mid(own, p999),
			mid(own, p50)/mid(bare, p50), mid(own, p99)/mid(bare, p99), own[len(own)-1].gated)
	}
	return nil
}

func (b *bench) steadyRun(ctx context.Context, url string, rate int, daemon bool) (_ *hdr.Histogram, second string, err error) {
	b.slots++
	slot := fmt.Sprintf("bench_%d", b.slots)
	if !daemon {
		stop, err := b.startBare(ctx, slot, url)
		if err != nil {
			return nil, "", err
		}
		defer func() { stop(); b.dropSlot(slot) }()
		h, err := b.load(ctx, rate)
		return h, "", err
	}
	p, err := b.startDaemon(ctx, slot, url)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if stopErr := p.stop(); err == nil {
			err = stopErr
		}
		b.dropSlot(slot)
	}()
	if err := b.waitApplied(ctx, p, slot, 0); err != nil {
		return nil, "", err
	}
	h, err := b.load(ctx, rate)
	if err != nil {
		return nil, "", err
	}
	second, err = p.gated(0.99)
	return h, second, err
}

// dropSlot waits until the slot's walsender has noticed that its client is gone.
func (b *bench) dropSlot(slot string) {
	const sql = `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active`
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if tag, err := b.conn.Exec(context.Background(), sql, slot); err == nil && tag.RowsAffected() == 1 {
			return
		}
	}
	fmt.Fprintln(os.Stderr, "bench: slot", slot, "stays")
}

func (b *bench) startBare(ctx context.Context, slot, url string) (stop func(), err error) {
	if _, err := b.conn.Exec(ctx, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, bareCommand, "-source", url, "-slot", slot, "-redis", b.redis.URL())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil && err != io.EOF {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}, nil
}

// load writes at the rate and returns the times in microseconds. A writer sets
// the key, commits, and notes the time; the subscriber notes when it is gone.
func (b *bench) load(ctx context.Context, rate int) (*hdr.Histogram, error) {
	sub := b.rdb.Subscribe(ctx, "__keyevent@0__:del")
	defer sub.Close()
	if _, err := sub.Receive(ctx); err != nil {
		return nil, err
	}
	n := int(b.duration.Seconds() * float64(rate))
	n -= n % writers
	committed, gone := make([]time.Time, n), make([]time.Time, n)
	seen := make(chan struct{})
	go func() {
		defer close(seen)
		for left := n; left > 0; {
			m, err := sub.ReceiveMessage(ctx)
			if err != nil {
				return
			}
			now := time.Now()
			id, err := strconv.Atoi(strings.TrimPrefix(m.Payload, "user:"))
			if err != nil || id < 1 || id > n || !gone[id-1].IsZero() {
				continue
			}
			gone[id-1] = now
			left--
		}
	}()
	if err := b.fill(ctx, workload{rows: n}); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	errs := make(chan error, writers)
	start := time.Now().Add(50 * time.Millisecond)
	for w := range writers {
		wg.Go(func() { errs <- b.write(ctx, w, rate, start, committed) })
	}
	wg.Wait()
	for range writers {
		if err := <-errs; err != nil {
			return nil, err
		}
	}
	select {
	case <-seen:
	case <-time.After(30 * time.Second):
		return nil, fmt.Errorf("not every key was removed within 30 s of the last commit")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	h := hdr.New(1, 60_000_000, 3)
	for i := range n {
		// A key may be gone before its writer has heard of the commit.
		if err := h.RecordValue(max(1, gone[i].Sub(committed[i]).Microseconds())); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// write is an open loop: a late commit does not push the later ones back, so that
// a stall is not hidden (coordinated omission).
func (b *bench) write(ctx context.Context, w, rate int, start time.Time, committed []time.Time) error {
	conn, err := pgx.Connect(ctx, b.pg.SocketURL())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	const sql = `UPDATE users SET balance = balance + 1 WHERE id = $1`
	if _, err := conn.Prepare(ctx, sql, sql); err != nil {
		return err
	}
	for i := w; i < len(committed); i += writers {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(rate))
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
		}
		if _, err := conn.Exec(ctx, sql, i+1); err != nil {
			return err
		}
		committed[i] = time.Now()
	}
	return nil
}
