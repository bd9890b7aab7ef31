package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// # Marks
//
// The control hash lies on one node, and proves nothing of another: one that comes back with
// data of an hour ago has lost that hour's invalidations, and the hash knows nothing of it. So
// in a cluster each primary has a mark of its own, in a hash slot that it owns
// (clusternode.Tags), with the position up to which it has everything. It is written with
// each checkpoint, before the hash, so that no mark of a healthy primary is behind the
// hash. When a primary is another process or history than at the last checkpoint, its
// mark says what it lacks: replay from there, which is a gap where Postgres has been told that
// more was done. So it does where a primary's data went back under the same identity. A single server needs none: there the hash itself is the mark.

// markTags is how many hash tags of a node are tried: a slot may have begun to move since
// the node was asked.
const markTags = 3

// mark is what one primary says of itself.
type mark struct {
	generation, node, replID string
	applied, end             lsn.LSN
}

// of says whether the mark was written for this primary, or for the one whose history it goes
// on with.
func (m *mark) of(id Identity) bool {
	return m.node == id.node.ID || m.replID != "" && (m.replID == id.ReplID || m.replID == id.ReplID2)
}

// onMark runs a command on a primary's mark: on the first of its tags that it answers for.
func (r *Redis) onMark(ctx context.Context, c *redis.Client, id Identity, command func(key string) redis.Cmder) (redis.Cmder, error) {
	var cmd redis.Cmder
	var err error
	tries := 0
	for tag := range id.node.Tags() {
		if tries++; tries > markTags {
			break
		}
		cmd = command(mapping.MarkKey(r.prefix, r.slot, tag))
		err = send(ctx, c, cmd)
		switch replyCode(err) {
		case "ASK", "MOVED", "TRYAGAIN":
			continue
		}
		return cmd, err
	}
	if err == nil {
		err = errNoMark // every slot of it is moving away
	}
	return cmd, err
}

var errNoMark = errors.New("the primary has no slot for a mark")

// writeMarks tells every primary that it has everything up to a checkpoint, and waits for all of
// them. Every batch up to there must have been acknowledged.
func (r *Redis) writeMarks(ctx context.Context, be *backend, c *Checkpoint) error {
	r.shadowMu.Lock()
	generation := hex32(r.shadow.Generation)
	r.shadowMu.Unlock()
	primaries := be.guard.attached()
	errs := make([]error, len(primaries))
	var wg sync.WaitGroup
	for i, id := range primaries {
		wg.Go(func() { errs[i] = r.writeMark(ctx, be, id, generation, r.marked[id.Addr], c) })
	}
	wg.Wait()
	if r.marked == nil {
		r.marked = make(map[string]string, len(primaries))
	}
	for i, id := range primaries {
		if errs[i] == nil {
			r.marked[id.Addr] = max(r.marked[id.Addr], c.CommitLSN.Hex()+c.EndLSN.Hex())
		}
	}
	return firstOf(errs)
}

func (r *Redis) writeMark(ctx context.Context, be *backend, id Identity, generation, marked string, c *Checkpoint) error {
	client := be.nodes[id.Addr]
	if client == nil {
		return fmt.Errorf("%w: %s", ErrNotAttached, id.Addr)
	}
	for attempt := 1; ; attempt++ {
		cmd, err := r.onMark(ctx, client, id, func(key string) redis.Cmder {
			return r.scripts.mark.command(ctx, []any{key}, []any{generation, id.ReplID, id.node.ID, c.CommitLSN.Hex(), c.EndLSN.Hex(), marked})
		})
		switch {
		case errors.Is(err, errNoMark):
			return nil // should it come back with older data, that is a gap
		case err == nil:
			err = r.controlAnswer(be, id.Addr, cmd.(*redis.Cmd))
		case replyCode(err) == "MOVED":
			be.guard.stale.Store(true) // who owns what is asked again
			err = wrap("", id.Addr, "", err)
		default:
			be.noteReply(id.Addr, err)
			err = wrap("", id.Addr, "", err)
		}
		if err == nil || attempt == attempts || replyCode(err) != "NOSCRIPT" {
			return err
		}
		if err := r.mend(ctx, be, client, err); err != nil {
			return err
		}
	}
}

func (r *Redis) readMark(ctx context.Context, be *backend, id Identity) (m mark, found bool, err error) {
	cmd, err := r.onMark(ctx, be.nodes[id.Addr], id, func(key string) redis.Cmder {
		return redis.NewSliceCmd(ctx, "hmget", key, "generation", "node", "replid", "applied", "end")
	})
	switch {
	case errors.Is(err, errNoMark), replyCode(err) == "WRONGTYPE":
		return m, false, nil
	case err != nil:
		return m, false, wrap("", id.Addr, "", err)
	}
	var text [5]string
	for i, v := range cmd.(*redis.SliceCmd).Val() {
		text[i], _ = v.(string)
	}
	m.generation, m.node, m.replID = text[0], text[1], text[2]
	var err1, err2 error
	m.applied, err1 = lsn.ParseHex(text[3])
	m.end, err2 = lsn.ParseHex(text[4])
	// One that cannot be read proves nothing.
	return m, err1 == nil && err2 == nil, nil
}

// have finds what every primary has at least, into c.
func (r *Redis) have(ctx context.Context, be *backend, ids []Identity, c *Control) error {
	known := strings.Fields(c.nodes)
	was, there := make(map[string]bool), 0
	for _, print := range known {
		was[print] = true
	}
	for _, id := range ids {
		if was[id.fingerprint()] {
			there++
		}
	}
	for _, id := range ids {
		m, found, err := r.readMark(ctx, be, id)
		if err != nil {
			return err
		}
		found = found && m.of(id) && m.generation == hex32(c.Generation)
		if was[id.fingerprint()] {
			if !found || m.applied > c.Applied || m.applied == c.Applied && m.end >= c.End {
				continue // it has kept all that it acknowledged
			}
			c.tookBack = true
		}
		if found {
			r.log.Info("a primary is another process or history, or its data went back", "addr", id.Addr, "has", m.applied, "of", c.Applied)
			if m.applied < c.Have || m.applied == c.Have && m.end < c.HaveEnd {
				c.Have, c.HaveEnd = m.applied, m.end
			}
			continue
		}
		fresh, err := holdsNothingOld(ctx, be.nodes[id.Addr], id)
		switch {
		case err != nil:
			return wrap("", id.Addr, "", err)
		case fresh:
		case there == len(known) && there > 0:
			// The others are all there, so this one is new. What has moved to it was right when it
			// moved, and it was a primary for no longer than since the last look.
			c.Have = 0
		default:
			c.Unproved = fmt.Sprintf("the primary %s is another process or history than before and has no mark of what it has", id.Addr)
		}
	}
	return nil
}

// holdsNothingOld says whether a primary without a mark has nothing from before: it is empty,
// or the process started empty.
func holdsNothingOld(ctx context.Context, c *redis.Client, id Identity) (bool, error) {
	keyspace, persistence := redis.NewStringCmd(ctx, "info", "keyspace"), redis.NewStringCmd(ctx, "info", "persistence")
	if err := send(ctx, c, keyspace, persistence); err != nil {
		return false, err
	}
	if !strings.Contains(keyspace.Val(), "keys=") {
		return true, nil
	}
	// Where a server does not say (before 7.0), it may have loaded something.
	return strings.Trim(id.ReplID2, "0") == "" &&
		strings.Contains(persistence.Val(), "rdb_last_load_keys_loaded:0\r") && strings.Contains(persistence.Val(), "aof_enabled:0\r"), nil
}
