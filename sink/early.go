package sink

import (
	"context"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Bounds of what waits to be removed early. What does not fit is left to the
// batch, which removes it anyway.
const (
	earlyKeys  = 512
	earlyBytes = 64 << 10
)

// Early removes keys at once, while their batch still waits at the visibility
// gate. It saves the gate's question from every key's latency and proves nothing: a
// reader may fill the old row back until the change is visible, and an error is
// only counted. The batch removes the keys again, after the gate, and that is
// what counts. Removing a key that is not there costs Redis next to nothing.
//
// Deletes only: a version that was moved early would not move again. Not in a
// cluster, where it would cost a round trip to each node.
type Early struct {
	r     *Redis
	ready chan struct{}

	mu   sync.Mutex
	fill earlyBuffer

	out earlyBuffer // Run's own
}

type earlyBuffer struct {
	arena []byte
	ends  []int
}

// NewEarly returns an Early; Run runs it.
func (r *Redis) NewEarly() *Early {
	return &Early{r: r, ready: make(chan struct{}, 1)}
}

// Add notes a key. It copies it, and says whether it will be removed early.
func (e *Early) Add(key []byte) bool {
	if e.r.endpoint.kind == cluster {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.fill.ends) >= earlyKeys || len(e.fill.arena)+len(key) > earlyBytes {
		return false
	}
	e.fill.arena = append(e.fill.arena, key...)
	e.fill.ends = append(e.fill.ends, len(e.fill.arena))
	return true
}

// Flush sends what was added.
func (e *Early) Flush() {
	select {
	case e.ready <- struct{}{}:
	default:
	}
}

// Run sends until ctx ends, one command at a time: what is added meanwhile goes
// with the next.
func (e *Early) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.ready:
		}
		e.mu.Lock()
		e.fill, e.out = e.out, e.fill
		e.mu.Unlock()
		if len(e.out.ends) > 0 {
			e.send(ctx)
		}
		e.out.arena, e.out.ends = e.out.arena[:0], e.out.ends[:0]
	}
}

func (e *Early) send(ctx context.Context) {
	be := e.r.backend.Load()
	if be.single == nil || be.guard.node(be.label) != nil {
		return // the applier finds out, and says so
	}
	args := make([]any, 1, 1+len(e.out.ends))
	args[0] = "unlink"
	start := 0
	for _, end := range e.out.ends {
		args = append(args, e.out.arena[start:end])
		start = end
	}
	cmd := redis.NewIntCmd(ctx, args...)
	if err := be.single.Process(ctx, cmd); err != nil {
		e.r.metrics.earlyFailed.Inc()
		return
	}
	e.r.metrics.early.Add(float64(len(e.out.ends)))
}
