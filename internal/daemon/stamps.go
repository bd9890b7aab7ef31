package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

const (
	// stampPause is between two looks whether stamps may be published.
	stampPause = 10 * time.Millisecond
	// stampInterval is how often it is looked whether the stamps are still in Redis, and
	// whether the plan is another one.
	stampInterval = 100 * time.Millisecond
	// stampsLate is when it is told that stamps have to wait for open transactions.
	stampsLate = 5 * time.Second
)

// stamper tells readers since when each family is followed (see mapping.Stamps): whatever was
// cached before is refused by them from then on, at once. What is left of it is removed behind that, at
// a limited rate, for memory and for readers that do not look.
//
// A family that begins to be followed, for whatever reason, goes through three steps:
//
//  1. Its stamp is withdrawn, before a transaction is mapped in the new way: what readers have
//     cached under it would not be removed any more. They read the source.
//  2. The receiver takes the new plan. From here on each transaction that it gets is followed.
//  3. The new stamp is published, when all that the receiver did not get, or mapped as before,
//     is visible to everybody. So what a reader loads under the new stamp has all of that.
//
// For the third, position and heartbeats prove nothing: a commit that is in the log, and passed by the
// slot, may not be visible for as long as a standby takes to confirm it; and a
// transaction that was open while its table came into the publication is sent without the
// changes that it had made before. In both cases it was running when the second step was done. So a
// transaction id is taken then, and the stamp waits until all that have a lower one have ended. That is what making a
// slot waits for, too. Only transactions that write count.
//
// What is not followed yet is not in the text that is published. So whoever attaches next, also
// with another file, finds from the text alone which families it has to begin with: those whose
// entry is not exactly its own. A stamp is never used twice.
//
// It belongs to a session.
type stamper struct {
	d      *daemon
	checks *checks
	epoch  replication.Epoch
	leave  context.CancelCauseFunc
	gap    bool // readers have been told of one: nothing is to be called ok before step 3

	withdrawn atomic.Pointer[following]    // step 1 is done for it
	switched  atomic.Pointer[mapping.Plan] // step 2

	mu        sync.Mutex // of who writes to Redis
	published mapping.Stamps
	purging   []string // families, in the published order

	asking sync.Mutex // of who asks the source, and acts upon what it says
	source *replication.QueryConn

	// Of step 3, for what is followed since the last step 1.
	of    *following // that next was taken for
	next  uint64     // a transaction id that was given out after step 2
	sent  lsn.LSN
	since time.Time
}

// following is what stamps are published for: a plan, and the types of the columns that its keys
// are made of.
type following struct {
	plan    *mapping.Plan
	types   mapping.KeyTypes
	follows map[string]string
}

// attachStamps takes step 1 for the plan that this attachment begins with. resumed says that nothing
// was missed by what was followed so far.
func (d *daemon) attachStamps(ctx context.Context, epoch replication.Epoch, resumed bool) (*stamper, error) {
	s := &stamper{d: d, checks: d.checks, epoch: epoch, gap: !resumed}
	if resumed {
		stored, err := d.sink.LoadStamps(ctx)
		if err != nil {
			return nil, err
		}
		if stored != nil {
			s.published = *stored
		}
		known, _ := d.sink.Known()
		s.purging = known.Purging
	}
	plan := d.plan.Load()
	if err := s.follow(ctx, plan); err != nil {
		s.close(ctx)
		return nil, err
	}
	s.switched.Store(plan)
	d.settling.Store(s.gap)
	return s, nil
}

// close gives the connection back.
func (s *stamper) close(ctx context.Context) {
	s.asking.Lock()
	defer s.asking.Unlock()
	s.hangUp(ctx)
}

// run takes the steps, and looks after what is published, until ctx ends.
func (s *stamper) run(ctx context.Context) error {
	pause := newBackOff()
	for {
		next := stampInterval
		done, err := s.step(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case endsSession(err):
			s.leave(err)
			return nil
		case err != nil:
			next = pause.NextBackOff()
		case !done:
			next = stampPause
		default:
			pause.Reset()
		}
		s.d.chore(s.checks, choreStamps, err)
		if !sleep(ctx, next) {
			return nil
		}
	}
}

