package sink

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// testCluster has three primaries with slots, and one more node without any.
type testCluster struct {
	servers []*localserver.Redis
	nodes   []*redis.Client
	ids     []string
	client  *redis.ClusterClient
}

func newCluster(t testing.TB) *testCluster {
	t.Helper()
	c := servertest.Cluster(t)
	return &testCluster{servers: c.Servers, nodes: c.Nodes, ids: c.IDs, client: c.Client}
}

func (c *testCluster) url() string {
	return "redis+cluster://" + c.servers[0].Address() + "," + c.servers[1].Address()
}

func (c *testCluster) owner(t testing.TB, key string) int {
	t.Helper()
	slot := c.client.ClusterKeySlot(t.Context(), key).Val()
	return min(int(slot)/5461, 2)
}

// moving puts key's slot into migration to the node without slots.
func (c *testCluster) moving(t testing.TB, key string) (from int) {
	t.Helper()
	from = c.owner(t, key)
	slot := c.client.ClusterKeySlot(t.Context(), key).Val()
	if err := c.nodes[3].Do(t.Context(), "cluster", "setslot", slot, "importing", c.ids[from]).Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.nodes[from].Do(t.Context(), "cluster", "setslot", slot, "migrating", c.ids[3]).Err(); err != nil {
		t.Fatal(err)
	}
	return from
}

// sameSlot returns n keys of one slot.
func (c *testCluster) sameSlot(t testing.TB, format string, n int) []string {
	t.Helper()
	keys := numbered(format, 40000)
	p := c.nodes[0].Pipeline()
	for _, k := range keys {
		p.ClusterKeySlot(t.Context(), k)
	}
	cmds, err := p.Exec(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slots := map[int64][]string{}
	for i, cmd := range cmds {
		slot := cmd.(*redis.IntCmd).Val()
		if slots[slot] = append(slots[slot], keys[i]); len(slots[slot]) == n {
			return slots[slot]
		}
	}
	t.Fatalf("no %d keys of one slot", n)
	return nil
}

func TestCluster(t *testing.T) {
	c := newCluster(t)
	for _, n := range c.nodes {
		args := []any{"acl", "setuser", "cdc", "on", ">hunter2"}
		for _, f := range strings.Fields(neededRights + " " + clusterRights) {
			args = append(args, f)
		}
		if err := n.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	r := attached(t, strings.Replace(c.url(), "://", "://cdc:hunter2@", 1))
	keys := numbered("t:7:user:%d", 10000)
	others := numbered("t:7:usher:%d", 1000)
	fill(t, c.client, keys...)
	fill(t, c.client, others...)
	invs := deletes(plain(t), keys[:6000]...)
	for i := range 20 {
		invs = append(invs, mapping.Invalidation{Op: mapping.OpAdvance, Family: versioned(t), Key: fmt.Appendf(nil, "t:%d:search", i)})
	}
	if err := r.Apply(t.Context(), batch(t, 100, invs...)); err != nil {
		t.Fatal(err)
	}
	if n := present(t, c.client, keys...); n != 4000 {
		t.Errorf("%d keys are left, want 4000", n)
	}
	for i := range 20 {
		if v := c.client.Get(t.Context(), fmt.Sprintf("t:%d:search", i)).Val(); len(v) != 40 {
			t.Errorf("version %d is %q", i, v)
		}
	}
	// The scripts of one node are flushed.
	c.nodes[1].ScriptFlush(t.Context())
	purge := mapping.Invalidation{Op: mapping.OpPurge, Family: plain(t)}
	bump := mapping.Invalidation{Op: mapping.OpPurge, Family: versioned(t)}
	if err := r.Apply(t.Context(), batch(t, 200, append(invs, purge, bump)...)); err != nil {
		t.Fatal(err)
	}
	if n := present(t, c.client, keys...); n != 0 {
		t.Errorf("%d keys are left after the purge", n)
	}
	if n := present(t, c.client, others...); n != 1000 {
		t.Errorf("%d of 1000 keys of another family are left", n)
	}
	for i := range 20 {
		if v := c.client.Get(t.Context(), fmt.Sprintf("t:%d:search", i)).Val(); len(v) != 40 || v[16:32] != lsn.LSN(200).Hex() {
			t.Errorf("version %d is %q", i, v)
		}
	}
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(200)}); err != nil {
		t.Fatal(err)
	}
	unversioned := numbered("t:%d:search:0:shoes", 100)
	fill(t, c.client, unversioned...)
	if _, err := r.PurgeBehind(t.Context(), []*mapping.Family{plain(t), versioned(t), family(t, "top")}, nil); err != nil {
		t.Error(err)
	}
	if n := present(t, c.client, unversioned...); n != 0 {
		t.Errorf("%d values that were cached without a version are left", n)
	}
	if v := c.client.Get(t.Context(), "top").Val(); len(v) != 40 {
		t.Errorf("the version of all is %q after the purge", v)
	}
	if control := stored(t, r); control.Applied != 200 {
		t.Errorf("%+v", control)
	}
}

