package consistency

import (
	"testing"
	"time"
)

// The judge must accuse nobody who may be right, and everybody who cannot be.
func TestJudge(t *testing.T) {
	const ms = time.Millisecond
	h := newHistory(4)
	// Row 0: state 1 from the start, 2 between 100 and 110 ms, 3 sent at 300, on its way.
	h.rows[0].writes = []write{{}, {100 * ms, 110 * ms}, {300 * ms, unset}}
	// Row 3 is away in each third state.
	h.rows[3].writes = []write{{}, {100 * ms, 110 * ms}, {200 * ms, 210 * ms}, {300 * ms, 310 * ms}}
	row0, row3 := part{row: 0}, part{row: 3}
	name0 := part{row: 0, byName: true, name: 0} // state 1 only: 2 and 3 have the other name
	for _, c := range []struct {
		what         string
		p            part
		shown        int64
		from, to     time.Duration
		stale, never bool
	}{
		{"before it was replaced", row0, 1, 50 * ms, 60 * ms, false, false},
		{"began before, ended long after it was replaced", row0, 1, 90 * ms, 900 * ms, false, false},
		{"within the budget", row0, 1, 150 * ms, 900 * ms, false, false},
		{"exactly at the budget's end", row0, 1, 160 * ms, 161 * ms, false, false},
		{"after the budget", row0, 1, 161 * ms, 162 * ms, true, false},
		{"of a state whose successor has not returned", row0, 2, 900 * ms, 901 * ms, false, false},
		{"the newest", row0, 3, 301 * ms, 302 * ms, false, false},
		{"before it was sent", row0, 3, 150 * ms, 299 * ms, true, true},
		{"never was", row0, 9, 1 * ms, 900 * ms, true, true},
		{"absent, and never was", row0, 0, 1 * ms, 900 * ms, true, true},
		{"absent while it is", row3, 0, 220 * ms, 230 * ms, false, false},
		{"absent before it was", row3, 0, 20 * ms, 30 * ms, true, true},
		{"absent, the budget after it came back", row3, 0, 400 * ms, 410 * ms, true, false},
		{"its last state", row3, 4, 900 * ms, 910 * ms, false, false},
		{"another name, absent", name0, 0, 200 * ms, 210 * ms, false, false},
		{"another name, still there", name0, 1, 200 * ms, 210 * ms, true, false},
	} {
		j := h.judge(c.p, c.shown, c.from, c.to, 50*ms)
		if j.stale != c.stale || j.never != c.never {
			t.Errorf("%s: stale %v, never %v, want %v, %v (%s)", c.what, j.stale, j.never, c.stale, c.never, j.reason)
		}
	}
}
