package daemon

import (
	"strings"
	"testing"
	"time"
)

// freshnessAt is one on a clock that stands, with a catalog that was seen at a moment.
func freshnessAt(now time.Time, seen *time.Time) *freshness {
	f := &freshness{now: func() time.Time { return now }, budget: func() time.Duration { return time.Second }}
	f.begin()
	f.follow(func() (time.Time, string) { return *seen, "the catalogs wait" })
	return f
}

// What one of the three has not proved, nobody has.
func TestFreshnessIsTheLeastOfAll(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for _, tc := range []struct {
		name                string
		beat, drained, seen time.Time
		holds               bool
		want                time.Time
	}{
		{"nothing", time.Time{}, time.Time{}, time.Time{}, true, time.Time{}},
		{"no heartbeat", time.Time{}, at(5), at(5), true, time.Time{}},
		{"no look", at(5), at(5), time.Time{}, true, time.Time{}},
		{"no pass", at(5), time.Time{}, at(5), true, time.Time{}},
		{"nothing to pass over", at(5), time.Time{}, at(6), false, at(5)},
		{"the heartbeat", at(1), at(2), at(3), true, at(1)},
		{"the pass", at(3), at(1), at(2), true, at(1)},
		{"the look", at(3), at(2), at(1), true, at(1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := freshnessAt(at(100), &tc.seen)
			if !tc.holds {
				f.holdsNothing()
			} else if !tc.drained.IsZero() {
				f.drainedTo(tc.drained)
			}
			got := f.with(tc.beat)
			if !got.Equal(tc.want) || !f.asOf().IsZero() {
				t.Errorf("a batch would prove %v, want %v; before it is applied %v is proved", got, tc.want, f.asOf())
			}
			f.applied(tc.beat, got)
			if !f.asOf().Equal(tc.want) || !f.known().Equal(tc.want) {
				t.Errorf("proved %v, want %v", f.asOf(), tc.want)
			}
			if (f.behind() == "") != !tc.want.IsZero() {
				t.Errorf("behind: %q", f.behind())
			}
		})
	}
}

func TestFreshnessGoesOnAndSaysWhyNot(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	seen := now
	f := freshnessAt(now, &seen)
	f.holdsNothing()
	f.applied(now, f.with(now))
	seen = now.Add(-time.Minute) // a look that proves less than one before: DDL was announced
	if got := f.with(now.Add(time.Second)); !got.Equal(now) {
		t.Errorf("proved %v, and %v before", got, now)
	}
	f.applied(now.Add(2*time.Second), f.with(now.Add(2*time.Second)))
	f.now = func() time.Time { return now.Add(3 * time.Second) }
	if why := f.behind(); !strings.Contains(why, "3s behind, the strictest budget is 1s: the catalogs wait") {
		t.Errorf("behind: %q", why)
	}
	// Something may be held back from now on: what is due is applied no later than the pass.
	seen = now.Add(time.Hour)
	f.drainedTo(now.Add(time.Second))
	if got := f.with(now.Add(5 * time.Second)); !got.Equal(now.Add(time.Second)) {
		t.Errorf("proved %v, want the begin of the pass", got)
	}
	f.begin()
	if f.behind() == "" || !f.asOf().IsZero() || !f.known().Equal(now) {
		t.Errorf("another attachment: %q, %v, %v", f.behind(), f.asOf(), f.known())
	}
}
