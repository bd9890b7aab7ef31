package daemon

import (
	"strings"
	"time"
)

// outageEvery is how often the log says that nothing streams for a reason that it has given.
const outageEvery = 30 * time.Second

// outage is a time in which nothing streams, and what the log has said of it. It belongs to the
// goroutine of attachForever.
type outage struct {
	since, said time.Time
	reasons     map[string]bool
}

// says notes that an attempt has ended for a reason, and decides whether the log says so: of each
// reason once, and after that only now and then, with how long it has been so.
func (o *outage) says(now time.Time, reason string) (lasts time.Duration, news bool) {
	if o.reasons == nil {
		o.since, o.reasons = now, map[string]bool{}
	}
	// Ports and positions in it differ each time.
	reason = strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, reason)
	news = !o.reasons[reason] || now.Sub(o.said) >= outageEvery
	if news {
		o.reasons[reason], o.said = true, now
	}
	return now.Sub(o.since), news
}

// over says that it streams again, and how long it did not; 0 where it always did.
func (o *outage) over(now time.Time) time.Duration {
	if o.reasons == nil {
		return 0
	}
	lasted := now.Sub(o.since)
	*o = outage{}
	return lasted
}
