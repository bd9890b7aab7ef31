package daemon

import (
	"fmt"
	"sync"
	"time"
)

// freshness is fresh_as_of: the moment, by the source's clock, up to which every change
// that was visible there has been applied to Redis. It is computed here and nowhere else,
// as the minimum of what each watcher has proved in this attachment:
//
//   - the newest heartbeat that is applied, for all that the log says;
//   - the drainer's last complete pass, for what is held back, while something can be;
//   - the catalogs' last look, for what leaves no trace in the log.
//
// It never goes back within an attachment: what was proved once stays true. What an
// earlier attachment has applied proves nothing of the Redis of now.
type freshness struct {
	now    func() time.Time     // by the source's clock
	budget func() time.Duration // the strictest class's; 0 where nothing can be judged

	mu      sync.Mutex
	beat    time.Time // of the newest heartbeat that is applied
	holds   bool      // something can be held back
	drained time.Time // the begin of the drainer's last complete pass
	catalog func() (seen time.Time, why string)
	proved  time.Time // of this attachment
	newest  time.Time // of any attachment: how old the cache is known to be
}

// begin starts an attachment: nothing is proved.
func (f *freshness) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.beat, f.holds, f.drained, f.catalog, f.proved = time.Time{}, true, time.Time{}, nil, time.Time{}
}

// follow takes what tells how far the catalogs are known, and why no further.
func (f *freshness) follow(catalog func() (seen time.Time, why string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.catalog = catalog
}

// drainedTo records that all is applied that was held back and due by a moment.
func (f *freshness) drainedTo(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holds = true
	if at.After(f.drained) {
		f.drained = at
	}
}

// holdsNothing records that no class holds anything back, until drainedTo is called:
// before the first invalidation is put away.
func (f *freshness) holdsNothing() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holds = false
}

// with is what will be proved once a batch is applied, and the newest heartbeat in it,
// if any, with it.
func (f *freshness) with(beat time.Time) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, _ := f.hindmost(later(f.beat, beat))
	return later(f.proved, at)
}

// applied records that a batch is applied, and with it what with has said of it.
func (f *freshness) applied(beat, proved time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.beat = later(f.beat, beat)
	f.proved = later(f.proved, proved)
	f.newest = later(f.newest, f.proved)
}

// hindmost is the oldest of what is proved, zero where a part proves nothing yet, and
// what it waits for.
func (f *freshness) hindmost(beat time.Time) (at time.Time, why string) {
	at, why = beat, "waiting for a heartbeat to come back through the slot"
	if f.holds && f.drained.Before(at) {
		at, why = f.drained, "invalidations that are held back are applied late"
	}
	seen, unseen := time.Time{}, "the catalogs have not been looked at yet"
	if f.catalog != nil {
		seen, unseen = f.catalog()
	}
	if seen.Before(at) {
		at, why = seen, unseen
	}
	return at, why
}

// asOf is what this attachment has proved; zero before the first time.
func (f *freshness) asOf() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.proved
}

// known is the newest moment that any attachment has proved.
func (f *freshness) known() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.newest
}

// behind says why the cache is not known to be within the strictest budget, "" when it is.
func (f *freshness) behind() string { return f.judge(f.asOf()) }

// judge compares a moment up to which the cache is right with the strictest budget.
func (f *freshness) judge(at time.Time) string {
	budget := f.budget()
	if budget == 0 {
		return ""
	}
	f.mu.Lock()
	_, why := f.hindmost(f.beat)
	f.mu.Unlock()
	switch age := f.now().Sub(at); {
	case at.IsZero():
		return "nothing is proved yet: " + why
	case age > budget:
		return fmt.Sprintf("%s behind, the strictest budget is %s: %s", age.Round(time.Millisecond), budget, why)
	}
	return ""
}

// lagSeconds is for the gauge: 0 before the first proof, where the condition says that
// there is none.
func (f *freshness) lagSeconds() float64 {
	at := f.known()
	if at.IsZero() {
		return 0
	}
	return max(0, f.now().Sub(at).Seconds())
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