func TestClusterDedicatedPurge(t *testing.T) {
	c := newCluster(t)
	r := attached(t, c.url(), func(o *Options) { o.Config.Dedicated = true })
	fill(t, c.client, numbered("k%d", 1000)...)
	if err := r.SetState(t.Context(), StateGap, "x"); err != nil {
		t.Fatal(err)
	}
	if err := r.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := present(t, c.client, numbered("k%d", 1000)...); n != 0 {
		t.Errorf("%d keys are left", n)
	}
	if control := stored(t, r); control.State != StateGap {
		t.Errorf("%+v", control)
	}
}

// While a slot migrates, absent keys are answered with ASK; the pipeline goes on,
// and reaches keys that have moved already.
func TestClusterMigratingSlot(t *testing.T) {
	c := newCluster(t)
	r := attached(t, c.url())
	same := c.sameSlot(t, "t:7:user:%d", 4)
	key, gone, moved, ver := same[0], same[1], same[2], same[3]
	fill(t, c.client, key, moved)
	from := c.moving(t, key)
	if err := c.nodes[from].Migrate(t.Context(), "127.0.0.1", strconv.Itoa(c.servers[3].Port()), moved, 0, 1e9).Err(); err != nil {
		t.Fatal(err)
	}
	version := mapping.Invalidation{Op: mapping.OpAdvance, Family: versioned(t), Key: []byte(ver)}
	if err := r.Apply(t.Context(), batch(t, 100, append(deletes(plain(t), key, gone, moved, "elsewhere"), version)...)); err != nil {
		t.Fatal(err)
	}
	if keys := c.nodes[3].Keys(t.Context(), "*").Val(); !slices.Equal(keys, []string{ver}) {
		t.Errorf("the importing node has %q", keys)
	}
	if n := c.nodes[from].Exists(t.Context(), key).Val(); n != 0 {
		t.Error("the key that did not move is left")
	}
}

// A purge finds keys on both sides of a migration: also those on a node that owns
// no slot yet. Since a key may move from a node not yet scanned to one already
// scanned, it looks everywhere twice.
func TestClusterPurgeWhileSlotsMove(t *testing.T) {
	c := newCluster(t)
	r := attached(t, c.url())
	same := c.sameSlot(t, "t:7:user:%d", 4)
	fill(t, c.client, same...)
	from := c.moving(t, same[0])
	move := func(key string) {
		t.Helper()
		if err := c.nodes[from].Migrate(t.Context(), "127.0.0.1", strconv.Itoa(c.servers[3].Port()), key, 0, 1e9).Err(); err != nil {
			t.Fatal(err)
		}
	}
	left := func() []string {
		return append(c.nodes[from].Keys(t.Context(), "t:*").Val(), c.nodes[3].Keys(t.Context(), "t:*").Val()...)
	}
	move(same[1])
	if n := len(left()); n != 4 {
		t.Fatalf("%d keys before the purge", n)
	}
	scans := func(n int) int {
		t.Helper()
		_, stats, _ := strings.Cut(c.nodes[n].Info(t.Context(), "commandstats").Val(), "cmdstat_scan:calls=")
		calls, _, _ := strings.Cut(stats, ",")
		count, _ := strconv.Atoi(calls)
		return count
	}
	if _, err := r.PurgeBehind(t.Context(), []*mapping.Family{plain(t)}, nil); err != nil {
		t.Fatal(err)
	}
	for n := range c.nodes {
		if got := scans(n); got != 2 {
			t.Errorf("node %d was scanned %d times, want 2", n, got)
		}
	}
	if keys := left(); len(keys) > 0 {
		t.Errorf("the purge left %q", keys)
	}
}

