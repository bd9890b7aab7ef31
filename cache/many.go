package cache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

// Item is one of the values that GetMany returns, or its absence.
type Item[T any] struct {
	Value T
	Found bool
}

// othersAtOnce is how many of the values that somebody else is loading are waited for at a
// time.
const othersAtOnce = 16

// GetMany is Get for several keys: one round trip for all that are cached, after one for each
// version key that they have, and one transaction for all that have to be loaded.
//
// load is given the variables of those that are missing, as they were given to GetMany, and
// returns an item for each of them, in their order. It may be called more than once, with
// some of them each time. What it declares with DependsOn holds for all that it is given.
func (v *View[T]) GetMany(ctx context.Context, keys []Vars, load func(ctx context.Context, tx pgx.Tx, missing []Vars) ([]Item[T], error), opts ...GetOption) ([]Item[T], error) {
	m := &many[T]{v: v, vars: keys, token: tokenOf(opts), items: make([]Item[T], len(keys)), load: func(ctx context.Context, tx pgx.Tx, missing []Vars) ([]Item[T], error) {
		items, err := load(ctx, tx, missing)
		if err == nil && len(items) != len(missing) {
			err = fmt.Errorf("cache: family %s: the loader of GetMany returned %d items for %d keys", v.f.Name, len(items), len(missing))
		}
		return items, err
	}}
	if err := m.cached(ctx); err != nil {
		return nil, err
	}
	if err := m.pastCache(ctx); err != nil {
		return nil, err
	}
	if err := m.leases(ctx); err != nil {
		return nil, err
	}
	if err := m.others(ctx); err != nil {
		return nil, err
	}
	return m.items, nil
}

// many is one call of GetMany.
type many[T any] struct {
	v     *View[T]
	vars  []Vars
	token *Token
	load  func(ctx context.Context, tx pgx.Tx, missing []Vars) ([]Item[T], error)
	items []Item[T]

	missing []missingItem // not in the cache, and to be loaded together
	stamp   string        // of the family, when they were asked for
	past    []int         // to be loaded together past the cache
	rest    []int         // to be got one by one
}

type missingItem struct {
	at   int // in vars
	key  string
	mark l1Mark
}

func (m *many[T]) take(at int, out *outcome[T]) {
	m.v.count(out, nil)
	m.items[at] = Item[T]{out.value, !out.meta.negative}
}

// cached takes what can be had at once.
func (m *many[T]) cached(ctx context.Context) error {
	v, now := m.v, time.Now()
	if v.c.closed.Load() {
		return ErrClosed
	}
	if nested(ctx) {
		return errNested
	}
	v.c.control.use(ctx)
	known, told := v.c.control.look(), v.c.l1.look() // before anything is read
	trusted, why := v.c.holds(v.f, known, now)
	if trusted && !v.c.redisUp(now) {
		trusted, why = false, doubtRedis
	}
	stamp := known.stamp(v.f)
	var asked []missingItem
	versions := map[string]string{}
	var gets []*redis.StringCmd
	for i, vars := range m.vars {
		key, version, err := v.key(ctx, vars, m.token, told, known, versions)
		if err != nil {
			return err
		}
		if version < versionNone && trusted {
			if out, ok := v.fromL1(key, m.token, told, time.Now(), known); ok {
				m.take(i, &out)
				continue
			}
		}
		if version == versionL1 {
			known = known.atMost(told) // of all of them: they are asked for together
		}
		if version == versionNone || version == versionUntyped || !trusted {
			m.past = append(m.past, i)
			doubt := why
			switch {
			case version == versionUntyped:
				doubt = doubtTypes
			case trusted:
				doubt = doubtRedis
			}
			v.f.metrics.bypasses[doubt].Inc()
			continue
		}
		asked = append(asked, missingItem{i, key, v.mark(key)})
	}
	if len(asked) == 0 {
		return nil
	}
	for try := 1; ; try++ {
		pipe := v.c.rdb.Pipeline()
		gets = gets[:0]
		for _, a := range asked {
			gets = append(gets, pipe.Get(ctx, a.key))
		}
		_, _ = pipe.Exec(ctx)                               // the error of each stands on it
		if !known.void() || v.f.Versioned || try == looks { // a version was read after the same look
			break
		}
		v.c.control.use(ctx)
		known = v.c.control.look()
	}
	stillTrusted, _ := v.c.holds(v.f, known, time.Now())
	if m.stamp = known.stamp(v.f); m.stamp != stamp { // the keys were made under the one before
		for _, a := range asked {
			m.rest = append(m.rest, a.at)
		}
		return nil
	}
	for n, get := range gets {
		raw, err := get.Result()
		v.c.asked(ctx, err)
		switch {
		case errors.Is(err, redis.Nil):
			m.missing = append(m.missing, asked[n])
			continue
		case err == nil:
			e, ok := parseEntry(raw)
			if ok && stillTrusted && !v.f.believes(known, e.stamp) { // as good as absent
				m.missing = append(m.missing, asked[n])
				continue
			}
			if ok && e.kind != kindLease && e.at(millisOf(now)) == fresh && stillTrusted {
				if out, err := v.decode(&e, resultHit); err == nil && v.c.meets(v.f, &out.meta, m.token, known) {
					out.stamp = m.stamp
					v.storeL1(asked[n].mark, &out)
					m.take(asked[n].at, &out)
					continue
				}
			}
		case ctx.Err() != nil:
			return ctx.Err()
		}
		m.rest = append(m.rest, asked[n].at)
	}
	return nil
}

