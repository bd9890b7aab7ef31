package sink

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Stuck is a transaction that the daemon cannot read, for whoever might give it up.
type Stuck struct {
	Position string `json:"position"` // of its commit, or, with Behind, something before it
	Behind   bool   `json:"behind,omitempty"`
	Table    string `json:"table,omitempty"`
	Code     string `json:"code"` // SQLSTATE
	Attempts int    `json:"attempts"`
}

// SkipRequest asks the daemon to give a transaction up. The daemon does it, and nobody
// else: it knows what it has applied, and the slot and the state are its own.
type SkipRequest struct {
	ID       string `json:"id"`
	Position string `json:"position"`
	Reason   string `json:"reason"`
	Begun    bool   `json:"begun,omitempty"`  // the gap is published, the slot may have moved
	Answer   string `json:"answer,omitempty"` // of the daemon; empty until there is one
	Refused  bool   `json:"refused,omitempty"`
}

// skipTTL is how long a request, or its answer, waits to be read.
const skipTTL = time.Hour

// TellStuck says for some time that the stream is stuck.
func (r *Redis) TellStuck(ctx context.Context, s Stuck, ttl time.Duration) error {
	return r.putJSON(ctx, mapping.StuckKey(r.prefix, r.slot), s, ttl)
}

// Stuck is what TellStuck said last.
func (r *Redis) Stuck(ctx context.Context) (s Stuck, found bool, err error) {
	found, err = r.getJSON(ctx, mapping.StuckKey(r.prefix, r.slot), &s)
	return s, found, err
}

// ForgetStuck takes back what TellStuck said.
func (r *Redis) ForgetStuck(ctx context.Context) error {
	return r.drop(ctx, mapping.StuckKey(r.prefix, r.slot))
}

// RequestSkip leaves a request for the daemon.
func (r *Redis) RequestSkip(ctx context.Context, req SkipRequest) error {
	return r.putJSON(ctx, mapping.SkipKey(r.prefix, r.slot), req, skipTTL)
}

// SkipRequest is the request that was left, with its answer.
func (r *Redis) SkipRequest(ctx context.Context) (req SkipRequest, found bool, err error) {
	found, err = r.getJSON(ctx, mapping.SkipKey(r.prefix, r.slot), &req)
	return req, found, err
}

// AnswerSkip leaves the daemon's answer, and takes back what TellStuck said.
func (r *Redis) AnswerSkip(ctx context.Context, req SkipRequest) error {
	if err := r.putJSON(ctx, mapping.SkipKey(r.prefix, r.slot), req, skipTTL); err != nil || req.Refused {
		return err
	}
	return r.ForgetStuck(ctx)
}

// WithdrawSkip takes a request back.
func (r *Redis) WithdrawSkip(ctx context.Context) error {
	return r.drop(ctx, mapping.SkipKey(r.prefix, r.slot))
}

func (r *Redis) putJSON(ctx context.Context, key string, v any, ttl time.Duration) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c, err := r.backend.Load().nodeFor(ctx, key)
	if err != nil {
		return err
	}
	return r.fail("write "+key, "", c.Set(ctx, key, b, ttl).Err())
}

func (r *Redis) getJSON(ctx context.Context, key string, v any) (found bool, err error) {
	c, err := r.backend.Load().nodeFor(ctx, key)
	if err != nil {
		return false, err
	}
	b, err := c.Get(ctx, key).Bytes()
	switch {
	case errors.Is(err, redis.Nil):
		return false, nil
	case err != nil:
		return false, r.fail("read "+key, "", err)
	}
	return true, r.fail("read "+key, "", json.Unmarshal(b, v))
}

func (r *Redis) drop(ctx context.Context, key string) error {
	c, err := r.backend.Load().nodeFor(ctx, key)
	if err != nil {
		return err
	}
	return r.fail("remove "+key, "", c.Unlink(ctx, key).Err())
}
