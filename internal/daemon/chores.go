package daemon

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// The work that goes on beside the stream, of which nobody waits for the outcome: each of it
// that fails twice in a row shows in the condition background, by its name, until it succeeds.
// What has a condition of its own is not among it: the heartbeat, the looks at the catalogs
// and at standbys, what is held back, a reload.
const (
	choreRights  = "the check of what the user of redis.url may do"
	choreControl = "looking after the control hash"
	choreState   = "publishing the state"
	choreSettled = "publishing what is settled"
	choreStamps  = "publishing the families' stamps"
	chorePurge   = "the purge of what was cached before"
	choreCatalog = "noting the state of the catalogs"
	choreStuck   = "taking back that the stream is stuck"
	choreEarly   = "removing keys ahead of their batch"
)

// rightsInterval is how often it is looked whether a right was taken away that nothing has
// needed since.
const rightsInterval = 10 * time.Second

// chore is a piece of that work that fails.
type chore struct {
	name  string
	err   error
	times int // in a row
}

// chore notes how a piece of work went, and reports whether that is news.
func (c *checks) chore(name string, err error) (failed, mended bool) {
	if c == nil {
		return false, false
	}
	c.board.mu.Lock()
	i := slices.IndexFunc(c.chores, func(x chore) bool { return x.name == name })
	switch {
	case err != nil && i < 0:
		c.chores = append(c.chores, chore{name, err, 1})
	case err != nil:
		c.chores[i].err = err
		c.chores[i].times++
		failed = c.chores[i].times == 2
	case i >= 0:
		mended = c.chores[i].times > 1
		c.chores = slices.Delete(c.chores, i, i+1)
	}
	var reasons, fixes []string
	for _, x := range c.chores {
		if x.times < 2 {
			continue
		}
		reason, fix := explain(x.err, conditionBackground)
		reasons = append(reasons, x.name+": "+reason)
		if !slices.Contains(fixes, fix) {
			fixes = append(fixes, fix)
		}
	}
	c.board.mu.Unlock()
	switch {
	case len(reasons) > 0:
		c.failed(conditionBackground, strings.Join(reasons, "; "), strings.Join(fixes, "; and "))
	case err == nil:
		c.ok(conditionBackground)
	}
	return failed, mended
}

// chore notes how a piece of work beside the stream went.
func (d *daemon) chore(c *checks, name string, err error) {
	err = d.precise(err)
	if refusesLogin(err) {
		d.rereadSecrets()
	}
	switch failed, mended := c.chore(name, err); {
	case failed:
		d.log.Warn("work beside the stream fails; it is tried again", "work", name, "error", err)
	case mended:
		d.log.Info("work beside the stream succeeds again", "work", name)
	}
}

// preciseTimeout bounds the question behind an error.
const preciseTimeout = 3 * time.Second

// precise is err with the rights by name that the user of redis.url lacks, if that is what it
// comes of. An answer of the server names one at most, and for a script none.
func (d *daemon) precise(err error) error {
	if !sink.MayLackRights(err) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), preciseTimeout)
	defer cancel()
	if lack := d.sink.CheckRights(ctx, d.plan.Load().Families()); sink.MayLackRights(lack) {
		return lack
	}
	return err
}

// mayRun asks whether the user of redis.url may do all that the mappings need. It comes before
// anything is made on the source: a slot that nobody can work off keeps its log for ever.
func (d *daemon) mayRun(ctx context.Context) error {
	err := d.sink.CheckRights(ctx, d.plan.Load().Families())
	if err != nil {
		d.failing(d.checks, conditionRedis, err)
	}
	return err
}

// controlInterval is how often the control hash is compared with what was written, at most.
const controlInterval = 500 * time.Millisecond

// keepControl looks after the control hash, until ctx ends: what somebody has spoilt there is
// written again also while there is nothing to apply.
func (d *daemon) keepControl(ctx context.Context, c *checks, leave context.CancelCauseFunc) error {
	for sleep(ctx, controlInterval) {
		err := d.sink.Look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case endsAttachment(err):
			leave(err)
			return nil
		}
		d.chore(c, choreControl, err)
	}
	return nil
}

// keepRights asks again and again, until ctx ends.
func (d *daemon) keepRights(ctx context.Context, c *checks) error {
	pause := newBackOff()
	next := rightsInterval
	for sleep(ctx, next) {
		err := d.sink.CheckRights(ctx, d.plan.Load().Families())
		if ctx.Err() != nil {
			return nil
		}
		d.chore(c, choreRights, err)
		if next = rightsInterval; err != nil {
			next = pause.NextBackOff()
		} else {
			pause.Reset()
		}
	}
	return nil
}
