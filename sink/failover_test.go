package sink

import (
	"errors"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

func replicate(t testing.TB, replica *redis.Client, primary *localserver.Redis) {
	t.Helper()
	if err := replica.Do(t.Context(), "replicaof", "127.0.0.1", primary.Port()).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the replica to be in step", func() bool {
		return strings.Contains(replica.Info(t.Context(), "replication").Val(), "master_link_status:up")
	})
}

// The primary dies with acknowledged writes that its replica never got, and the
// URL leads to the replica. Nothing may be applied there, and above all nothing
// checkpointed, before the daemon knows.
func TestReplicaPromoted(t *testing.T) {
	primary, pc := server(t)
	replica, rc := server(t)
	p := newProxy(t, nil, primary.Address())
	r := attached(t, p.url())
	replicate(t, rc, primary)
	// The first replica of a primary begins a new history there.
	eventually(t, "the primary to be in step", func() bool { return pc.Wait(t.Context(), 1, 0).Val() == 1 })
	mustAttach(t, r)

	keys := numbered("t:user:%d", 800)
	fill(t, pc, keys...)
	apply := func(at lsn.LSN, keys ...string) error {
		return r.Apply(t.Context(), batch(t, at, deletes(plain(t), keys...)...))
	}
	if err := apply(100, keys[:100]...); err != nil {
		t.Fatal(err)
	}
	if err := apply(200, keys[100:200]...); err != nil { // stores 100
		t.Fatal(err)
	}
	eventually(t, "the replica to have the first checkpoint", func() bool {
		return rc.HGet(t.Context(), r.controlKey, "applied").Val() == lsn.LSN(100).Hex()
	})
	// From here on the replica gets nothing more.
	if err := rc.Do(t.Context(), "replicaof", "no", "one").Err(); err != nil {
		t.Fatal(err)
	}
	for i := 2; i < 8; i++ {
		if err := apply(lsn.LSN(100*i+100), keys[100*i:100*i+100]...); err != nil {
			t.Fatal(err)
		}
	}
	if applied := stored(t, r).Applied; applied != 700 {
		t.Fatalf("applied %v, want 700", applied)
	}
	primary.Kill()
	p.lead(replica.Address())
	p.cut()

	fill(t, rc, "witness")
	var err error
	eventually(t, "an answer", func() bool {
		err = apply(900, "witness")
		return errors.Is(err, ErrNodeChanged)
	})
	contains(t, err, "another process", "another history")
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(900)}); !errors.Is(err, ErrNodeChanged) {
		t.Errorf("checkpoint: %v", err)
	}
	if err := r.SetState(t.Context(), StateOK, ""); !errors.Is(err, ErrNodeChanged) {
		t.Errorf("state: %v", err)
	}
	if present(t, rc, "witness") != 1 {
		t.Error("a batch was applied to the promoted replica before it was known")
	}
	if got := rc.HGet(t.Context(), r.controlKey, "applied").Val(); got != lsn.LSN(100).Hex() {
		t.Errorf("the promoted replica's checkpoint was moved to %s", got)
	}
	c := mustAttach(t, r)
	if !c.Found || c.Applied != 100 {
		t.Fatalf("after attaching again: %+v", c)
	}
	if stale := present(t, rc, keys...); stale < 500 {
		t.Fatalf("only %d keys came back with the replica: the test proves nothing", stale)
	}
	for i := range 8 { // replay
		if err := apply(lsn.LSN(100*i+100), keys[100*i:100*i+100]...); err != nil {
			t.Fatal(err)
		}
	}
	if stale := present(t, rc, keys...); stale != 0 {
		t.Errorf("%d stale keys after the replay", stale)
	}
}

// Demoted, synchronised from a node that lacks our writes, promoted again, all
// between two batches: the connection stays up, the run id is the same.
func TestHistoryChangedUnderAConnection(t *testing.T) {
	for _, name := range []string{"with an older control hash", "without one"} {
		t.Run(name, func(t *testing.T) { historyChanged(t, name == "without one") })
	}
}

