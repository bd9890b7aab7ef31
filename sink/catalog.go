package sink

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/redis/go-redis/v9"
)

// catalogKey holds what the source's catalogs said when everything that followed
// from it was last applied. The hash tag keeps it beside the control hash.
func (r *Redis) catalogKey() string { return r.controlKey + ":catalog" }

// SaveCatalog stores a state of the catalogs. Only what has been acted upon may be
// stored: a restart takes it as known.
func (r *Redis) SaveCatalog(ctx context.Context, state map[string]string) error {
	const op = "save the state of the catalogs"
	data, err := json.Marshal(state)
	if err != nil {
		return r.fail(op, "", err)
	}
	be := r.backend.Load()
	c, err := be.nodeFor(ctx, r.catalogKey())
	if err == nil {
		if err = be.guard.node(be.addr(c)); err == nil {
			err = c.Set(ctx, r.catalogKey(), data, 0).Err()
		}
	}
	return r.fail(op, "", err)
}

// LoadCatalog returns what was stored last, nil when there is nothing that can be
// read: then nothing is known.
func (r *Redis) LoadCatalog(ctx context.Context) (map[string]string, error) {
	const op = "load the state of the catalogs"
	be := r.backend.Load()
	c, err := be.nodeFor(ctx, r.catalogKey())
	if err != nil {
		return nil, r.fail(op, "", err)
	}
	data, err := c.Get(ctx, r.catalogKey()).Bytes()
	if errors.Is(err, redis.Nil) || replyCode(err) == "WRONGTYPE" {
		return nil, nil
	}
	if err != nil {
		return nil, r.fail(op, "", err)
	}
	var state map[string]string
	if err := json.Unmarshal(data, &state); err != nil {
		return nil, nil // damaged: unknown, which the caller settles by invalidating
	}
	return state, nil
}