// leases loads what nobody else is loading, in one transaction.
func (m *many[T]) leases(ctx context.Context) error {
	v := m.v
	if len(m.missing) == 0 {
		return nil
	}
	tokens := make([]token, len(m.missing))
	calls := make([]call, len(m.missing))
	for i := range m.missing {
		calls[i] = call{m.missing[i].key, readArgs(&tokens[i], v.c.o.lease, modeRead, m.stamp)}
	}
	var mine []missingItem
	var held []string // leases
	for i, cmd := range v.c.scripts.read.runAll(ctx, v.c.rdb, calls) {
		a, err := parseRead(cmd, &tokens[i])
		v.c.asked(ctx, err)
		if err == nil && a.verdict == verdictLease {
			mine, held = append(mine, m.missing[i]), append(held, a.token)
			continue
		}
		if err == nil && a.verdict.mine() {
			v.release(ctx, m.missing[i].key, a.token)
		}
		m.rest = append(m.rest, m.missing[i].at)
	}
	if len(mine) == 0 {
		return nil
	}
	stored := false
	defer func() {
		if !stored {
			for i := range mine {
				v.release(ctx, mine[i].key, held[i])
			}
		}
	}()
	keys, missing := make([]string, len(mine)), make([]Vars, len(mine))
	for i := range mine {
		keys[i], missing[i] = mine[i].key, m.vars[mine[i].at]
	}
	l, err := m.run(ctx, keys, missing, loadOptions{leased: true, token: m.token})
	if err != nil {
		return err
	}
	defer l.end()
	stored = l.proved
	return m.fill(ctx, mine, held, &l)
}

// run loads several in one transaction.
func (m *many[T]) run(ctx context.Context, keys []string, missing []Vars, o loadOptions) (loaded[[]Item[T]], error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.v.c.o.loadTimeout, errLoadTimeout)
	defer cancel()
	l, err := run(ctx, m.v.c, m.v.f, keys, func(ctx context.Context, tx pgx.Tx) ([]Item[T], error) { return m.load(ctx, tx, missing) }, o)
	if err == nil && l.notFound { // of a loader for many that means none of them
		l.value = make([]Item[T], len(missing))
	}
	return l, err
}

// pastCache loads what cannot be had from the cache now, in one transaction, and stores
// nothing. While the source is down, Get knows what may be given instead.
func (m *many[T]) pastCache(ctx context.Context) error {
	v := m.v
	if len(m.past) == 0 {
		return nil
	}
	missing := make([]Vars, len(m.past))
	for n, i := range m.past {
		missing[n] = m.vars[i]
	}
	l, err := m.run(ctx, nil, missing, loadOptions{})
	if errors.Is(err, ErrUnavailable) && v.f.Class.FailSafe > 0 {
		m.rest = append(m.rest, m.past...)
		return nil
	}
	if err != nil {
		return err
	}
	l.end()
	for n, i := range m.past {
		out := outcomeOf(l.value[n].Value, !l.value[n].Found, &l.source, resultBypass)
		if ok, _ := v.returnable(&out, time.Now()); !ok || !v.c.meets(v.f, &out.meta, m.token, nil) {
			m.rest = append(m.rest, i)
			continue
		}
		m.take(i, &out)
	}
	return nil
}

// fill stores what was loaded together. What was refused, and took longer than allowed, is
// got again.
func (m *many[T]) fill(ctx context.Context, mine []missingItem, held []string, l *loaded[[]Item[T]]) error {
	v := m.v
	outs := make([]outcome[T], len(mine))
	var calls []call
	var sent []int
	var failed error
	for i, item := range l.value {
		outs[i] = outcomeOf(item.Value, !item.Found, &l.source, resultMiss)
		outs[i].stamp = m.stamp
		if !l.proved {
			v.f.metrics.refused[refusedLoader].Inc()
			continue
		}
		args, err := v.fillArgs(&outs[i], held[i])
		if args == nil {
			v.giveUp(ctx, mine[i].key, held[i], outs[i].meta.negative)
			failed = errors.Join(failed, err)
			continue
		}
		if v.elsewhere(mine[i].mark) {
			v.f.metrics.refused[refusedRevoked].Inc()
			v.release(ctx, mine[i].key, held[i])
			continue
		}
		calls, sent = append(calls, call{mine[i].key, args}), append(sent, i)
	}
	known := v.c.control.look()
	for n, cmd := range v.c.scripts.fill.runAll(ctx, v.c.rdb, calls) {
		stored, err := parseDone(cmd)
		out := &outs[sent[n]]
		if !out.standby {
			out.known = known
		}
		v.filled(ctx, mine[sent[n]].mark, out, stored, err)
	}
	for i := range outs {
		if ok, _ := v.returnable(&outs[i], time.Now()); !ok || !v.c.meets(v.f, &outs[i].meta, m.token, nil) {
			m.rest = append(m.rest, mine[i].at)
			continue
		}
		m.take(mine[i].at, &outs[i])
	}
	return failed
}

// others gets the rest one by one: what somebody else is loading, and what is stale.
func (m *many[T]) others(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(othersAtOnce)
	for _, i := range m.rest {
		g.Go(func() error {
			out, err := m.v.get(ctx, m.vars[i], func(ctx context.Context, tx pgx.Tx) (value T, err error) {
				items, err := m.load(ctx, tx, m.vars[i:i+1])
				switch {
				case err != nil:
					return value, err
				case !items[0].Found:
					return value, ErrNotFound
				}
				return items[0].Value, nil
			}, m.token)
			if err != nil {
				m.v.count(&out, err)
				return err
			}
			m.take(i, &out)
			return nil
		})
	}
	return g.Wait()
}