func historyChanged(t *testing.T, lost bool) {
	a, ac := server(t)
	b, bc := server(t)
	fill(t, bc, "x") // so that there is something to synchronise
	r := attached(t, a.URL())
	now := r.now()
	r.now = func() time.Time { return now } // no periodic check comes to the rescue
	if err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "k")...)); err != nil {
		t.Fatal(err)
	}
	control := ac.HGetAll(t.Context(), r.controlKey).Val()
	replicate(t, ac, b)
	if err := ac.Do(t.Context(), "replicaof", "no", "one").Err(); err != nil {
		t.Fatal(err)
	}
	for name, value := range control { // as an older replica would have had it
		if !lost {
			ac.HSet(t.Context(), r.controlKey, name, value)
		}
	}
	err := r.Apply(t.Context(), batch(t, 200, deletes(plain(t), "k")...))
	if !errors.Is(err, ErrNodeChanged) {
		t.Fatalf("got %v", err)
	}
	if err := r.SetState(t.Context(), StateOK, "x"); !errors.Is(err, ErrNodeChanged) {
		t.Errorf("set state: %v", err)
	}
	if got := ac.HGet(t.Context(), r.controlKey, "applied").Val(); got != "" && got != lsn.LSN(0).Hex() {
		t.Errorf("the checkpoint moved to %s on a node that may lack the batch", got)
	}
	if err := r.Apply(t.Context(), batch(t, 200, deletes(plain(t), "k")...)); !errors.Is(err, ErrNodeChanged) {
		t.Errorf("not sticky: %v", err)
	}
}

// Each script of the control hash looks for itself, since each may be the first
// to run after the change.
func TestScriptsKnowTheirHistory(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL)
	before := c.HGetAll(t.Context(), r.controlKey).Val()
	const other = "0123456789abcdef0123456789abcdef01234567"
	g := before["generation"]
	for name, cmd := range map[string]*redis.Cmd{
		"checkpoint": r.checkpointCommand(t.Context(), other, &Checkpoint{Position: position(100)}, 100),
		"install":    r.installCommand(t.Context(), other, ""),
		"state": r.scripts.state.command(t.Context(), []any{r.controlKey},
			[]any{g, other, hex64(1 << 40), "gap", "x", hexTime(time.Now())}),
	} {
		for _, lost := range []bool{false, true} {
			if lost {
				c.Del(t.Context(), r.controlKey)
			}
			if err := c.Process(t.Context(), cmd); err != nil {
				t.Fatal(err)
			}
			if got, _ := cmd.Text(); got != "node" {
				t.Errorf("%s answered %q", name, got)
			}
			after := c.HGetAll(t.Context(), r.controlKey).Val()
			if !lost && !maps.Equal(before, after) || lost && len(after) > 0 {
				t.Errorf("%s changed the hash to %v", name, after)
			}
		}
		for k, v := range before {
			c.HSet(t.Context(), r.controlKey, k, v)
		}
	}
}

func TestDemotedNodeRefuses(t *testing.T) {
	a, ac := server(t)
	b, _ := server(t)
	r := attached(t, a.URL())
	now := r.now()
	r.now = func() time.Time { return now }
	replicate(t, ac, b)
	err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "k")...))
	if !errors.Is(err, ErrNodeChanged) {
		t.Fatalf("got %v", err)
	}
	// Attaching to a replica waits, it does not succeed.
	if _, err := r.Attach(t.Context()); err == nil || errors.Is(err, ErrNodeChanged) {
		t.Errorf("attach to a replica: %v", err)
	}
	if err := ac.Do(t.Context(), "replicaof", "no", "one").Err(); err != nil {
		t.Fatal(err)
	}
	mustAttach(t, r)
}

func TestPeriodicVerify(t *testing.T) {
	a, ac := server(t)
	b, _ := server(t)
	r := attached(t, a.URL())
	if err := checked(t, r); err != nil {
		t.Fatal(err)
	}
	replicate(t, ac, b)
	if err := checked(t, r); !errors.Is(err, ErrNodeChanged) {
		t.Errorf("demoted: %v", err)
	}
}

