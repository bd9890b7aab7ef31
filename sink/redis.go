package sink

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

const (
	defaultPrefix   = "inv:"
	defaultScanRate = 20000

	// verifyInterval bounds for how long a change that no connection tells of goes
	// unseen: a demotion and promotion, resharding, a cut-off primary.
	verifyInterval = time.Second
)

// Options configures Open.
type Options struct {
	Config     mapping.Redis
	Slot       string // replication slot: names the control hash
	Region     string
	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: metrics are kept but not registered
	OnScan     func()                // called after each page of a purge, which may take long; may be nil
	SourceNow  func() time.Time      // the source's clock, which commit times are of; nil for this machine's
}

// Redis applies batches to one Redis: a server, a sentinel group or a cluster.
//
// Apply, Checkpoint, StartGeneration, Flush and Attach exclude each other and
// are meant for the one goroutine that applies; KeepHeld, Drain and the other methods for
// what is held exclude all of these, and are meant for another one. SetState, SetEpoch,
// SaveCatalog, LoadCatalog, the methods for stamps and PurgeBehind may be called at any time
// from any other.
type Redis struct {
	config     mapping.Redis // its URL may have an older password than login
	endpoint   *endpoint
	login      atomic.Pointer[endpoint] // the same server with today's password, see UpdateLogin
	controlKey string
	stampsKey  string
	prefix     string // of the sink's own keys
	region     string
	slot       string
	dedicated  bool
	log        *slog.Logger
	metrics    *metrics
	scripts    *scripts
	limiter    *rate.Limiter // of what invalidates families
	behind     *rate.Limiter // of purges that nobody waits for
	writer     string        // nonce of this process
	now        func() time.Time
	sourceNow  func() time.Time
	onScan     func()

	backend atomic.Pointer[backend]
	closed  atomic.Bool

	mu       sync.Mutex // the applier
	plan     plan
	members  *ordering.Batch // of an entity's dependents, made when first needed
	news     *stream         // nil when it is switched off
	verified time.Time
	pending  Checkpoint // of the last batch, not yet in Redis
	havePend bool
	marked   map[string]string // in a cluster: what each primary's mark has acknowledged, by address

	// Held invalidations, see held.go; of the applier's lock.
	sets         map[string]*heldSet // in use, by class
	due          *ordering.Batch     // what is being drained, made when first needed
	replayWindow time.Duration
	replayHeld   map[string]bool // cluster: classes whose applied ones are to be applied again
	replayFrom   int64           // those that were applied before it, ms

	shadowMu sync.Mutex
	shadow   Control               // the control hash as this process last knew it
	asked    lsn.LSN               // highest commit LSN that any command of this generation has named as sent, acknowledged or not
	differ   map[string]difference // at the last look, see repair
	nodes    string                // fingerprints of the primaries attached to
	highest  uint32                // highest generation ever seen
}

// Open parses the URL and prepares; it does not connect. A server that is away is
// found out by the first call that needs it.
func Open(o Options) (*Redis, error) {
	e, err := parseURL(o.Config.URL.Reveal())
	if err != nil {
		return nil, &Error{Op: "open", Kind: KindConfiguration, Err: err}
	}
	if o.Slot == "" {
		return nil, &Error{Op: "open", Kind: KindUsage, Err: errors.New("no slot name")}
	}
	prefix, scanRate := o.Config.Prefix, o.Config.ScanRate
	if prefix == "" {
		prefix = defaultPrefix
	}
	if scanRate <= 0 {
		scanRate = defaultScanRate
	}
	logger := o.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, &Error{Op: "open", Kind: KindUsage, Err: err}
	}
	r := &Redis{
		config:     o.Config,
		endpoint:   e,
		prefix:     prefix,
		controlKey: mapping.ControlKey(prefix, o.Slot),
		stampsKey:  mapping.StampsKey(prefix, o.Slot),
		region:     o.Region,
		slot:       o.Slot,
		dedicated:  o.Config.Dedicated,
		log:        logger,
		metrics:    m,
		scripts:    newScripts(),
		limiter:    newScanLimiter(scanRate),
		behind:     newScanLimiter(scanRate),
		writer:     nonce(),
		now:        time.Now,
		sourceNow:  o.SourceNow,
		onScan:     o.OnScan,
		sets:       make(map[string]*heldSet),

		replayWindow: o.Config.ReplayWindow,
		replayHeld:   make(map[string]bool),
	}
	if r.sourceNow == nil {
		r.sourceNow = time.Now
	}
	r.news = newStream(o.Config, prefix, o.Slot, m)
	r.login.Store(e)
	r.backend.Store(r.newBackend())
	return r, nil
}

func newScanLimiter(perSecond int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), max(perSecond/10, scanCount))
}

func (r *Redis) newBackend() *backend {
	return newBackend(&r.login, newGuard(r.scripts, r.metrics.connections.Inc))
}

