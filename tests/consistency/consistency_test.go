package consistency

import (
	"slices"
	"strings"
	"testing"
)

// scenario is one story: what is under test, and when it is stopped.
type scenario struct {
	name    string
	long    bool                // too long for `go test ./...`
	options func() worldOptions // nil: shared servers
	run     func(*stage)
}

// TestConsistency runs all scenarios and prints their table.
func TestConsistency(t *testing.T) {
	var all report
	for _, sc := range slices.Concat(libraryScenarios(), controls()) {
		if sc.long && !longForm() {
			continue
		}
		t.Run(sc.name, func(t *testing.T) {
			all.results = append(all.results, play(t, sc))
		})
	}
	t.Logf("\n%s", all.String())
}

// play runs a scenario and judges what it found: a naive control must be caught, the
// library must not.
func play(t *testing.T, sc scenario) *result {
	r := &result{name: sc.name, verdict: "did not finish"}
	o := worldOptions{}
	if sc.options != nil {
		o = sc.options()
	}
	if o.rows == 0 {
		o.rows = 40
	}
	s := &stage{world: newWorld(t, o), t: t, result: r}
	t.Cleanup(func() {
		if t.Failed() {
			for _, e := range r.examples {
				t.Log(e)
			}
		}
	})
	sc.run(s)
	switch naive := strings.HasPrefix(sc.name, "naive/"); {
	case naive && !r.caught():
		t.Error("nothing was found: the harness does not see what it is for")
		r.verdict = "NOT CAUGHT"
	case naive:
		r.verdict = "caught, as it must be"
	case r.caught():
		t.Errorf("%d of %d reads were stale, %d of %d cached values differ from their rows", r.stale, r.reads, r.wrong, r.compared)
		r.verdict = "WRONG"
	case t.Failed():
		r.verdict = "FAILED"
	default:
		r.verdict = "ok"
	}
	return r
}
