package sink

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/clusternode"
)

const rolePrimary = "master"

// Identity is what one node says of itself. Two identities that are the same
// belong to one process that has kept every write it acknowledged.
type Identity struct {
	Addr    string // as dialled
	RunID   string // new with each start of the process
	ReplID  string // new whenever the history may differ from what a replica had
	ReplID2 string // the history that it was promoted from, or zeros
	Role    string // master or slave, as the server calls it

	clustered bool             // a node of a cluster
	node      clusternode.Node // in a cluster
}

func (i Identity) same(o Identity) bool {
	return i.RunID == o.RunID && i.ReplID == o.ReplID && i.Role == o.Role
}

func (i Identity) difference(now Identity) string {
	var d []string
	if i.RunID != now.RunID {
		d = append(d, "another process (run id "+short(i.RunID)+" is now "+short(now.RunID)+")")
	}
	if i.ReplID != now.ReplID {
		d = append(d, "another history (replication id "+short(i.ReplID)+" is now "+short(now.ReplID)+")")
	}
	if i.Role != now.Role {
		d = append(d, "it was a "+i.Role+" and is a "+now.Role)
	}
	return now.Addr + ": " + strings.Join(d, ", ")
}

func short(id string) string { return id[:min(8, len(id))] }

// fingerprint is a short form of a process and its history, for comparison. By which address
// it is reached does not matter.
func (i Identity) fingerprint() string {
	sum := sha256.Sum256([]byte(i.RunID + " " + i.ReplID + "\n"))
	return hex.EncodeToString(sum[:8])
}

// fingerprints are those of all primaries, in an order of their own.
func fingerprints(ids []Identity) string {
	var all []string
	for _, id := range ids {
		all = append(all, id.fingerprint())
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// parseIdentity reads the sections server and replication of INFO.
func parseIdentity(addr, server, replication string) (Identity, error) {
	id := Identity{Addr: addr}
	mode := ""
	for line := range strings.SplitSeq(server+"\n"+replication, "\n") {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\r"), ":")
		switch name {
		case "redis_mode", "server_mode":
			mode = value
		case "run_id":
			id.RunID = value
		case "role":
			id.Role = value
		case "master_replid":
			id.ReplID = value
		case "master_replid2":
			id.ReplID2 = value
		}
	}
	if mode == "sentinel" {
		return id, &Error{Kind: KindConfiguration, Addr: addr, Err: errors.New("it is a sentinel, which holds no data"),
			Hint: "use redis+sentinel://host:port,host:port/<name of the group> in redis.url"}
	}
	id.clustered = mode == "cluster"
	if id.RunID == "" || id.ReplID == "" || id.Role == "" {
		return id, &Error{Kind: KindConfiguration, Addr: addr,
			Hint: "without them a failover cannot be told from a reconnect; does redis.url lead to a sentinel or a proxy?",
			Err:  errors.New("INFO lacks run_id, role or master_replid")}
	}
	return id, nil
}

// send sends commands in one pipeline and leaves its own error on each of them.
//
// Every command carries errUnacknowledged until its reply was read. go-redis
// leaves commands without any error when the server refuses a new connection's
// handshake (NOPERM, LOADING), so a batch that was never sent would pass for one
// that was applied.
func send(ctx context.Context, c *redis.Client, cmds ...redis.Cmder) error {
	for _, cmd := range cmds {
		cmd.SetErr(errUnacknowledged)
	}
	p := c.Pipeline()
	_ = p.BatchProcess(ctx, cmds...)
	if _, err := p.Exec(ctx); err != nil {
		for _, cmd := range cmds {
			if cmd.Err() == errUnacknowledged { //nolint:errorlint // the very value set above
				cmd.SetErr(err)
			}
		}
	}
	return firstError(cmds)
}

// firstError looks at every command's own error: Exec returns one of them only,
// and the commands after a failed one did run.
func firstError(cmds []redis.Cmder) error {
	for _, c := range cmds {
		if err := c.Err(); err != nil {
			return fmt.Errorf("%s: %w", c.Name(), err)
		}
	}
	return nil
}
