package sink

import (
	"errors"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/clusternode"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// marked is the position in the mark of a primary, as a node has it; 0 without one.
func (c *testCluster) marked(t testing.TB, r *Redis, node, primary int) lsn.LSN {
	t.Helper()
	n, err := clusternode.Parse(c.nodes[primary].ClusterNodes(t.Context()).Val())
	if err != nil {
		t.Fatal(err)
	}
	for tag := range n.Tags() {
		key := mapping.MarkKey(r.prefix, r.slot, tag)
		var applied string
		// On one connection: a replica answers after READONLY only.
		_, err := c.nodes[node].Pipelined(t.Context(), func(p redis.Pipeliner) error {
			p.ReadOnly(t.Context())
			get := p.HGet(t.Context(), key, "applied")
			_, err := p.Exec(t.Context())
			applied = get.Val()
			return err
		})
		if err != nil || applied == "" {
			return 0
		}
		at, err := lsn.ParseHex(applied)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	t.Fatal("the node has no tag")
	return 0
}

// upTo applies nothing and stores the checkpoint.
func upTo(t *testing.T, r *Redis, at lsn.LSN) {
	t.Helper()
	eventually(t, "the checkpoint at "+at.String(), func() bool {
		return r.Checkpoint(t.Context(), Checkpoint{Position: position(at)}) == nil
	})
}

// Primaries that do not hold the control hash come back with data of other times. The hash
// knows nothing of it.
func TestClusterPrimariesThatComeBack(t *testing.T) {
	c := newCluster(t)
	r := attached(t, c.url())
	control := c.owner(t, r.controlKey)
	one, two := (control+1)%3, (control+2)%3
	save := func(n int) {
		t.Helper()
		if err := c.nodes[n].Save(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
	restart := func(nodes ...int) Control {
		t.Helper()
		for _, n := range nodes {
			c.servers[n].Kill()
			if err := c.servers[n].Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		var found Control
		eventually(t, "the cluster to be up again", func() bool {
			var err error
			found, err = r.Attach(t.Context())
			return err == nil
		})
		return found
	}
	want := func(what string, got Control, have lsn.LSN, unproved bool) {
		t.Helper()
		if got.Have != have || got.HaveEnd != have+48 && have != 0 || (got.Unproved != "") != unproved {
			t.Errorf("%s: all primaries have %v, end %v, unproved %q; want %v, %v", what, got.Have, got.HaveEnd, got.Unproved, have, unproved)
		}
	}
	if err := c.client.Set(t.Context(), "{"+tagOf(t, c, one)+"}value", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	upTo(t, r, 100)
	save(one)
	upTo(t, r, 200)
	save(two)
	upTo(t, r, 300)
	want("nothing has happened", mustAttach(t, r), 300, false)
	want("an older node", restart(one), 100, false)
	upTo(t, r, 150)
	want("half of the replay", mustAttach(t, r), 150, false)
	upTo(t, r, 300)
	want("all of the replay", mustAttach(t, r), 300, false)
	upTo(t, r, 400)
	want("two older nodes", restart(one, two), 100, false)
	upTo(t, r, 400)
	want("replayed", mustAttach(t, r), 400, false)

	if err := c.servers[two].RemoveSaved(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("an empty node", restart(two), 400, false)
	upTo(t, r, 500)

	// A mark that is gone while the process lives is written again.
	for tag := range mustNode(t, c, one).Tags() {
		if err := c.nodes[one].Del(t.Context(), mapping.MarkKey(r.prefix, r.slot, tag)).Err(); err != nil {
			t.Fatal(err)
		}
		break
	}
	want("a mark that was evicted", mustAttach(t, r), 500, false)
	save(one) // without it
	upTo(t, r, 510)
	if c.marked(t, r, one, one) != 510 {
		t.Error("a mark that was evicted is not written again")
	}
	got := restart(one)
	if got.Unproved == "" {
		t.Errorf("a node with keys and without a mark passes: %+v", got)
	}
}

// A primary's data goes back, and it stays the same process and history: by a copy that is
// restored into it, or DEBUG RELOAD.
func TestClusterDataThatWentBack(t *testing.T) {
	c := newCluster(t)
	r := attached(t, c.url())
	one := (c.owner(t, r.controlKey) + 1) % 3
	mark := mapping.MarkKey(r.prefix, r.slot, tagOf(t, c, one))
	upTo(t, r, 100)
	old := c.nodes[one].HGetAll(t.Context(), mark).Val()
	upTo(t, r, 300)
	if err := c.nodes[one].HSet(t.Context(), mark, old).Err(); err != nil {
		t.Fatal(err)
	}
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(400)}); !errors.Is(err, ErrNodeChanged) {
		t.Fatalf("error %v", err)
	}
	for _, at := range []lsn.LSN{100, 150} { // half of the replay, and a new process
		upToHere := mustAttach(t, r)
		if upToHere.Have != at || !upToHere.NodesChanged {
			t.Errorf("all primaries have %v (%v), want %v", upToHere.Have, upToHere.NodesChanged, at)
		}
		upTo(t, r, 150)
	}
	upTo(t, r, 300)
	if got := mustAttach(t, r); got.Have != 300 || got.NodesChanged {
		t.Errorf("after the replay: %+v", got)
	}
}

// The same of a server that stands alone, where the control hash is the mark.
func TestDataThatWentBack(t *testing.T) {
	for _, field := range []string{"applied", "end", "sent"} {
		t.Run(field, func(t *testing.T) {
			s, client := server(t)
			r := attached(t, s.URL())
			step := func(at lsn.LSN) error {
				if err := r.Apply(t.Context(), batch(t, at, deletes(plain(t), "user:1")...)); err != nil {
					return err
				}
				return r.Checkpoint(t.Context(), Checkpoint{Position: position(at)})
			}
			if err := step(100); err != nil {
				t.Fatal(err)
			}
			old := client.HGet(t.Context(), r.controlKey, field).Val()
			if err := step(200); err != nil {
				t.Fatal(err)
			}
			if field == "end" { // on an idle source it moves alone
				p := position(200)
				p.EndLSN += 50
				if err := r.Checkpoint(t.Context(), Checkpoint{Position: p}); err != nil {
					t.Fatal(err)
				}
				old = position(200).EndLSN.Hex()
			}
			if err := client.HSet(t.Context(), r.controlKey, field, old).Err(); err != nil {
				t.Fatal(err)
			}
			if err := step(300); !errors.Is(err, ErrNodeChanged) {
				t.Errorf("error %v", err)
			}
			if now := client.HGet(t.Context(), r.controlKey, field).Val(); now != old {
				t.Errorf("%s was moved on to %s", field, now)
			}
		})
	}
}

func mustNode(t *testing.T, c *testCluster, n int) clusternode.Node {
	t.Helper()
	node, err := clusternode.Parse(c.nodes[n].ClusterNodes(t.Context()).Val())
	if err != nil {
		t.Fatal(err)
	}
	return node
}

func tagOf(t *testing.T, c *testCluster, n int) string {
	t.Helper()
	for tag := range mustNode(t, c, n).Tags() {
		return tag
	}
	t.Fatal("the node has no tag")
	return ""
}
