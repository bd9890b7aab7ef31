package daemon

import (
	"context"
	"math"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/time/rate"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// drainInterval is how often it is looked whether something that is held back is due. It
// adds to how late it is applied, and to how old fresh_as_of is.
const drainInterval = 50 * time.Millisecond

// drainer applies what Redis holds back of classes with linger or max_rate: at the deadline
// at the latest, and of a class with a rate from commit + linger on, oldest deadline first, as
// the rate allows. What is due is applied whatever the rate, which is counted: the budget
// is a promise, the rate is a wish. sink/held.go says where it is kept, and why nothing is
// lost.
//
// It belongs to a session: while the daemon is not attached, what is held stays in Redis,
// and so does fresh_as_of, which tells readers.
type drainer struct {
	d        *daemon
	checks   *checks
	leave    context.CancelCauseFunc
	limiters map[string]*rate.Limiter // by class
}

func newDrainer(d *daemon, c *checks, leave context.CancelCauseFunc) *drainer {
	return &drainer{d: d, checks: c, leave: leave, limiters: map[string]*rate.Limiter{}}
}

// run makes a pass over all that is held at each tick, until ctx ends.
func (w *drainer) run(ctx context.Context) error {
	defer w.d.pulse.drainer.rest()
	tick := time.NewTicker(drainInterval)
	defer tick.Stop()
	pause := newBackOff()
	var notBefore time.Time
	for {
		if !time.Now().Before(notBefore) {
			w.d.pulse.drainer.now()
			err := w.pass(ctx)
			w.d.pulse.drainer.rest()
			switch {
			case ctx.Err() != nil:
				return nil
			case err == nil:
				w.told(nil)
				pause.Reset()
			case endsAttachment(err):
				w.leave(err)
				return nil
			default:
				w.told(err)
				if next := pause.NextBackOff(); next != backoff.Stop {
					notBefore = time.Now().Add(next)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (w *drainer) told(err error) {
	if err == nil {
		if w.checks.ok(conditionHeld) {
			w.d.log.Info("what is held back is applied again")
		}
		return
	}
	err = w.d.precise(err)
	reason, fix := explain(err, conditionHeld)
	if w.checks.failed(conditionHeld, reason, fix) {
		w.d.log.Warn("what is held back is not applied", "error", err)
	}
}

// pass applies all that is due at its begin.
func (w *drainer) pass(ctx context.Context) error {
	plan := w.d.plan.Load()
	classes := heldClasses(plan)
	began, sets := w.d.sink.BeginPass(), w.d.sink.HeldSets()
	if len(sets) == 0 {
		if len(classes) == 0 {
			w.d.fresh.holdsNothing()
			return nil
		}
		w.d.fresh.drainedTo(began) // before anything can be put away
	}
	if err := w.d.sink.KeepHeld(ctx, classes); err != nil {
		return err
	}
	sets = w.d.sink.HeldSets()
	for _, name := range sets {
		if err := w.due(ctx, w.take(plan, name), began); err != nil {
			return err
		}
	}
	w.d.fresh.drainedTo(began)
	// Behind it, so that a large class that may wait does not make others late.
	for _, name := range sets {
		if c := w.class(plan, name); c != nil && c.MaxRate > 0 {
			if err := w.ahead(ctx, c, w.take(plan, name), began); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *drainer) take(plan *mapping.Plan, name string) sink.Take {
	t := sink.Take{Class: name, Plan: plan, Limit: sink.MaxTake}
	if c := w.class(plan, name); c != nil {
		t.Budget = c.Staleness
	}
	return t
}

// class is a held class of the plan, nil for one that is gone.
func (w *drainer) class(plan *mapping.Plan, name string) *mapping.Class {
	for _, f := range plan.Families() {
		if f.Class.Name == name && f.Class.Held() {
			return f.Class
		}
	}
	return nil
}

// due applies what has its deadline by the begin of the pass.
func (w *drainer) due(ctx context.Context, t sink.Take, began time.Time) error {
	t.Due = began
	limiter := w.limiter(w.class(t.Plan, t.Class))
	for {
		got, err := w.d.sink.Drain(ctx, t)
		if err != nil {
			return err
		}
		w.d.pulse.drainer.again()
		if got.Applied == 0 && !got.Lost {
			return nil
		}
		if limiter != nil {
			allowed := min(got.Applied, tokens(limiter))
			limiter.AllowN(time.Now(), allowed)
			w.d.metrics.overRate.WithLabelValues(t.Class).Add(float64(got.Applied - allowed))
		}
	}
}

// ahead applies, as far as the rate allows, what has waited for the class's linger.
func (w *drainer) ahead(ctx context.Context, c *mapping.Class, t sink.Take, began time.Time) error {
	t.Due = began.Add(c.Hold() - c.Linger)
	limiter := w.limiter(c)
	for {
		if t.Limit = min(sink.MaxTake, tokens(limiter)); t.Limit == 0 {
			return nil
		}
		got, err := w.d.sink.Drain(ctx, t)
		if err != nil || got.Applied == 0 {
			return err
		}
		limiter.AllowN(time.Now(), min(got.Applied, tokens(limiter)))
	}
}

func tokens(l *rate.Limiter) int { return max(0, int(l.Tokens())) }

// limiter is that of a class, nil for one without a rate. It lets go what gathers between
// two passes, and no more.
func (w *drainer) limiter(c *mapping.Class) *rate.Limiter {
	if c == nil || c.MaxRate <= 0 {
		return nil
	}
	limit := rate.Limit(c.MaxRate)
	l := w.limiters[c.Name]
	if l == nil || l.Limit() != limit {
		l = rate.NewLimiter(limit, max(1, int(math.Ceil(c.MaxRate*(2*drainInterval).Seconds()))))
		w.limiters[c.Name] = l
		w.d.metrics.overRate.WithLabelValues(c.Name) // shown from the start, with 0
	}
	return l
}

// heldClasses are the plan's classes whose invalidations are held back.
func heldClasses(plan *mapping.Plan) []sink.HeldClass {
	var list []sink.HeldClass
	at := map[string]int{}
	for _, f := range plan.Families() {
		if !f.Class.Held() {
			continue
		}
		i, ok := at[f.Class.Name]
		if !ok {
			i = len(list)
			at[f.Class.Name] = i
			list = append(list, sink.HeldClass{Name: f.Class.Name, Hold: f.Class.Hold()})
		}
		list[i].Families = append(list[i].Families, f.Name)
	}
	return list
}
