package cache

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// family is a family of keys as readers see it.
type family struct {
	*mapping.Family
	life     lifetimes
	negative lifetimes
	metrics  *familyMetrics
	types    *keyTypes
	made     atomic.Pointer[rendering] // with the types that were known last
}

// loader loads one value.
type loader[T any] = func(ctx context.Context, tx pgx.Tx) (T, error)

// View reads the values of one family, which are of type T.
type View[T any] struct {
	c       *Client
	f       *family
	flights flights[T]
	untyped atomic.Uint64  // reads for which there was no key
	text    func(string) T // T is string, and stored as it is; nil of all others
}

// Family gives the view of a family. A name that the mappings do not have is an error.
func Family[T any](c *Client, name string) (*View[T], error) {
	f, ok := c.plan.Family(name)
	if !ok {
		return nil, fmt.Errorf("cache: the mappings %s have no family %q", c.o.file.Name, name)
	}
	ttl := f.TTL
	if ttl == 0 {
		ttl = DefaultTTL
	}
	v := &View[T]{c: c, f: &family{Family: f, metrics: c.metrics.family(name), types: c.types,
		life:     lifetimes{ttl: ttl, stale: f.StaleFor, failSafe: f.Class.FailSafe},
		negative: lifetimes{ttl: f.NegativeTTL}}}
	if c.o.codec == Raw {
		v.text, _ = any(func(s string) string { return s }).(func(string) T)
	}
	return v, nil
}

// Get returns the value with these variables: from the cache, or from load, whose
// result is stored.
//
// load runs in a read-only transaction, on a snapshot of its own, and in the background: it
// is not cancelled with ctx, for others may wait for it. It must depend on nothing but
// the variables, what it reads in tx, and what the mappings or DependsOn tell of.
func (v *View[T]) Get(ctx context.Context, vars Vars, load func(ctx context.Context, tx pgx.Tx) (T, error), opts ...GetOption) (T, error) {
	out, err := v.get(ctx, vars, load, tokenOf(opts))
	v.count(&out, err)
	if err == nil && out.meta.negative {
		err = ErrNotFound
	}
	return out.value, err
}

// outcome is what a read came to.
type outcome[T any] struct {
	value  T
	meta   entryMeta // negative: value is none
	result string    // for the metrics

	// known is what was known of the daemon before Redis was asked for the value, or for
	// storing it; before the position of a standby was, for a load there.
	known   *controlState
	stamp   string    // of the family, as known before the value was read or its lease was taken
	at      time.Time // before the snapshot of a load; zero for what was cached
	standby bool      // it was loaded there
	stored  bool      // the load's fill was accepted, under the stamp of known: nothing had made it stale
}

func (v *View[T]) count(out *outcome[T], err error) {
	m := v.f.metrics
	switch {
	case err != nil:
		m.results[resultError].Inc()
	case out.result == resultHit:
		m.hit.Inc()
	case out.result == resultL1:
		m.l1.Inc()
	default:
		m.results[out.result].Inc()
	}
	if err == nil && out.meta.negative {
		m.negative.Inc()
	}
}

func (v *View[T]) get(ctx context.Context, vars Vars, load loader[T], token *Token) (outcome[T], error) {
	if v.c.closed.Load() {
		return outcome[T]{}, ErrClosed
	}
	if nested(ctx) {
		return outcome[T]{}, errNested
	}
	for try := 1; ; try++ {
		out, err := v.getOnce(ctx, vars, load, token, try == looks)
		if err != errLookAgain {
			return out, err
		}
	}
}

// looks is how often a read looks at the daemon's state because Redis answered on a connection
// made after the last look. Then it goes past the cache.
const looks = 3

var errLookAgain = errors.New("cache: what is known of the daemon is void")