// endsAttachment says whether Redis has to be attached to anew: it is another one, or another
// process's, and trying again would not help.
func endsAttachment(err error) bool {
	return errors.Is(err, sink.ErrSuperseded) || errors.Is(err, sink.ErrNodeChanged) || errors.Is(err, sink.ErrNotAttached)
}

func endsSession(err error) bool {
	return endsAttachment(err) ||
		errors.Is(err, replication.ErrSourceChanged) || err != nil && replication.RefusesSessions(err)
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// step does what can be done now. done says that nothing is waited for.
func (s *stamper) step(ctx context.Context) (done bool, err error) {
	plan := s.d.plan.Load()
	if !s.ready(plan) {
		if err := s.follow(ctx, plan); err != nil {
			return false, err
		}
	}
	f := s.withdrawn.Load()
	if s.switched.Load() != plan {
		return false, nil // the receiver takes it before its next transaction
	}
	pending := s.pending(plan)
	if len(pending) > 0 {
		visible, err := s.visible(ctx, f, pending)
		if err != nil || !visible {
			return false, err
		}
	}
	if len(pending) > 0 || s.gap {
		if granted, err := s.grant(ctx, f, pending); err != nil || !granted {
			return false, err
		}
	}
	s.checks.ok(conditionStamps)
	return true, s.keep(ctx)
}

// withdraw publishes what goes on to be followed as it was so far.
func (s *stamper) withdraw(ctx context.Context, f *following) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	follows := f.follows
	next := mapping.Stamps{Revision: mapping.NewStamp(), Families: map[string]mapping.Stamp{}, Entities: f.plan.EntityTerms(f.types)}
	for name, stamp := range s.published.Families {
		if follows[name] == stamp.Follows { // never empty
			next.Families[name] = stamp
		}
	}
	purging := slices.DeleteFunc(slices.Clone(s.purging), func(name string) bool { return follows[name] == "" })
	if gone := len(s.published.Families) - len(next.Families); gone > 0 || len(purging) < len(s.purging) || s.published.Revision != "" && !maps.Equal(next.Entities, s.published.Entities) {
		s.d.log.Info("families are followed otherwise than before: readers go to the source until all that came before is visible",
			"families", gone, "as_before", len(next.Families))
		if err := s.publish(ctx, next, purging, 0); err != nil {
			return err
		}
	}
	s.withdrawn.Store(f)
	return nil
}

// ready says whether the receiver may take the plan.
func (s *stamper) ready(plan *mapping.Plan) bool {
	f := s.withdrawn.Load()
	return f != nil && f.plan == plan
}

// pending are the families of the plan without a stamp.
func (s *stamper) pending(plan *mapping.Plan) []*mapping.Family {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*mapping.Family
	for _, f := range plan.Families() {
		if _, ok := s.published.Families[f.Name]; !ok {
			list = append(list, f)
		}
	}
	return list
}

// visible says whether all that was running when the plan came into force has ended.
func (s *stamper) visible(ctx context.Context, f *following, pending []*mapping.Family) (bool, error) {
	snapshot, err := s.snapshot(ctx, f)
	if err != nil {
		return false, err
	}
	if snapshot.Past(s.next) {
		if s.checks.ok(conditionStamps) {
			s.d.log.Info("all that was open before the families were followed has ended")
		}
		return true, nil
	}
	if time.Since(s.since) >= stampsLate {
		reason := fmt.Sprintf("reads of %d families go to the source until the transactions have ended that had written and were open when the daemon began to follow them: there are %d",
			len(pending), snapshot.Running(s.next))
		if s.checks.failed(conditionStamps, reason, fixFor(conditionStamps)) {
			s.d.log.Warn(reason, "fix", fixFor(conditionStamps))
		}
	}
	return false, nil
}

