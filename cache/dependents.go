package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// DependsOn declares, inside a loader, that the value it loads depends on an entity: when a
// row that the mappings map to it (`dependents: ["seller:{id}"]`) changes, the value becomes
// stale. kind is the name before the colon, values are those of its variables, as in Vars.
//
// It may be called before or after the query that reads the entity. The error is to be
// returned by the loader.
func DependsOn(ctx context.Context, kind string, values ...any) error {
	d, ok := ctx.Value(dependenciesKey{}).(*dependencies)
	if !ok {
		return errors.New("cache: DependsOn is for loaders, with the context that they are given")
	}
	name, err := d.name(ctx, kind, values)
	d.mu.Lock()
	defer d.mu.Unlock()
	if errors.Is(err, errTypes) { // no name, so what is loaded is not stored
		d.untyped = true
		return nil
	}
	if err != nil {
		d.err = errors.Join(d.err, err)
	} else if !slices.Contains(d.found, name) {
		d.found = append(d.found, name)
	}
	return err
}

type dependenciesKey struct{}

// nested says whether the context is one that a loader was given.
func nested(ctx context.Context) bool { return ctx.Value(dependenciesKey{}) != nil }

// dependencies gathers what a load depends on.
type dependencies struct {
	plan    *mapping.Plan
	types   *keyTypes
	control *control

	mu      sync.Mutex
	found   []string
	untyped bool // one had no name
	err     error
}

func (d *dependencies) name(ctx context.Context, kind string, values []any) (string, error) {
	entity, ok := d.plan.Entity(kind)
	if !ok {
		return "", fmt.Errorf(`cache: DependsOn(%q): no mapping would ever invalidate it: add dependents: ["%s:{id}"] to its table in the mappings`, kind, kind)
	}
	if len(values) != entity.Vars {
		return "", fmt.Errorf("%w: DependsOn(%q): it is named by %d values, not by %d", ErrVars, kind, entity.Vars, len(values))
	}
	known := d.control.look()
	types, err := d.types.get(ctx)
	if err != nil {
		return "", err
	}
	// Should the types change between here and the registration, or the lease, all stamps move.
	if known.follows(entity) && !known.names(entity, types) {
		return "", fmt.Errorf("%w: the daemon finds others for the entity %s", errTypes, kind)
	}
	name := []byte(kind)
	vars := types.Entity(kind)
	for i, v := range values {
		if err := vars[i].Unknown(); err != nil {
			return "", fmt.Errorf("%w: %w", errTypes, err)
		}
		if name, err = appendVar(append(name, ':'), &vars[i], v); err != nil {
			return "", fmt.Errorf("%w: DependsOn(%q): value %d: %w", ErrVars, kind, i+1, err)
		}
	}
	if len(name) > mapping.MaxKeyLength {
		return "", fmt.Errorf("%w: DependsOn(%q): %w", ErrVars, kind, mapping.ErrKeyTooLong)
	}
	return string(name), nil
}

// isNamed says whether all that was declared has a name.
func (d *dependencies) isNamed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.untyped
}

// problem is what was wrong with a declaration, even if the loader has passed it over:
// what depends on something unknown must not be stored.
func (d *dependencies) problem() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

func (d *dependencies) names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.found)
}

// register notes keys under entities, for as long as what may be stored under them can
// live.
func (c *Client) register(ctx context.Context, f *family, keys, entities []string) error {
	life := c.o.lease + max(f.life.total(), f.negative.total())
	calls := make([]call, 0, len(entities)*len(keys))
	look := c.control.look()
	for _, name := range entities {
		if kind, _, _ := strings.Cut(name, ":"); !c.followsEntity(look, kind) {
			return fmt.Errorf("%w %s", errEntity, kind)
		}
		for _, key := range keys {
			calls = append(calls, call{mapping.DependentsKey(c.prefix, name), []any{millis(life), f.Name + " " + key}})
		}
	}
	var errs []error
	for _, cmd := range c.scripts.register.runAll(ctx, c.rdb, calls) {
		errs = append(errs, cmd.Err())
	}
	return errors.Join(errs...)
}

// errEntity means that what depends on an entity would not be removed with it.
var errEntity = errors.New("the daemon runs with other mappings, which do not have the entity")

// followsEntity says whether what is registered under entities of the kind now will be removed with them.
// The look may be later than the lease's: an entity that comes or goes moves all stamps.
func (c *Client) followsEntity(look *controlState, kind string) bool {
	e, ok := c.plan.Entity(kind)
	return ok && look.follows(e)
}

// knownTags is what loads of the keys have declared before.
func (c *Client) knownTags(keys []string) []string {
	var all []string
	for _, key := range keys {
		tags, _ := c.tags.Get(key)
		for _, tag := range tags {
			if !slices.Contains(all, tag) {
				all = append(all, tag)
			}
		}
	}
	return all
}

func (c *Client) rememberTags(keys, tags []string) {
	for _, key := range keys {
		c.tags.Add(key, tags)
	}
}
