package servertest

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
)

// RedisCluster is a cluster for one test: three primaries, and one more node without slots.
type RedisCluster struct {
	Servers []*localserver.Redis
	Nodes   []*redis.Client // each leads to one server
	IDs     []string
	Client  *redis.ClusterClient
}

// Cluster starts one.
func Cluster(t testing.TB) *RedisCluster {
	t.Helper()
	c := &RedisCluster{}
	for range 4 {
		s := PrivateRedis(t, localserver.RedisOptions{Args: []string{"--cluster-enabled", "yes", "--cluster-node-timeout", "1000",
			"--cluster-require-full-coverage", "yes", "--cluster-replica-validity-factor", "0"}})
		c.Servers = append(c.Servers, s)
		c.Nodes = append(c.Nodes, RedisClient(t, s.URL()))
	}
	do := func(n int, args ...any) {
		t.Helper()
		if err := c.Nodes[n].Do(t.Context(), args...).Err(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	for i := range c.Nodes {
		do(i, "cluster", "set-config-epoch", i+1)
		if i < 3 {
			from, to := i*5461, i*5461+5460
			if i == 2 {
				to = 16383
			}
			do(i, "cluster", "addslotsrange", from, to)
		}
	}
	for _, s := range c.Servers[1:] {
		do(0, "cluster", "meet", "127.0.0.1", s.Port())
	}
	for _, n := range c.Nodes {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			info := n.ClusterInfo(t.Context()).Val()
			if strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:4") && strings.Contains(info, "cluster_size:3") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the cluster does not form: %s", info)
			}
		}
		c.IDs = append(c.IDs, n.Do(t.Context(), "cluster", "myid").Val().(string))
	}
	c.Client = redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{c.Servers[0].Address()}})
	t.Cleanup(func() { _ = c.Client.Close() })
	return c
}

// URL names two of the nodes.
func (c *RedisCluster) URL() string {
	return "redis+cluster://" + c.Servers[0].Address() + "," + c.Servers[1].Address()
}

// Owner is the number of the primary that has a key's slot, as long as none has moved.
func (c *RedisCluster) Owner(t testing.TB, key string) int {
	t.Helper()
	return min(int(c.Client.ClusterKeySlot(t.Context(), key).Val())/5461, 2)
}