// Close closes the connections. Calls under way fail.
func (r *Redis) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	return r.backend.Load().close()
}

// Attach makes new connections, takes the nodes they lead to as the ones that
// hold everything acknowledged from here on, and reads the control hash there. It
// is called at the start and after every ErrNodeChanged or ErrSuperseded.
//
// What the Control says is what this node has: after a failover its Applied is
// behind what was acknowledged before, and replay starts there. In a cluster the
// hash speaks for the primary that holds it only; Have and HaveEnd are what every primary
// has, by the marks of those that are not the processes of the last checkpoint (mark.go),
// and Unproved names one that cannot tell. NodesChanged says so of any
// kind of server: what no replay brings back, such as what readers wrote there, may be
// lost. A Control that was not found on a node that changed proves nothing: a gap.
func (r *Redis) Attach(ctx context.Context) (Control, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	be := r.newBackend()
	// New connections only: one to a demoted primary must not be met again.
	if err := r.backend.Swap(be).close(); err != nil {
		r.log.Debug("close the old connections to redis", "error", err)
	}
	if r.closed.Load() {
		return Control{}, wrap("attach", "", "", errors.Join(redis.ErrClosed, be.close()))
	}
	ids, err := be.identify(ctx)
	if err != nil {
		return Control{}, r.fail("attach", "", be.explained(ctx, err))
	}
	for _, id := range ids {
		if id.Role != rolePrimary {
			return Control{}, r.fail("attach", "", notPrimary(id))
		}
	}
	// Read after the identities: should the node change in between, verify finds
	// that it is no longer the one that was sealed.
	c, err := r.load(ctx, be)
	if err != nil {
		return Control{}, r.fail("attach", "", err)
	}
	if err := r.adoptHeld(c.held); err != nil {
		return Control{}, r.fail("attach", "", err)
	}
	clear(r.replayHeld)
	be.guard.seal(ids)
	c.Have, c.HaveEnd = c.Applied, c.End
	if be.cluster != nil {
		if err := be.keepNodes(ctx); err != nil {
			return Control{}, r.fail("attach", "", err)
		}
		if c.Found {
			if err := r.have(ctx, be, ids, &c); err != nil {
				return Control{}, r.fail("attach", "", err)
			}
		}
	}
	if c.Settled > c.End {
		c.Settled = 0 // it was spoilt: what is settled is applied
	}
	r.shadowMu.Lock()
	if c.Generation != r.shadow.Generation {
		r.asked = 0
	}
	r.shadow, r.differ = c, nil
	r.nodes = fingerprints(ids)
	c.NodesChanged = c.Found && c.nodes != "" && c.nodes != r.nodes || c.tookBack
	if be.cluster != nil && c.Found && (c.nodes != r.nodes || c.tookBack) {
		// The slot's own replay does not reach back to what was held for longer.
		r.replayFrom = r.sourceNow().Add(replayMargin).UnixMilli()
		for class := range r.sets {
			r.replayHeld[class] = true
		}
	}
	r.highest = max(r.highest, c.Generation)
	r.shadowMu.Unlock()
	r.havePend = false
	clear(r.marked)
	r.news.attach()
	r.verified = r.now()
	r.metrics.attached.Inc()
	return c, nil
}

// ready returns the backend if batches may go to it now.
func (r *Redis) ready(ctx context.Context) (*backend, error) {
	be := r.backend.Load()
	if !be.guard.sealed() {
		return nil, ErrNotAttached
	}
	if be.guard.stale.Load() || r.now().Sub(r.verified) >= verifyInterval {
		if err := be.verify(ctx); err != nil {
			be.noteReply("", err)
			return nil, err
		}
		if _, err := r.generation(); err == nil {
			if err := r.repair(ctx, be); err != nil {
				return nil, err
			}
		}
		r.verified = r.now()
	}
	return be, nil
}

// generation returns the current one.
func (r *Redis) generation() (uint32, error) {
	r.shadowMu.Lock()
	defer r.shadowMu.Unlock()
	if r.shadow.Generation == 0 {
		return 0, fmt.Errorf("%w: StartGeneration was not called for this control hash", ErrNotAttached)
	}
	return r.shadow.Generation, nil
}

// stream is the head of the version values of this process.
func (r *Redis) stream() string {
	r.shadowMu.Lock()
	defer r.shadowMu.Unlock()
	h := fnv.New32a()
	_, _ = h.Write([]byte(r.shadow.Source.SystemID + "/" + r.slot))
	return hex32(r.shadow.Generation) + hex32(h.Sum32())
}

// fail completes an error and counts it.
func (r *Redis) fail(op, position string, err error) error {
	if err == nil {
		return nil
	}
	err = wrap(op, "", position, err)
	var e *Error
	if errors.As(err, &e) {
		r.metrics.errors.WithLabelValues(e.Kind.String()).Inc()
	}
	return err
}
