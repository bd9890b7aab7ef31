package doctor

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

func (x *examination) examineRedis(ctx context.Context) {
	x.Progress("Redis")
	in, err := sink.Inspect(ctx, x.File.Redis, x.Plan.Families())
	if err != nil {
		if !x.problem(x.redis, "redis_connection", Fatal, err) {
			x.away("redis", err, x.redis)
		}
		return
	}
	for _, n := range in.Nodes {
		x.node(n)
		x.memory(n)
		x.persistence(n)
	}
	x.rights(in)
	for _, n := range in.Nodes {
		if !n.Time.IsZero() {
			x.skew(n.Product+" "+n.Addr, n.Time.Sub(n.AskedAt), n.RoundTrip)
		}
	}
}

func (x *examination) node(n sink.NodeInfo) {
	if !atLeast(n.Compatible, 6, 2) {
		x.redis.add(Check{Code: "redis_version", Severity: Fatal, Subject: n.Addr, Message: n.Product + " " + n.Version + "; Redis 6.2 is the oldest that works", FixKind: Person, Fix: "upgrade the server"})
	} else {
		x.redis.add(Check{Code: "redis_version", Severity: OK, Subject: n.Addr, Message: n.Product + " " + n.Version})
	}
	if n.Role != "master" {
		x.redis.add(Check{Code: "redis_replica", Severity: Fatal, Subject: n.Addr, Message: "it is a replica, and takes no writes", FixKind: File,
			Fix: "let redis.url lead to the primary, or to the sentinels (redis+sentinel://)"})
	}
}

func atLeast(version string, major, minor int) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, errA := strconv.Atoi(parts[0])
	b, errB := strconv.Atoi(parts[1])
	return errA == nil && errB == nil && (a > major || a == major && b >= minor)
}

// memory looks at what happens when the server is full.
func (x *examination) memory(n sink.NodeInfo) {
	versioned, forever := false, false
	for _, f := range x.Plan.Families() {
		versioned = versioned || f.Versioned
		forever = forever || f.TTL == 0
	}
	c := Check{Code: "maxmemory", Severity: OK, Subject: n.Addr, Message: fmt.Sprintf("maxmemory is %s, policy %s", size(n.MaxMemory), n.Policy)}
	set := func(s Severity, message, fix string) {
		c.Severity, c.Message, c.FixKind, c.Fix = s, c.Message+": "+message, RedisCLI, fix
	}
	// The daemon's own keys and version keys have no TTL, which keeps them under this one.
	const spares = "CONFIG SET maxmemory-policy volatile-lru"
	switch {
	case n.MaxMemory == 0:
		c.Message = "maxmemory is 0, policy " + n.Policy
		set(Notice, "nothing is evicted, and the cache grows until the machine is full", "CONFIG SET maxmemory <bytes>")
	case x.Plan.HasDependents() && n.Policy != "noeviction":
		// They have a TTL, so no other policy spares them.
		set(Warning, "a set of dependents may be evicted; the keys in it are then not invalidated when their row changes", "CONFIG SET maxmemory-policy noeviction")
	case x.Plan.HasDependents():
		set(Notice, "when it is full, readers can store nothing and versions cannot be moved; but any other policy may evict sets of dependents", "CONFIG SET maxmemory <more bytes>")
	case n.Policy == "noeviction":
		set(Warning, "when it is full, readers can store nothing and versions cannot be moved", spares)
	case strings.HasPrefix(n.Policy, "allkeys-"):
		message := "the daemon's own keys may be evicted, too: reads then go to the source until they are written again, what is held back is lost and its families are purged, " +
			"and a daemon that starts without them gives up every mapped family"
		if versioned {
			message += "; a version key may be evicted, and readers that take 0 for it may find entries from before its first move"
		}
		set(Warning, message, spares)
	case strings.HasPrefix(n.Policy, "volatile-") && forever:
		set(Notice, "only keys with a TTL are evicted, and some families have none (ttl in keys); when those fill it, writes fail", "give every family a ttl")
		c.FixKind = File
	}
	x.redis.add(c)
}

// persistence speaks up only where a restart or a failover would bring back more
// than the replay window covers, or writes are refused already.
func (x *examination) persistence(n sink.NodeInfo) {
	window := x.File.Redis.ReplayWindow
	if n.SaveFailed {
		x.redis.add(Check{Code: "redis_save_failed", Severity: Warning, Subject: n.Addr, Message: "the last snapshot could not be written, for which the server may refuse writes", FixKind: Person,
			Fix: "mend its disk, or: CONFIG SET stop-writes-on-bgsave-error no"})
	}
	if age := x.now().Sub(n.LastSave); !n.AOF && n.UnsavedChanges > 0 && age > window && n.LastSave.Unix() > 0 {
		x.redis.add(Check{Code: "redis_snapshot_age", Severity: Notice, Subject: n.Addr,
			Message: fmt.Sprintf("its last snapshot is %s old: should it restart from it, that is more than redis.replay_window (%s), and every mapped family is purged", age.Round(time.Second), window)})
	}
	for _, lag := range n.ReplicaLag {
		if lag > window {
			x.redis.add(Check{Code: "redis_replica_lag", Severity: Warning, Subject: n.Addr,
				Message: fmt.Sprintf("a replica is %s behind, more than redis.replay_window (%s): should it be promoted, every mapped family is purged", lag, window),
				FixKind: File, Fix: "mend the replica, or raise redis.replay_window"})
		}
	}
}

func (x *examination) rights(in sink.Inspection) {
	lacks := in.Lacks()
	if len(lacks) == 0 {
		x.redis.ok("redis_acl", "the user may run every command that is needed, on every key")
	}
	for _, l := range lacks {
		kind := Person
		if l.CLI {
			kind = RedisCLI
		}
		x.redis.add(Check{Code: l.Code, Severity: Fatal, Subject: l.Subject, Message: l.Message, FixKind: kind, Fix: l.Fix})
	}
}
