package sink

import (
	"context"
	"slices"

	"github.com/redis/go-redis/v9"
)

var serverKindNames = [...]string{standalone: "standalone", sentinel: "sentinel", cluster: "cluster"}

// Kind is what redis.url says: standalone, sentinel or cluster.
func (r *Redis) Kind() string { return serverKindNames[r.endpoint.kind] }

// Known is the control hash and the primaries as this process last knew them,
// without asking a server.
func (r *Redis) Known() (Control, Node) {
	r.shadowMu.Lock()
	c := r.shadow
	r.shadowMu.Unlock()
	return c, newNode(r.backend.Load().guard.attached())
}

// attached lists the primaries that batches may go to.
func (g *guard) attached() []Identity {
	g.mu.Lock()
	defer g.mu.Unlock()
	ids := make([]Identity, 0, len(g.primaries))
	for addr := range g.primaries {
		ids = append(ids, g.seen[addr])
	}
	return slices.Clip(ids)
}

// DiscardClientLog silences the client library's own log, which is of the whole
// process, goes to stderr and knows neither level nor format. Everything that it says is in
// the errors and metrics of this package.
func DiscardClientLog() { redis.SetLogger(discard{}) }

type discard struct{}

func (discard) Printf(context.Context, string, ...any) {}
