package doctor

import (
	"fmt"
	"time"
)

// skew judges how far another clock is from this machine's. Commit times are compared
// with now, and readers compare what Redis says with their own clocks, so what counts
// is how much of the strictest budget the difference takes.
func (x *examination) skew(whose string, offset, roundTrip time.Duration) {
	// What the question itself took cannot be told from a difference.
	if offset.Abs() <= roundTrip/2 {
		offset = 0
	}
	tolerated := x.toleratedSkew()
	c := Check{Code: "clock", Severity: OK, Subject: whose,
		Message: fmt.Sprintf("its clock is %s from this machine's (asked within %s)", offset.Round(time.Millisecond), roundTrip.Round(10*time.Microsecond))}
	if offset.Abs() > tolerated {
		c.Severity, c.FixKind = Warning, Person
		c.Message += fmt.Sprintf(", more than a quarter of the strictest staleness (%s): lags are measured wrongly, and readers judge freshness wrongly", tolerated)
		c.Fix = "run a time service (chrony, systemd-timesyncd) on every machine"
	}
	x.clock.add(c)
}

// toleratedSkew is a quarter of the strictest class that a family uses.
func (x *examination) toleratedSkew() time.Duration {
	strictest := 4 * time.Second
	for _, f := range x.Plan.Families() {
		strictest = min(strictest, f.Class.Staleness)
	}
	return max(strictest/4, 20*time.Millisecond)
}