// A slot gets a new owner: a primary that was not there when the sink attached.
func TestClusterNewPrimary(t *testing.T) {
	c := newCluster(t)
	r := attached(t, c.url())
	now := r.now()
	r.now = func() time.Time { return now } // no periodic check comes to the rescue
	c.moving(t, "{x}1")
	slot := c.client.ClusterKeySlot(t.Context(), "{x}1").Val()
	for _, n := range []int{3, 0, 1, 2} {
		if err := c.nodes[n].Do(t.Context(), "cluster", "setslot", slot, "node", c.ids[3]).Err(); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	eventually(t, "the new topology", func() bool {
		err = r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "{x}1")...))
		return errors.Is(err, ErrNodeChanged)
	})
	mustAttach(t, r)
	if err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "{x}1")...)); err != nil {
		t.Fatal(err)
	}
}

// A primary that does not hold the control hash dies, and its replica takes over
// without what it had acknowledged.
func TestClusterFailover(t *testing.T) {
	c := newCluster(t)
	r := attached(t, c.url())
	control := c.owner(t, r.controlKey)
	victim := (control + 1) % 3
	if err := c.nodes[3].Do(t.Context(), "cluster", "replicate", c.ids[victim]).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the replica to be in step", func() bool {
		return strings.Contains(c.nodes[3].Info(t.Context(), "replication").Val(), "master_link_status:up")
	})
	mustAttach(t, r)
	before := r.nodes
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(40)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the replica to have the mark", func() bool { return c.marked(t, r, 3, victim) == position(40).CommitLSN })
	// From here on the replica gets nothing more.
	if err := c.nodes[victim].Do(t.Context(), "acl", "setuser", "default", "-psync", "-sync").Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.nodes[victim].Do(t.Context(), "client", "kill", "type", "replica").Err(); err != nil {
		t.Fatal(err)
	}
	keys := numbered("t:user:%d", 300)
	if err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), keys...)...)); err != nil {
		t.Fatal(err)
	}
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(100)}); err != nil {
		t.Fatal(err)
	}
	c.servers[victim].Kill()
	failed := 0
	eventually(t, "the failover to be noticed", func() bool {
		err := r.Apply(t.Context(), batch(t, 200, deletes(plain(t), keys...)...))
		if err != nil && !errors.Is(err, ErrNodeChanged) {
			failed++
		}
		if err == nil {
			t.Fatal("a batch was applied although a primary was away or another one")
		}
		return errors.Is(err, ErrNodeChanged)
	})
	if failed == 0 {
		t.Log("no error while the primary was away")
	}
	eventually(t, "the new primary", func() bool {
		_, err := r.Attach(t.Context())
		return err == nil
	})
	if r.nodes == before {
		t.Error("the primaries pass for those from before the failover")
	}
	// The hash is on another primary and knows nothing of the loss.
	if c := stored(t, r); c.Applied != 100 {
		t.Fatalf("%+v", c)
	}
	if c := mustAttach(t, r); c.Have != 40 || c.HaveEnd != 88 || c.Unproved != "" {
		t.Errorf("attached with %v, end %v, %q: the new primary has everything up to 40", c.Have, c.HaveEnd, c.Unproved)
	}
	checkpoint := func(at lsn.LSN) {
		t.Helper()
		eventually(t, "a checkpoint", func() bool {
			return r.Checkpoint(t.Context(), Checkpoint{Position: position(at)}) == nil
		})
	}
	checkpoint(50) // half way
	if c := mustAttach(t, r); c.Have != 50 {
		t.Errorf("in the middle of the replay: applied %v", c.Applied)
	}
	checkpoint(100) // back where the old primaries were
	if c := mustAttach(t, r); c.Have != 100 {
		t.Errorf("after the replay: applied %v", c.Applied)
	}
	eventually(t, "all nodes to see the cluster as up", func() bool {
		return r.Apply(t.Context(), batch(t, 200, deletes(plain(t), keys...)...)) == nil
	})
}