// The same machine, restarted from a snapshot that is older than what it had
// acknowledged.
func TestRestartedFromAnOldSnapshot(t *testing.T) {
	s, c := server(t, "--save", "3600 1000000")
	r := attached(t, s.URL())
	keys := numbered("k%d", 300)
	fill(t, c, keys...)
	for i := range 2 {
		if err := r.Apply(t.Context(), batch(t, lsn.LSN(100*i+100), deletes(plain(t), keys[100*i:100*i+100]...)...)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	last := batch(t, 300, deletes(plain(t), keys[200:]...)...)
	if err := r.Apply(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(300)}); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var err error
	eventually(t, "an answer", func() bool {
		err = r.Apply(t.Context(), batch(t, 400, deletes(plain(t), "x")...))
		return errors.Is(err, ErrNodeChanged)
	})
	contains(t, err, "another process")
	if got := mustAttach(t, r); got.Applied != 100 {
		t.Errorf("attached at %v, the snapshot's checkpoint is 100", got.Applied)
	}
	if n := present(t, c, keys[200:]...); n != 100 {
		t.Errorf("%d of the lost deletes are undone: the test proves nothing", n)
	}
}

func TestSentinel(t *testing.T) {
	primary, pc := server(t)
	replica, rc := server(t)
	replicate(t, rc, primary)
	sentinel := servertest.Sentinel(t, primary)
	url := "redis+sentinel://127.0.0.1:1," + sentinel + "/shop-cache/0" // the first is away
	r := attached(t, url)
	fill(t, pc, "a", "b")
	if err := r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "a")...)); err != nil {
		t.Fatal(err)
	}
	if present(t, pc, "a", "b") != 1 {
		t.Error("the key is left")
	}
	eventually(t, "the replica to have the batch", func() bool {
		return rc.HGet(t.Context(), r.controlKey, "sent").Val() == lsn.LSN(100).Hex()
	})
	sc := redis.NewSentinelClient(&redis.Options{Addr: sentinel})
	t.Cleanup(func() { sc.Close() })
	eventually(t, "the sentinel to know the replica", func() bool {
		return sc.Failover(t.Context(), "shop-cache").Err() == nil
	})
	eventually(t, "the failover", func() bool {
		a := sc.GetMasterAddrByName(t.Context(), "shop-cache").Val()
		return len(a) == 2 && a[1] == strconv.Itoa(replica.Port())
	})
	eventually(t, "the failover to be noticed", func() bool {
		return errors.Is(checked(t, r), ErrNodeChanged)
	})
	eventually(t, "the promoted replica to be a primary", func() bool {
		_, err := r.Attach(t.Context())
		return err == nil
	})
	if err := r.Apply(t.Context(), batch(t, 200, deletes(plain(t), "b")...)); err != nil {
		t.Fatal(err)
	}
	if present(t, rc, "b") != 0 {
		t.Error("the key is left on the new primary")
	}

	unknown := open(t, "redis+sentinel://"+sentinel+"/nobody")
	_, err := unknown.Attach(t.Context())
	contains(t, err, `knows no group "nobody"`)
}

// Whether the primary is still the one of the last checkpoint, in process and history.
func TestNodesChanged(t *testing.T) {
	a, ac := server(t)
	b, bc := server(t)
	fill(t, bc, "x") // so that there is something to synchronise
	r := attached(t, a.URL())
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(100)}); err != nil {
		t.Fatal(err)
	}
	if c := mustAttach(t, r); c.NodesChanged {
		t.Errorf("nothing has happened: %+v", c)
	}
	if c := mustAttach(t, open(t, a.URL())); c.NodesChanged {
		t.Errorf("to another process of ours: %+v", c)
	}
	control := ac.HGetAll(t.Context(), r.controlKey).Val()
	replicate(t, ac, b)
	if err := ac.Do(t.Context(), "replicaof", "no", "one").Err(); err != nil {
		t.Fatal(err)
	}
	for name, value := range control { // as an older replica would have had it
		ac.HSet(t.Context(), r.controlKey, name, value)
	}
	c := mustAttach(t, r)
	if !c.NodesChanged || c.Applied != 100 {
		t.Errorf("with another history: %+v", c)
	}
	if c := mustAttach(t, r); !c.NodesChanged {
		t.Error("forgotten before anything was applied")
	}
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(200)}); err != nil {
		t.Fatal(err)
	}
	if c := mustAttach(t, r); c.NodesChanged {
		t.Error("these nodes are the known ones now")
	}
}

// The name in redis.url leads to another primary, and the connections to the old one stay up, which
// takes writes still.
func TestNameThatLeadsElsewhereIsNoticed(t *testing.T) {
	a, _ := server(t)
	b, _ := server(t)
	p := newProxy(t, nil, a.Address())
	r := attached(t, p.url())
	apply := func() error { return r.Apply(t.Context(), batch(t, 100, deletes(plain(t), "t:user:1")...)) }
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	p.lead(b.Address())
	eventually(t, "the other primary is noticed", func() bool { return errors.Is(apply(), ErrNodeChanged) })
}
