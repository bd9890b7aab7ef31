package daemon

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/keytype"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// What stands in a key follows from the types of columns, so a family begins to be followed anew when
// DDL has changed one. Without it a reader that does not know of the DDL yet would store under a key
// that the daemon does not make any more.
//
// Every look that compares the catalogs asks for the types, and does not count before the stamps are
// withdrawn of what has changed. So nothing is proved fresh to a moment at which such DDL was visible
// while readers may believe keys of before it.

// lockTimeout bounds how long a for_each query is waited for to be described: DDL on a table that it
// reads has that locked until its commit.
const lockTimeout = "500ms"

// typesTimeout bounds how long the types are asked for at a time.
const typesTimeout = 10 * time.Second

// follow takes step 1 for a plan, with the types of now.
func (s *stamper) follow(ctx context.Context, plan *mapping.Plan) error {
	s.asking.Lock()
	defer s.asking.Unlock()
	types, err := s.readTypes(ctx, plan)
	if err != nil {
		return err
	}
	return s.withdraw(ctx, newFollowing(plan, types))
}

func newFollowing(plan *mapping.Plan, types *keytype.Types) *following {
	f := &following{plan: plan, types: types.KeyTypes()}
	f.follows = plan.Follows(f.types)
	return f
}

// lookAtTypes takes step 1 where a type is another one than before. It is part of a look at the catalogs: quiet
// says that nothing else has changed, as far as that knows.
func (s *stamper) lookAtTypes(ctx context.Context, quiet bool) (took time.Duration, err error) {
	s.asking.Lock()
	defer s.asking.Unlock()
	before := s.withdrawn.Load()
	began := time.Now()
	types, err := s.readTypes(ctx, before.plan)
	took = time.Since(began)
	if err != nil {
		return took, err
	}
	if quiet && types.Locked() {
		return took, nil // that DDL is not committed, and will be told of: what is known stands
	}
	f := newFollowing(before.plan, types)
	if reflect.DeepEqual(f.types, before.types) {
		return took, nil
	}
	s.d.log.Warn("DDL has changed the types of columns that keys are made of: what is cached under keys of before is not believed any more",
		"changed", changedTypes(before, f))
	return took, s.withdraw(ctx, f)
}

// changedTypes names what has changed, for the log.
func changedTypes(before, now *following) string {
	const most = 5
	var list []string
	add := func(what string, was, is mapping.KeyType) {
		switch {
		case was.Types != is.Types:
			list = append(list, fmt.Sprintf("%s: (%s) is (%s)", what, was.Types, is.Types))
		case was != is:
			list = append(list, what+": values of an enum have other names")
		}
	}
	for _, f := range now.plan.Families() {
		add("family "+f.Name, before.types.Families[f.Name], now.types.Families[f.Name])
	}
	for _, e := range now.plan.Entities() {
		add("entity "+e.Kind, before.types.Entities[e.Kind], now.types.Entities[e.Kind])
	}
	if n := len(list) - most; n > 0 {
		list = append(list[:most], fmt.Sprintf("and %d more", n))
	}
	return strings.Join(list, "; ")
}

// readTypes asks on the connection on which for_each queries mean what they mean to the applier. It may have been
// idle for long, so it is asked for once more on a new one.
func (s *stamper) readTypes(ctx context.Context, plan *mapping.Plan) (*keytype.Types, error) {
	for fresh := s.source == nil; ; fresh = true {
		if err := s.dial(ctx); err != nil {
			return nil, err
		}
		asked, cancel := context.WithTimeout(ctx, typesTimeout)
		types, err := keytype.Read(asked, s.source.Conn(), plan)
		cancel()
		if err == nil {
			return types, nil
		}
		s.hangUp(ctx)
		if fresh || ctx.Err() != nil {
			return nil, err
		}
	}
}

// dial connects where it is not connected.
func (s *stamper) dial(ctx context.Context) error {
	if s.source != nil {
		return nil
	}
	source, err := replication.OpenQueryConn(ctx, s.d.sourceURL(), "types", s.epoch)
	if err != nil {
		return err
	}
	if _, err := source.Conn().Exec(ctx, "SET lock_timeout = '"+lockTimeout+"'"); err != nil {
		source.Close(ctx)
		return replication.ServerError("ask for the types of key columns", err)
	}
	s.source = source
	return nil
}

func (s *stamper) hangUp(ctx context.Context) {
	if s.source != nil {
		s.source.Close(ctx)
		s.source = nil
	}
}
