package demo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// controlPrefix is the space that no mapping knows: the same entries, maintained by
// the same readers by hand, that nobody invalidates.
const controlPrefix = "without:"

// fallbackTTL is for families that have none of their own.
const fallbackTTL = time.Hour

// absent is what is cached for a row that is not there. It is a value like any
// other: an insert has to invalidate it.
const absent = "(no row)"

// view is a kind of cached value: what a reader of the family loads on a miss. The
// query gives one text; it is made of nothing but what the mappings watch, and of the
// rows' versions, so that two equal texts come from equal rows.
type view struct {
	family string
	sql    string
	// each lists every entry of the view that can ever be asked for: the values of the
	// key's variables, in the order of vars.
	vars []string
	each func(yield func(...any))
	// dependsOn declares what else the value is made of, nil where the mappings know.
	dependsOn func(ctx context.Context, tx pgx.Tx, args []any) error
}

// entry is one cached value of a view.
type entry struct {
	view   *view
	family *mapping.Family
	vars   cache.Vars
	args   []any
}

// name of the entry for people.
func (e *entry) name() string { return fmt.Sprint(e.family.Name, e.args) }

// plannedViews resolves the views against the plan. A view whose family the plan
// lacks is an error: it would be compared and never invalidated.
func plannedViews(plan *mapping.Plan) ([]*entry, error) {
	families := make(map[string]*mapping.Family)
	for _, f := range plan.Families() {
		families[f.Name] = f
	}
	var entries []*entry
	for _, v := range views() {
		f := families[v.family]
		if f == nil {
			return nil, fmt.Errorf("the mappings have no family %q, which the demo's readers cache", v.family)
		}
		v.each(func(args ...any) {
			e := &entry{view: v, family: f, vars: make(cache.Vars), args: args}
			for i, name := range v.vars {
				e.vars[name] = args[i]
			}
			entries = append(entries, e)
		})
	}
	return entries, nil
}

// key of the entry, in the real space or in the control space. For a versioned family
// the version is read first, as every reader has to; one that is not there is "0".
func (e *entry) key(ctx context.Context, rdb *redis.Client, control bool) (string, error) {
	var values map[string]string
	if e.family.Versioned {
		version := mapping.VersionAbsent
		if !control {
			name, err := e.family.Version(e.text(nil))
			if err != nil {
				return "", err
			}
			v, err := rdb.Get(ctx, name).Result()
			if err != nil && !errors.Is(err, redis.Nil) {
				return "", fmt.Errorf("read the version of %s: %w", e.family.Name, err)
			}
			if err == nil {
				version = v
			}
		}
		values = map[string]string{mapping.VersionVar: version}
	}
	key, err := e.family.Key(e.text(values))
	if err != nil {
		return "", err
	}
	if control {
		key = controlPrefix + key
	}
	return key, nil
}

// text is the entry's variables as they stand in keys, added to others.
func (e *entry) text(values map[string]string) map[string]string {
	all := maps.Clone(values)
	if all == nil {
		all = make(map[string]string)
	}
	for name, value := range e.vars {
		all[name] = fmt.Sprint(value)
	}
	return all
}

// querier is a connection or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// load reads the entry's rows. On a connection the statement is a transaction of its
// own, so its snapshot is taken now.
func (e *entry) load(ctx context.Context, q querier) (string, error) {
	var value *string
	err := q.QueryRow(ctx, e.view.sql, e.args...).Scan(&value)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && value == nil {
		return absent, nil
	}
	if err != nil {
		return "", fmt.Errorf("load %s: %w", e.family.Name, err)
	}
	return *value, nil
}

func (e *entry) ttl() time.Duration {
	if e.family.TTL > 0 {
		return e.family.TTL
	}
	return fallbackTTL
}

// traffic chooses entries as a shop's visitors do: mostly the busy ones.
type traffic struct {
	byView [][]*entry
}

func newTraffic(entries []*entry) *traffic {
	t := &traffic{}
	for i, e := range entries {
		if i == 0 || entries[i-1].view != e.view {
			t.byView = append(t.byView, nil)
		}
		last := len(t.byView) - 1
		t.byView[last] = append(t.byView[last], e)
	}
	return t
}

func (t *traffic) next() *entry {
	entries := t.byView[rand.IntN(len(t.byView))]
	return entries[pick(len(entries))]
}
