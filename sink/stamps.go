package sink

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Stamps is a text to be published, see mapping.Stamps.
type Stamps struct {
	Revision string
	Text     string
	Purging  []string // families whose purge is not done
	Sent     lsn.LSN  // what was committed before is not told of; 0 when nothing is new
}

// LoadStamps reads the stamps that the control hash names; nil when they are not there, or are
// others: then nothing is known of any family.
func (r *Redis) LoadStamps(ctx context.Context) (*mapping.Stamps, error) {
	known, _ := r.Known()
	s, err := r.backend.Load().loadStamps(ctx, r.stampsKey, known.Stamps)
	if err != nil {
		return nil, r.fail("read the stamps", "", err)
	}
	return s, nil
}

// loadStamps reads the stamps of that revision, nil when it is none or another one.
func (b *backend) loadStamps(ctx context.Context, key, revision string) (*mapping.Stamps, error) {
	c, err := b.nodeFor(ctx, key)
	if err != nil {
		return nil, err
	}
	text, err := c.Get(ctx, key).Result()
	switch {
	case errors.Is(err, redis.Nil) || replyCode(err) == "WRONGTYPE":
		return nil, nil
	case err != nil:
		if b.guard != nil {
			b.noteReply(b.addr(c), err)
		}
		return nil, wrap("", b.addr(c), "", err)
	}
	if s, err := mapping.ParseStamps(text); err == nil && s.Revision == revision {
		return s, nil
	}
	return nil, nil
}

// PublishStamps replaces the stamps that this process has published or found, in one step.
func (r *Redis) PublishStamps(ctx context.Context, s Stamps) error {
	return r.writeStamps(ctx, "publish the stamps", s)
}

// KeepStamps writes the stamps again if they are gone: they were evicted, or flushed.
func (r *Redis) KeepStamps(ctx context.Context, s Stamps) error {
	const op = "look after the stamps"
	be := r.backend.Load()
	c, err := be.nodeFor(ctx, r.controlKey)
	if err != nil {
		return r.fail(op, "", err)
	}
	want := mapping.RevisionPrefix(s.Revision)
	found, err := c.GetRange(ctx, r.stampsKey, 0, int64(len(want))-1).Result()
	if err != nil && replyCode(err) != "WRONGTYPE" {
		be.noteReply(be.addr(c), err)
		return r.fail(op, "", wrap("", be.addr(c), "", err))
	}
	if found == want {
		return nil
	}
	r.metrics.restored.Inc()
	return r.writeStamps(ctx, op, s)
}

// Purged notes which families' purges are not done yet, of those that the stamps were
// published with.
func (r *Redis) Purged(ctx context.Context, s Stamps) error {
	s.Text, s.Sent = "", 0
	return r.writeStamps(ctx, "note what is purged", s)
}

func (r *Redis) writeStamps(ctx context.Context, op string, s Stamps) error {
	generation, err := r.generation()
	if err != nil {
		return r.fail(op, "", err)
	}
	sent := ""
	if s.Sent != 0 {
		sent = s.Sent.Hex()
	}
	err = r.callControl(ctx, r.backend.Load(), func(replID string) *redis.Cmd {
		known, _ := r.Known()
		r.shadowMu.Lock()
		r.asked = max(r.asked, s.Sent)
		r.shadowMu.Unlock()
		return r.scripts.stamps.command(ctx, []any{r.controlKey, r.stampsKey},
			[]any{hex32(generation), replID, known.Stamps, s.Revision, s.Text, strings.Join(s.Purging, " "), sent})
	})
	if err != nil {
		return r.fail(op, "", err)
	}
	r.shadowMu.Lock()
	defer r.shadowMu.Unlock()
	r.shadow.Stamps, r.shadow.Purging = s.Revision, slices.Clone(s.Purging)
	r.shadow.Sent = max(r.shadow.Sent, s.Sent)
	return nil
}
