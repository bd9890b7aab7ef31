package sink

import (
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// In a cluster the sets lie on one node, with the control hash, and the keys on all.
func TestHeldInCluster(t *testing.T) {
	c := newCluster(t)
	h := newHeld(t, c.url(), c.client)
	h.replayWindow = 30 * time.Second
	keys := numbered("t:1:user:%d", 450)
	fill(t, c.client, keys...)
	advance := mapping.Invalidation{Op: mapping.OpAdvance, Family: h.family("search"), Key: []byte("t:1:search")}
	h.put(append(h.invs(keys...), advance)...)
	for _, key := range []string{h.heldKey("critical"), h.takenKey("critical")} {
		if c.client.ClusterKeySlot(t.Context(), key).Val() != c.client.ClusterKeySlot(t.Context(), h.controlKey).Val() {
			t.Errorf("%s is not in the slot of the control hash", key)
		}
	}
	h.want(false, keys...)
	h.clock = h.clock.Add(testHold)
	if d := h.drain(); d.Applied != 451 {
		t.Fatalf("%+v", d)
	}
	h.want(true, keys...)
	version := c.client.Get(t.Context(), "t:1:search").Val()
	if version == "" {
		t.Error("the version was not moved")
	}
	kept := func() int64 { return c.client.ZCount(t.Context(), h.takenKey("critical"), "-inf", "(0").Val() }
	if n := kept(); n != 451 {
		t.Fatalf("%d are kept for a replay, want all", n)
	}

	// A node may have lost what it had acknowledged: all of it is applied again.
	fill(t, c.client, keys...)
	lost := func() {
		t.Helper()
		c.client.HSet(t.Context(), h.controlKey, "nodes", "others")
		mustAttach(t, h.Redis)
	}
	lost()
	// Not before that is done are the primaries the ones that have everything.
	if err := h.Checkpoint(t.Context(), Checkpoint{Position: position(h.at + 1)}); err != nil {
		t.Fatal(err)
	}
	if got := stored(t, h.Redis).nodes; got != "others" {
		t.Errorf("in the middle of the replay the nodes are %q", got)
	}
	if d := h.drain(); d.Applied != 451 || d.Late != 0 {
		t.Fatalf("replayed: %+v", d)
	}
	h.want(true, keys...)
	if got := c.client.Get(t.Context(), "t:1:search").Val(); got == version {
		t.Error("the version was not moved again")
	}
	if err := h.Checkpoint(t.Context(), Checkpoint{Position: position(h.at + 2)}); err != nil {
		t.Fatal(err)
	}
	fill(t, c.client, keys...)
	mustAttach(t, h.Redis) // the same primaries
	if d := h.drain(); d.Applied != 0 {
		t.Fatalf("with the same primaries: %+v", d)
	}

	// Behind the replay window nothing is kept.
	h.clock = h.clock.Add(h.replayWindow + 2*replayMargin)
	h.drain()
	for range 3 { // 200 a call
		h.drain()
	}
	if n := kept(); n != 0 {
		t.Errorf("%d are kept for ever", n)
	}
	lost()
	if d := h.drain(); d.Applied != 0 {
		t.Errorf("behind the window: %+v", d)
	}
	h.keep(0)
	h.drain()
	h.keep(0)
	if got := h.HeldSets(); len(got) != 0 {
		t.Errorf("still in use: %v", got)
	}
}
