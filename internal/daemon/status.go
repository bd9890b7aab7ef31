package daemon

import (
	"cmp"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// progress is how far the daemon is, for those who ask. The goroutines that move it
// store it once a batch or read; nobody waits for anybody.
type progress struct {
	received, commit, applied, confirmed atomic.Uint64
	session                              atomic.Pointer[attachment]
}

// attachment is what a session found at its start.
type attachment struct {
	since  time.Time
	server replication.Server
	epoch  replication.Epoch
	queue  *ordering.Queue
}

// attached begins a session. Positions of another history must not stay.
func (p *progress) attached(setup replication.SetupResult, queue *ordering.Queue, commit, applied lsn.LSN) {
	p.session.Store(&attachment{since: time.Now(), server: setup.Server, epoch: setup.Epoch, queue: queue})
	p.commit.Store(uint64(commit))
	p.applied.Store(uint64(applied))
	p.confirmed.Store(uint64(setup.Slot.ConfirmedLSN))
	p.received.Store(uint64(max(applied, setup.Slot.ConfirmedLSN)))
}

// read is called by the receiver, once for all that a read brought.
func (p *progress) read(received, confirmed lsn.LSN) {
	p.received.Store(max(p.received.Load(), uint64(received)))
	p.confirmed.Store(max(p.confirmed.Load(), uint64(confirmed)))
}

// done is called by the applier, once a batch.
func (p *progress) done(b *ordering.Batch) {
	if at, ok := b.Position(); ok {
		p.commit.Store(uint64(at.CommitLSN))
		p.applied.Store(uint64(at.EndLSN))
	}
}

// Status implements admin.StatusReporter.
func (h *health) Status() admin.Status {
	d := h.d
	s := admin.Status{
		Version: d.o.Version, Commit: d.o.Commit, PID: os.Getpid(), Config: d.o.Config,
		Started: d.started.UTC(), UptimeSeconds: time.Since(d.started).Seconds(),
		Source:    admin.Source{Slot: d.file.Source.Slot.Name, Publication: d.file.Source.Publication.Name, Region: d.file.Source.Region},
		Freshness: h.freshness(),
		Counters:  d.metrics.counters(),
	}
	if a := d.progress.session.Load(); a != nil {
		src := &s.Source
		src.ServerVersion, src.Database, src.Role = a.server.VersionString(), a.server.Database, a.server.Role
		src.SystemID, src.Timeline, src.AttachedSince = a.epoch.SystemID, a.epoch.Timeline, a.since.UTC()
		s.Queue.Invalidations, s.Queue.Bytes = a.queue.Waiting()
		s.Positions = d.positions()
	}
	control, primaries := d.sink.Known()
	s.Redis = admin.Redis{Kind: d.sink.Kind(), State: string(control.State), Reason: control.Reason, Generation: control.Generation, Primaries: []admin.RedisNode{}}
	for _, id := range primaries {
		s.Redis.Primaries = append(s.Redis.Primaries, admin.RedisNode{Addr: id.Addr, RunID: id.RunID})
	}
	return s
}

func (d *daemon) positions() admin.Positions {
	p := &d.progress
	// From the back to the front, so that a position that moves meanwhile does not
	// look as if it were ahead of the one that it follows.
	confirmed, applied, commit := lsn.LSN(p.confirmed.Load()), lsn.LSN(p.applied.Load()), lsn.LSN(p.commit.Load())
	received := max(lsn.LSN(p.received.Load()), applied)
	end := max(d.heartbeat.LogEnd(), received)
	control, _ := d.sink.Known()
	return admin.Positions{
		Settled: control.Settled.String(),
		LogEnd:  end.String(), Received: received.String(), Applied: applied.String(), Commit: commit.String(), Confirmed: confirmed.String(),
		LagBytes: int64(end - applied), UnconfirmedBytes: int64(end - min(confirmed, end)),
	}
}

func (h *health) freshness() admin.Freshness {
	fresh := h.d.fresh.known()
	f := admin.Freshness{Classes: []admin.Class{}}
	if !fresh.IsZero() {
		f.FreshAsOf = fresh.UTC()
		age := max(0, h.d.now().Sub(fresh).Seconds())
		f.LagSeconds = &age
	}
	byName := map[string]int{}
	for _, fam := range h.d.plan.Load().Families() {
		i, ok := byName[fam.Class.Name]
		if !ok {
			i = len(f.Classes)
			byName[fam.Class.Name] = i
			c := class(fam.Class, f.LagSeconds)
			if n, oldest, ok := h.d.sink.Held(fam.Class.Name); ok {
				seconds := oldest.Seconds()
				c.Held, c.HeldOldestSeconds = &n, &seconds
			}
			f.Classes = append(f.Classes, c)
		}
		f.Classes[i].Families++
	}
	slices.SortFunc(f.Classes, func(a, b admin.Class) int {
		return cmp.Or(cmp.Compare(a.StalenessSeconds, b.StalenessSeconds), cmp.Compare(a.Name, b.Name))
	})
	return f
}

func class(c *mapping.Class, lag *float64) admin.Class {
	out := admin.Class{Name: c.Name, StalenessSeconds: c.Staleness.Seconds()}
	if lag != nil {
		within := *lag+c.Hold().Seconds() <= out.StalenessSeconds // as readers judge it
		out.Within = &within
	}
	return out
}

// counters reads the metrics, which are the one place where anything is counted.
func (m *metrics) counters() admin.Counters {
	c := admin.Counters{Widened: map[string]int64{}}
	single := map[string]*int64{
		"transactions_total": &c.Transactions, "rows_total": &c.Rows, "invalidations_total": &c.Invalidations, "applied_total": &c.Applied,
		"lookups_refused_total": &c.LookupsRefused, "queue_full_total": &c.QueueFull,
		"sessions_ended_total": &c.SessionsEnded, "gaps_total": &c.Gaps,
	}
	families, _ := m.registry.Gather() // of a broken collector there is nothing; the others are there
	for _, f := range families {
		name := strings.TrimPrefix(f.GetName(), namespace+"_")
		for _, sample := range f.GetMetric() {
			n := int64(sample.GetCounter().GetValue())
			if sum := single[name]; sum != nil {
				*sum += n // over all labels
			}
			if name == "widened_total" {
				for _, l := range sample.GetLabel() {
					c.Widened[l.GetValue()] += n
				}
			}
		}
	}
	return c
}
