package sink

import (
	"cmp"
	"slices"
)

var serverKindNames = [...]string{standalone: "standalone", sentinel: "sentinel", cluster: "cluster"}

// Kind is what redis.url says: standalone, sentinel or cluster.
func (r *Redis) Kind() string { return serverKindNames[r.endpoint.kind] }

// Attached says whether Attach has succeeded, and nothing has changed since that asks for
// another.
func (r *Redis) Attached() bool {
	g := r.backend.Load().guard
	return g.sealed() && !g.broken.Load()
}

// Known is the control hash and the primaries as this process last knew them,
// without asking a server.
func (r *Redis) Known() (Control, []Identity) {
	r.shadowMu.Lock()
	c := r.shadow
	if c.nodes != r.nodes {
		c.Settled = 0 // of other primaries
	}
	r.shadowMu.Unlock()
	return c, r.backend.Load().guard.attached()
}

// attached lists the primaries that batches may go to, by address.
func (g *guard) attached() []Identity {
	g.mu.Lock()
	defer g.mu.Unlock()
	ids := make([]Identity, 0, len(g.primaries))
	for addr := range g.primaries {
		ids = append(ids, g.seen[addr])
	}
	slices.SortFunc(ids, func(a, b Identity) int { return cmp.Compare(a.Addr, b.Addr) })
	return ids
}
