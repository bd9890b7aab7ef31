package daemon

import (
	"context"
	"slices"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

const (
	// purgeLook is how often it is looked whether something is to be purged.
	purgeLook = 100 * time.Millisecond
	// purgeReport is how often a purge that goes on is told of.
	purgeReport = 30 * time.Second
)

// purge removes what was cached of families before they were followed, until ctx ends. Which
// those are stands in Redis, so that another attachment goes on with it: with the families
// that are not done, from their begin.
func (s *stamper) purge(ctx context.Context) error {
	pause := newBackOff()
	for {
		next := purgeLook
		err := s.purgeNow(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case endsSession(err):
			s.leave(err)
			return nil
		case err != nil:
			next = pause.NextBackOff()
		default:
			pause.Reset()
		}
		s.d.chore(s.checks, chorePurge, err)
		if !sleep(ctx, next) {
			return nil
		}
	}
}

// purgeNow removes what there is to remove.
func (s *stamper) purgeNow(ctx context.Context) error {
	plan := s.d.plan.Load()
	stamps := map[string]string{} // under which a family's purge is done
	var families []*mapping.Family
	s.mu.Lock()
	for _, name := range s.purging {
		if f, ok := plan.Family(name); ok {
			families = append(families, f)
			stamps[name] = s.published.Families[name].Stamp
		}
	}
	s.mu.Unlock()
	s.d.metrics.purging.Set(float64(len(families)))
	if len(families) == 0 {
		return nil
	}
	failpoint.Hold(ctx, failpoint.PurgingBehind)
	began := time.Now()
	reported := began
	removed, err := s.d.sink.PurgeBehind(ctx, families, func(removed int64) {
		if time.Since(reported) >= purgeReport {
			reported = time.Now()
			s.d.log.Info("purging", "families", len(families), "removed", removed)
		}
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(s.purging), func(name string) bool {
		stamp, ok := stamps[name]
		return ok && stamp == s.published.Families[name].Stamp // it has not begun anew meanwhile
	})
	if err := s.d.sink.Purged(ctx, sink.Stamps{Revision: s.published.Revision, Purging: left}); err != nil {
		return err
	}
	s.purging = left
	s.d.metrics.purging.Set(float64(len(left)))
	s.d.log.Info("purged: nothing is left that was cached before the families were followed", "families", len(families)-len(left), "removed", removed,
		"took", time.Since(began).Round(time.Millisecond))
	return nil
}
