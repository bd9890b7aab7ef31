package demo

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/jackc/pgx/v5"
	dto "github.com/prometheus/client_model/go"

	"github.com/cdc-invalidator/cdc-invalidator/internal/daemon"
)

// latency gathers what the daemon reports; it is called by the daemon and read by the
// display.
type latency struct {
	mu           sync.Mutex
	histogram    *hdrhistogram.Histogram // us, from commit to applied
	transactions int
	rows         int
	keys         int
}

func newLatency() *latency {
	return &latency{histogram: hdrhistogram.New(1, time.Hour.Microseconds(), 3)}
}

func (l *latency) applied(a daemon.Applied) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.transactions += a.Stats.Transactions
	l.rows += a.Stats.Rows
	l.keys += a.Keys
	for _, t := range a.Txns {
		// A clock that was set back must not make it fail.
		_ = l.histogram.RecordValue(max(1, a.Latency(t).Microseconds()))
	}
}

// Latencies from a transaction's commit to the acknowledgement that its keys are
// deleted.
type Latencies struct{ P50, P99, Max time.Duration }

func (l *latency) read() (transactions, rows, keys int, _ Latencies) {
	l.mu.Lock()
	defer l.mu.Unlock()
	us := func(v int64) time.Duration { return time.Duration(v) * time.Microsecond }
	return l.transactions, l.rows, l.keys, Latencies{
		us(l.histogram.ValueAtQuantile(50)), us(l.histogram.ValueAtQuantile(99)), us(l.histogram.Max()),
	}
}

// Report is the result of a run.
type Report struct {
	Worked       time.Duration // how long the writers worked
	Transactions int           // that the daemon received: those of the writers, and its own heartbeats
	Rows         int
	Keys         int // invalidated
	Latency      Latencies
	Committed    int64 // transactions of the writers
	Undone       int64
	Reads        int64
	Misses       int64 // reads that had to wait for a load, their own or another one's
	Loads        int64
	Refused      int64 // fills of old values that the lease stopped

	Checked, CheckedStale               int // reads compared with the row's past, see check
	ControlChecked, ControlCheckedStale int

	Cached, Stale               int    // with invalidation
	ControlCached, ControlStale int    // the same entries without
	Unknown                     int    // keys that the comparison does not cover
	Example                     string // of a stale value
}

// OK says whether the run proves what it is to prove.
func (r *Report) OK() bool {
	return r.Cached > 0 && r.Stale == 0 && r.Unknown == 0 && r.CheckedStale == 0
}

func (d *demo) report(ctx context.Context, conn *pgx.Conn, worked time.Duration) (*Report, error) {
	d.progress.update("Comparing every cached value with its row")
	with, looked, err := compare(ctx, d.rdb, conn, d.entries, false)
	if err != nil {
		return nil, err
	}
	without, lookedControl, err := compare(ctx, d.rdb, conn, d.entries, true)
	if err != nil {
		return nil, err
	}
	unknown, err := leftovers(ctx, d.rdb, d.file.Redis.Prefix, d.entries, looked, lookedControl)
	if err != nil {
		return nil, fmt.Errorf("list the keys in Redis: %w", err)
	}
	d.progress.clear()
	r := &Report{
		Worked:    worked,
		Committed: d.writes.committed.Load(), Undone: d.writes.undone.Load(),
		Reads: d.reads.total.Load(), Loads: d.reads.loads.Load(),
		Misses: d.counted("cache_reads_total", "miss"), Refused: d.counted("cache_fills_refused_total", "revoked"),
		Checked: d.checked.reads, CheckedStale: d.checked.stale,
		ControlChecked: d.checked.controlReads, ControlCheckedStale: d.checked.controlStale,
		Cached: with.cached, Stale: with.stale, Example: with.example,
		ControlCached: without.cached, ControlStale: without.stale,
		Unknown: unknown,
	}
	if r.Example == "" {
		r.Example = d.checked.example
	}
	r.Misses -= d.missesBefore
	r.Transactions, r.Rows, r.Keys, r.Latency = d.latency.read()
	return r, nil
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer) {
	fmt.Fprintf(w, `
  %.1f s of work
    writers          %s transactions committed, %s rolled back
    readers          %s reads, %.1f %% hits; %.2f loads per miss; %s late fills refused
    daemon           %s transactions, %s rows, %s keys invalidated
    commit to deleted  p50 %s   p99 %s   max %s

  reads whose value had been replaced for longer than allowed, of those checked
    with cdc-invalidator    stale: %s of %s
    without                 stale: %s of %s (%.1f %%)

  every cached value compared with its row
    with cdc-invalidator    stale: %s of %s
    without                 stale: %s of %s (%.1f %%)

`,
		r.Worked.Seconds(),
		group(r.Committed), group(r.Undone),
		group(r.Reads), percent(r.Reads-r.Misses, r.Reads), ratio(r.Loads, r.Misses), group(r.Refused),
		group(int64(r.Transactions)), group(int64(r.Rows)), group(int64(r.Keys)),
		millis(r.Latency.P50), millis(r.Latency.P99), millis(r.Latency.Max),
		group(int64(r.CheckedStale)), group(int64(r.Checked)),
		group(int64(r.ControlCheckedStale)), group(int64(r.ControlChecked)), percent(int64(r.ControlCheckedStale), int64(r.ControlChecked)),
		group(int64(r.Stale)), group(int64(r.Cached)),
		group(int64(r.ControlStale)), group(int64(r.ControlCached)), percent(int64(r.ControlStale), int64(r.ControlCached)))
	if r.Stale > 0 || r.CheckedStale > 0 {
		fmt.Fprintf(w, "  STALE: %s\n", r.Example)
	}
	if r.Unknown > 0 {
		fmt.Fprintf(w, "  %d keys in Redis were not compared: the result is not complete\n", r.Unknown)
	}
}

// counted is the sum of one of the library's counters, over all families.
func (d *demo) counted(name, label string) int64 {
	families, err := d.metrics.Gather()
	if err != nil {
		return 0 // cannot happen: nothing but the library registers there
	}
	sum := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == label }) {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return int64(sum)
}

func ratio(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

func percent(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}

func millis(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

// group separates thousands.
func group(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