// getOnce is get on what is known of the daemon now. Unless it is the last try, it gives up
// when that is void at the end.
func (v *View[T]) getOnce(ctx context.Context, vars Vars, load loader[T], token *Token, last bool) (outcome[T], error) {
	v.c.control.use(ctx)
	known, told := v.c.control.look(), v.c.l1.look() // before anything is read
	key, version, err := v.key(ctx, vars, token, told, known, nil)
	if err != nil {
		return outcome[T]{}, err
	}
	if version == versionUntyped {
		return v.bypass(ctx, key, load, token, doubtTypes, known)
	}
	if !last && known.void() {
		return outcome[T]{}, errLookAgain
	}
	now, cached := time.Now(), version != versionNone
	trusted, why := v.c.holds(v.f, known, now)
	if cached && trusted {
		if out, ok := v.fromL1(key, token, told, now, known); ok {
			return out, nil
		}
	}
	if version == versionL1 {
		known = known.atMost(told)
		trusted, why = v.c.holds(v.f, known, now)
	}
	switch {
	case !trusted:
		return v.bypass(ctx, key, load, token, why, known)
	case !cached || !v.c.redisUp(now):
		return v.bypass(ctx, key, load, token, doubtRedis, known)
	}
	mark := v.mark(key)
	raw, err := v.c.rdb.Get(ctx, key).Result()
	v.c.asked(ctx, err)
	if !last && known.void() {
		return outcome[T]{}, errLookAgain
	}
	mode := modeRead
	switch {
	case err == nil:
		e, ok := parseEntry(raw)
		if !ok || e.kind == kindLease || !v.f.believes(known, e.stamp) || e.at(millisOf(now)) != fresh {
			break
		}
		out, err := v.decodeHit(&e, token)
		if err != nil {
			v.c.log.Warn("what is cached cannot be read and is loaded again", "family", v.f.Name, "error", err)
			mode = modeRefresh
			break
		}
		if !v.c.meets(v.f, &out.meta, token, known) {
			mode = modeRefresh
			break
		}
		if ok, why := v.c.holds(v.f, known, time.Now()); !ok { // Redis was slow
			return v.bypass(ctx, key, load, token, why, known)
		}
		if early(&e, millisOf(now)) {
			v.refreshSoon(ctx, key, load, known)
		}
		out.stamp = known.stamp(v.f)
		v.storeL1(mark, &out)
		return out, nil
	case errors.Is(err, redis.Nil) || isReply(err): // another type, perhaps, which read.lua replaces
	case ctx.Err() != nil:
		return outcome[T]{}, ctx.Err()
	default:
		return v.bypass(ctx, key, load, token, doubtRedis, known)
	}
	out, err := v.miss(ctx, key, load, token, mode, known)
	if last && err == errLookAgain {
		return v.bypass(ctx, key, load, token, doubtUnknown, known)
	}
	return out, err
}

// decode makes a value of an entry.
func (v *View[T]) decode(e *entry, result string) (out outcome[T], err error) {
	if out.meta, err = e.meta(); err == nil {
		out.value, err = v.valueOf(e)
	}
	out.result = result
	return out, err
}

// decodeHit is decode for the path of every hit: what only tokens and the L1 ask for is read
// for them only.
func (v *View[T]) decodeHit(e *entry, token *Token) (out outcome[T], err error) {
	if token != nil || v.c.l1 != nil {
		return v.decode(e, resultHit)
	}
	out.meta.negative, out.meta.freshUntil, out.meta.staleUntil = e.kind == kindMissing, e.freshUntil, e.staleUntil
	out.value, err = v.valueOf(e)
	out.result = resultHit
	return out, err
}

func (v *View[T]) valueOf(e *entry) (value T, err error) {
	switch {
	case e.kind == kindMissing:
		return value, nil
	case v.text != nil:
		return v.text(e.payload), nil
	}
	return decodeWith[T](v.c.o.codec, e.payload)
}

// decodeWith is apart, because here the value has to be allocated.
func decodeWith[T any](codec Codec, payload string) (value T, err error) {
	if err := codec.Decode([]byte(payload), &value); err != nil {
		return value, fmt.Errorf("decode: %w", err)
	}
	return value, nil
}

// early says whether this reader should refresh a value that is fresh still. The nearer
// its end, and the longer it takes to load, the likelier: so of many readers one
// refreshes it before all of them would miss (optimal probabilistic cache stampede
// prevention, Vattani et al. 2015, with beta 1).
func early(e *entry, ms int64) bool {
	left, cost := e.freshUntil-ms, e.loadTime()
	if cost <= 0 || left > 40*cost { // e^-40: never
		return false
	}
	return float64(cost)*-math.Log(1-rand.Float64()) >= float64(left)
}

// Where a data key's version comes from.
const (
	versionRead    = iota // from Redis just now, or there is none in the key
	versionL1             // from memory, proved as of what was told
	versionNone           // it could not be read: the key stands for nothing in Redis
	versionUntyped        // the same of the types: the key is of this read alone
)

// key renders the data key. told is how fresh memory was before. For a token the version is
// read from Redis: memory may be behind what the control hash says.
// Versions that were read before in the same call are taken from read, which may be nil.
//
// known is what was known of the daemon before. A key that the daemon would make otherwise is none.
func (v *View[T]) key(ctx context.Context, vars Vars, token *Token, told int64, known *controlState, read map[string]string) (key string, from int, err error) {
	r, err := v.f.rendering(ctx)
	if errors.Is(err, errTypes) || err == nil && !known.agrees(v.f, r) {
		return "?" + strconv.FormatUint(v.untyped.Add(1), 10), versionUntyped, nil
	}
	if err != nil {
		return "", versionNone, err
	}
	if !v.f.Versioned {
		key, err = v.f.dataKey(r, vars, "")
		return key, versionRead, err
	}
	name, err := v.f.versionKey(r, vars)
	if err != nil {
		return "", versionNone, err
	}
	if token == nil {
		if version, ok := v.versionFromL1(name, told); ok {
			key, err = v.f.dataKey(r, vars, version)
			return key, versionL1, err
		}
	}
	version, ok := read[name]
	if !ok {
		version, err = v.version(ctx, name)
	}
	if err != nil {
		if ctx.Err() != nil {
			return "", versionNone, ctx.Err()
		}
		key, err = v.f.dataKey(r, vars, noVersion)
		return key, versionNone, err
	}
	if read != nil {
		read[name] = version
	}
	key, err = v.f.dataKey(r, vars, version)
	return key, versionRead, err
}
