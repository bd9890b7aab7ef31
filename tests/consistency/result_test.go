package consistency

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"
)

// result is what one scenario found.
type result struct {
	name string

	mu       sync.Mutex
	reads    int64
	stale    int64
	failed   int64         // reads that returned an error: the source or Redis was away
	loads    int64         // loads from the source
	worst    time.Duration // how long before its read a value had been replaced, at the most
	compared int64         // cached values that were compared with their rows
	wrong    int64         // of these, differed although everything was applied
	examples []string      // of what was wrong
	verdict  string
}

// note takes a read's judgement.
func (r *result) note(c cell, j judgement) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	r.worst = max(r.worst, j.behind)
	if j.stale {
		r.stale++
		r.example("%s: %s", c, j.reason)
	}
}

func (r *result) fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed++
}

func (r *result) loaded() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loads++
}

// compare takes the comparison of a cached value with its row.
func (r *result) compare(key string, cached, row []int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.compared++
	if fmt.Sprint(cached) != fmt.Sprint(row) {
		r.wrong++
		r.example("%s holds %v, the rows are %v", key, cached, row)
	}
}

func (r *result) example(format string, args ...any) {
	if len(r.examples) < 5 {
		r.examples = append(r.examples, fmt.Sprintf(format, args...))
	}
}

// caught says whether check 1 or check 2 has found something.
func (r *result) caught() bool { return r.stale > 0 || r.wrong > 0 }

// wilsonUpper is the upper end of the Wilson 95 % interval of a share: what may still be
// wrong when k of n were seen to be.
func wilsonUpper(k, n int64) float64 {
	if n == 0 {
		return 1
	}
	const z = 1.959964
	p, m := float64(k)/float64(n), float64(n)
	return (p + z*z/(2*m) + z*math.Sqrt(p*(1-p)/m+z*z/(4*m*m))) / (1 + z*z/m)
}

// report is the table of all scenarios.
type report struct{ results []*result }

func (r *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-52s %8s %6s %11s %7s %7s %8s %6s %9s  %s\n", "scenario", "reads", "stale", "stale < 95%", "failed", "loads", "compared", "wrong", "oldest", "verdict")
	var reads, stale int64
	for _, x := range r.results {
		fmt.Fprintf(&b, "%-52s %8d %6d %10.4f%% %7d %7d %8d %6d %9s  %s\n", x.name, x.reads, x.stale, 100*wilsonUpper(x.stale, x.reads),
			x.failed, x.loads, x.compared, x.wrong, x.worst.Round(time.Millisecond), x.verdict)
		if strings.HasPrefix(x.name, "library/") {
			reads, stale = reads+x.reads, stale+x.stale
		}
	}
	if reads > 0 {
		fmt.Fprintf(&b, "library, all scenarios: %d reads, %d stale; with 95 %% confidence fewer than %.5f %% are\n", reads, stale, 100*wilsonUpper(stale, reads))
	}
	return b.String()
}

func TestWilsonUpperBound(t *testing.T) {
	for _, c := range []struct {
		k, n int64
		want float64
	}{
		{0, 0, 1}, {0, 100, .03699}, {1, 10, .40415}, {10, 10, 1}, {50, 100, .59616},
	} {
		if got := wilsonUpper(c.k, c.n); math.Abs(got-c.want) > 1e-4 {
			t.Errorf("%d of %d: %.5f, want %.5f", c.k, c.n, got, c.want)
		}
	}
}
