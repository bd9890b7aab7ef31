package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cdc-invalidator/cdc-invalidator/internal/keytype"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

const (
	typesTimeout = time.Second
	// typesInterval is how often the types are read again while there are reads: one query of
	// the catalogs. After DDL they are read at once, since the stamps move.
	typesInterval = 10 * time.Second
)

// errTypes is of reads whose key cannot be made, because the source has not told yet of what
// types the columns are. They go past the cache: a key is never guessed.
var errTypes = errors.New("cache: the types of the columns that keys are made of are not known")

// keyTypes knows of what types the columns are that keys are made of.
type keyTypes struct {
	pool *pgxpool.Pool
	plan *mapping.Plan
	log  *slog.Logger

	known  atomic.Pointer[keytype.Types] // nil until the source has told
	used   atomic.Bool                   // by a read, since they were read
	wanted atomic.Uint64                 // counts what asks for reading them before the next key is made
	have   atomic.Uint64                 // how much of that they were read after

	turn   chan struct{} // whose turn it is to ask
	failed time.Time     // of whoever has the turn: when the source was asked in vain
	err    error         // the same: what came of that
	told   []keytype.Finding
}

func newKeyTypes(pool *pgxpool.Pool, plan *mapping.Plan, log *slog.Logger) *keyTypes {
	return &keyTypes{pool: pool, plan: plan, log: log, turn: make(chan struct{}, 1)}
}

// outdate has the types read before the next key is made.
func (k *keyTypes) outdate() { k.wanted.Add(1) }

func (k *keyTypes) current() *keytype.Types {
	if k.have.Load() < k.wanted.Load() {
		return nil
	}
	return k.known.Load()
}

// get is what is known, asked for first where it is nothing yet.
func (k *keyTypes) get(ctx context.Context) (*keytype.Types, error) {
	if !k.used.Load() {
		k.used.Store(true)
	}
	if t := k.current(); t != nil {
		return t, nil
	}
	select {
	case k.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-k.turn }()
	if t := k.current(); t != nil {
		return t, nil
	}
	t := k.known.Load()
	if time.Since(k.failed) < sourcePause { // not each reader has to wait for it
		return t, k.unless(t)
	}
	if err := k.ask(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err() // this reader has given up: the next one asks
		}
		k.failed, k.err = time.Now(), err
		return t, k.unless(t)
	}
	return k.known.Load(), nil
}

// unless is the error of who needs types and has none. Where the source cannot be asked, what is
// known stands.
func (k *keyTypes) unless(t *keytype.Types) error {
	if t != nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errTypes, k.err)
}

// read asks the source.
func (k *keyTypes) read(ctx context.Context) error {
	select {
	case k.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-k.turn }()
	return k.ask(ctx)
}

// ask is read of who has the turn.
func (k *keyTypes) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, typesTimeout)
	defer cancel()
	conn, err := k.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	wanted := k.wanted.Load() // what comes while they are read, they may not have
	types, err := keytype.Read(ctx, conn.Conn(), k.plan)
	if err != nil {
		return err
	}
	first := k.known.Swap(types) == nil
	k.have.Store(wanted)
	if first {
		k.tellOfLower(ctx, conn.Conn(), types)
	}
	k.tell(types)
	return nil
}

// tell warns of columns that readers are refused values of, or all.
func (k *keyTypes) tell(types *keytype.Types) {
	findings := types.Findings(k.plan)
	for _, f := range findings {
		if !f.Notice && !slices.Contains(k.told, f) {
			k.log.Warn("keys: "+f.Where+": "+f.Problem, "fix", f.Fix)
		}
	}
	k.told = findings
}

// tellOfLower warns once where the source's lower() is another one than that of keys.
func (k *keyTypes) tellOfLower(ctx context.Context, conn *pgx.Conn, types *keytype.Types) {
	findings, err := types.LowerFindings(ctx, conn, k.plan)
	if err != nil {
		k.log.Debug("{|lower} could not be compared with the source's lower()", "error", err)
	}
	for _, f := range findings {
		k.log.Warn("keys: "+f.Where+": "+f.Problem, "fix", f.Fix)
	}
}

// watch reads the types again from time to time. While nobody reads, it leaves that to the next
// read.
func (k *keyTypes) watch(ctx context.Context) {
	tick := time.NewTicker(typesInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if !k.used.Swap(false) {
			k.outdate()
			continue
		}
		if err := k.read(ctx); err != nil {
			k.log.Debug("the types of key columns could not be read again", "error", err)
		}
	}
}

// rendering is how a family's keys are made, with the types that were known.
type rendering struct {
	types        *keytype.Types
	terms        string         // see mapping.Terms
	key, version []*keytype.Var // of the variables of the templates; nil for {version}
	err          error          // a type is not known
}

// rendering follows from what is known of the types. It is made once for all keys.
func (f *family) rendering(ctx context.Context) (*rendering, error) {
	types, err := f.types.get(ctx)
	if err != nil {
		return nil, err
	}
	r := f.made.Load()
	if r == nil || r.types != types {
		r = newRendering(f.Family, types)
		f.made.Store(r)
	}
	return r, r.err
}

func newRendering(f *mapping.Family, types *keytype.Types) *rendering {
	r := &rendering{types: types, terms: types.KeyTypes().Families[f.Name].Types}
	vars := types.Family(f)
	for i := range vars {
		if err := vars[i].Unknown(); err != nil {
			r.err = fmt.Errorf("%w: family %s: %w", errTypes, f.Name, err)
		}
	}
	of := func(t *mapping.Template) (list []*keytype.Var) {
		for _, name := range t.Vars() {
			i := slices.IndexFunc(vars, func(v keytype.Var) bool { return v.Name == name })
			if i < 0 { // {version}
				list = append(list, nil)
				continue
			}
			list = append(list, &vars[i])
		}
		return list
	}
	r.key = of(f.KeyTemplate())
	if f.Versioned {
		r.version = of(f.VersionTemplate())
	}
	return r
}
