package sink

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Inspection is what a look at the server found, without a change of any key.
type Inspection struct {
	Nodes []NodeInfo
	Rights
}

// NodeInfo is what a primary says of itself in INFO.
type NodeInfo struct {
	Addr             string
	Product, Version string // Redis or Valkey, and its own version
	// Compatible is the version of Redis that it stands for.
	Compatible            string
	Role                  string
	MaxMemory, UsedMemory int64
	Policy                string
	AOF, SaveFailed       bool
	LastSave              time.Time
	UnsavedChanges        int64
	refused               error           // it is no server that can be used
	ReplicaLag            []time.Duration // of each replica that is connected
	Time                  time.Time       // by its clock
	AskedAt               time.Time       // by ours, in the middle of the question
	RoundTrip             time.Duration
}

// Inspect connects as the sink would, looks, and goes. An error means that there was
// nothing to look at: it cannot be reached, or refuses the connection.
func Inspect(ctx context.Context, config mapping.Redis, families []*mapping.Family) (Inspection, error) {
	const op = "inspect"
	var in Inspection
	e, err := parseURL(config.URL.Reveal())
	if err != nil {
		return in, &Error{Op: op, Kind: KindConfiguration, Err: err}
	}
	in.user = e.username
	needed := commandsFor(config)
	// The rights do not differ by database, and without SELECT no connection to
	// another one would come about.
	db := e.db
	e.db = 0
	var login atomic.Pointer[endpoint]
	login.Store(e)
	be := newBackend(&login, nil)
	defer func() { _ = be.close() }() // nothing was written on it
	clients, err := be.primaries(ctx)
	if deniedCommand(err) {
		in.MissingCommands = append(in.MissingCommands, "cluster|slots")
		return in, nil
	}
	if err != nil {
		return in, wrap(op, "", "", be.explained(ctx, err))
	}
	if db != 0 {
		if err := selectDatabase(ctx, clients[0], db); err != nil && !deniedCommand(err) && replyCode(err) != "" {
			return in, wrap(op, be.addr(clients[0]), "", err)
		}
	}
	for _, c := range clients {
		info, err := inspectNode(ctx, c, be.addr(c), be.cluster != nil)
		switch {
		case deniedCommand(err), isUnknownCommand(err):
		case err != nil:
			return in, wrap(op, be.addr(c), "", be.explained(ctx, err))
		case info.refused != nil:
			return in, wrap(op, be.addr(c), "", info.refused)
		default:
			in.Nodes = append(in.Nodes, info)
		}
		if err := in.probe(ctx, c, needed, KeyPatterns(config, families)); err != nil {
			return in, wrap(op, be.addr(c), "", err)
		}
	}
	return in, nil
}

// selectDatabase tries the database on a connection of its own.
func selectDatabase(ctx context.Context, c *redis.Client, db int) error {
	conn := c.Conn()
	defer conn.Close()
	if err := conn.Ping(ctx).Err(); err != nil && !deniedCommand(err) { // the login's own error is not this one
		return nil
	}
	err := conn.Select(ctx, db).Err()
	_ = conn.Select(ctx, 0).Err() // it goes back to the pool
	return err
}

func inspectNode(ctx context.Context, c *redis.Client, addr string, clustered bool) (NodeInfo, error) {
	fields := map[string]string{}
	var info []string
	began := time.Now()
	for i, section := range []string{"server", "replication", "memory", "persistence"} {
		cmd := redis.NewStringCmd(ctx, "info", section)
		if i == 0 {
			_ = send(ctx, c, redis.NewStringCmd(ctx, "info", section)) // connects, so that only the next is timed
			began = time.Now()
		}
		if err := send(ctx, c, cmd); err != nil {
			return NodeInfo{}, err
		}
		if i == 0 {
			fields["asked"] = strconv.FormatInt(int64(time.Since(began)), 10)
		}
		info = append(info, cmd.Val())
		for line := range strings.SplitSeq(cmd.Val(), "\n") {
			if name, value, ok := strings.Cut(strings.TrimRight(line, "\r"), ":"); ok {
				fields[name] = value
			}
		}
	}
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(fields[name], 10, 64) // absent: 0, as if there were none of it
		return n
	}
	n := NodeInfo{
		Addr: addr, Product: "Redis", Version: fields["redis_version"], Compatible: fields["redis_version"], Role: fields["role"],
		MaxMemory: number("maxmemory"), UsedMemory: number("used_memory"), Policy: fields["maxmemory_policy"],
		AOF: fields["aof_enabled"] == "1", SaveFailed: fields["rdb_last_bgsave_status"] == "err",
		LastSave: time.Unix(number("rdb_last_save_time"), 0), UnsavedChanges: number("rdb_changes_since_last_save"),
		RoundTrip: time.Duration(number("asked")),
	}
	// As the daemon judges it, but for its role, of which there is more to say.
	id, err := parseIdentity(addr, info[0], info[1])
	switch {
	case err != nil:
		n.refused = err
	case id.clustered && !clustered:
		n.refused = &Error{Kind: KindConfiguration, Addr: addr, Hint: clusterHint, Err: errors.New("redis.url names one server")}
	}
	n.AskedAt = began.Add(n.RoundTrip / 2)
	if v := fields["valkey_version"]; v != "" {
		n.Product, n.Version = "Valkey", v
	}
	if us := number("server_time_usec"); us > 0 {
		n.Time = time.UnixMicro(us)
	}
	for i := range number("connected_slaves") {
		// slave0:ip=...,port=...,state=online,offset=...,lag=1
		for part := range strings.SplitSeq(fields["slave"+strconv.FormatInt(i, 10)], ",") {
			if v, ok := strings.CutPrefix(part, "lag="); ok {
				seconds, _ := strconv.ParseInt(v, 10, 64)
				n.ReplicaLag = append(n.ReplicaLag, time.Duration(seconds)*time.Second)
			}
		}
	}
	return n, nil
}