// snapshot asks the source what is visible now. The first time after step 1 it also notes how far the log is:
// all that was not followed lies before.
func (s *stamper) snapshot(ctx context.Context, f *following) (snapshot ordering.Snapshot, err error) {
	s.asking.Lock()
	defer s.asking.Unlock()
	if err := s.dial(ctx); err != nil {
		return snapshot, err
	}
	defer func() {
		if err != nil {
			s.hangUp(ctx)
		}
	}()
	if s.of != f {
		next, err := replication.NextXID(ctx, s.source.Conn())
		if err != nil {
			return snapshot, err
		}
		_, rows, err := s.source.Query(ctx, "SELECT pg_catalog.pg_current_wal_insert_lsn()::text", nil, 1)
		if err != nil {
			return snapshot, err
		}
		if s.sent, err = lsn.Parse(string(rows[0][0])); err != nil {
			return snapshot, err
		}
		s.of, s.next, s.since = f, next, time.Now()
	}
	return (querier{s.source, &s.d.pulse.attach}).ReadSnapshot(ctx)
}

// grant publishes stamps for families that had none, and has what was cached before removed. It does not where
// there was another step 1 meanwhile.
func (s *stamper) grant(ctx context.Context, f *following, pending []*mapping.Family) (granted bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.withdrawn.Load() != f {
		return false, nil
	}
	next := mapping.Stamps{Revision: mapping.NewStamp(), Families: maps.Clone(s.published.Families), Entities: f.plan.EntityTerms(f.types)}
	if next.Families == nil {
		next.Families = map[string]mapping.Stamp{}
	}
	purging := slices.Clone(s.purging)
	for _, family := range pending {
		name := family.Name
		next.Families[name] = mapping.Stamp{Stamp: mapping.NewStamp(), Follows: f.follows[name], Terms: family.Terms(f.types)}
		if !slices.Contains(purging, name) {
			purging = append(purging, name)
		}
	}
	if s.gap && s.d.sink.Dedicated() {
		if err := s.insist(ctx, func() error { return s.d.sink.Flush(ctx) }); err != nil {
			return false, err
		}
		purging = nil
	}
	failpoint.Hit(failpoint.Stamping)
	if err := s.publish(ctx, next, purging, s.sent); err != nil {
		return false, err
	}
	s.d.log.Info("families are followed from here on; what was cached before is removed behind it", "families", len(pending), "purging", len(purging))
	if s.gap {
		s.gap = false
		s.d.settling.Store(false)
		if s.checks.ok(conditionGap) {
			s.d.log.Info("gap closed: readers refuse what was cached before")
		}
	}
	return true, nil
}

// publish writes stamps until Redis has acknowledged them: the same ones each time, so that
// it does not matter which attempt was the one.
func (s *stamper) publish(ctx context.Context, next mapping.Stamps, purging []string, sent lsn.LSN) error {
	text, err := next.Encode()
	if err != nil {
		return err
	}
	err = s.insist(ctx, func() error {
		return s.d.sink.PublishStamps(ctx, sink.Stamps{Revision: next.Revision, Text: text, Purging: purging, Sent: sent})
	})
	if err == nil {
		s.published, s.purging = next, purging
	}
	return err
}

// insist tries until it succeeds, the session has to begin anew, or ctx ends.
func (s *stamper) insist(ctx context.Context, try func() error) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := try()
		if endsSession(err) {
			err = backoff.Permanent(err)
		} else if ctx.Err() == nil {
			s.d.chore(s.checks, choreStamps, err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0))
	return err
}

// keep writes what is published again should it be gone.
func (s *stamper) keep(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.published.Revision == "" {
		return nil
	}
	text, err := s.published.Encode()
	if err != nil {
		return err
	}
	return s.d.sink.KeepStamps(ctx, sink.Stamps{Revision: s.published.Revision, Text: text, Purging: s.purging})
}
