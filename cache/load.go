package cache

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// loadOptions say what a load is for.
type loadOptions struct {
	leased  bool   // it may be stored
	token   *Token // it has to be at least as new; nil for any
	primary bool   // not on the standby
}

// loaded is what a loader brought.
type loaded[V any] struct {
	value    V
	notFound bool
	source   loadSource
	proved   bool   // it may be stored: its snapshot and its dependents are known
	end      func() // waits for the transaction's end
}

// loadSource is what a load has read from.
type loadSource struct {
	meta    entryMeta // its snapshot, or the position of a standby
	at      time.Time // before its snapshot
	standby bool
	known   *controlState // of a standby: before its position was compared
}

// errLoadTimeout is why a load was cut off that took longer than WithLoadTimeout allows.
var errLoadTimeout = errors.New("cache: the load took too long")

// rounds is how often a load runs when each time it declares dependents that were not
// registered before it.
const rounds = 3

// run runs a loader. What may be stored depends on entities that are registered, for
// these keys, before the loader's snapshot; what it declares only while it runs is registered
// then, and it runs again.
func run[V any](ctx context.Context, c *Client, f *family, keys []string, load loader[V], o loadOptions) (loaded[V], error) {
	var registered, pending []string
	proved := o.leased
	if proved {
		pending = c.knownTags(keys)
	}
	for round := 1; ; round++ {
		if len(pending) > 0 && proved {
			if err := c.register(ctx, f, keys, pending); err != nil {
				level := slog.LevelWarn
				if errors.Is(err, errEntity) {
					level = slog.LevelDebug // the daemon's other mappings were told of once
				}
				c.log.Log(ctx, level, "what depends on an entity could not be registered, so it is not stored", "family", f.Name, "error", err)
				proved = false
			}
			registered = append(registered, pending...)
		}
		l, tags, err := runOnce(ctx, c, f, load, o)
		if err != nil && l.source.standby && !o.primary && standbyFails(err) && ctx.Err() == nil {
			c.log.Debug("a load on the standby failed, and is run on the primary", "family", f.Name, "error", err)
			o.primary = true
			l, tags, err = runOnce(ctx, c, f, load, o)
		}
		if err != nil {
			return l, err
		}
		if l.proved = l.proved && proved; !l.proved {
			return l, nil
		}
		pending = slices.DeleteFunc(slices.Clone(tags), func(tag string) bool { return slices.Contains(registered, tag) })
		if len(pending) == 0 {
			if len(registered) > 0 {
				c.rememberTags(keys, tags)
			}
			return l, nil
		}
		if round == rounds {
			c.log.Warn("a loader declares other dependents each time that it runs, so what it brings is not stored", "family", f.Name)
			l.proved = false
			return l, nil
		}
		l.end()
	}
}

// runOnce runs the loader in a transaction of its own.
func runOnce[V any](ctx context.Context, c *Client, f *family, load loader[V], o loadOptions) (l loaded[V], tags []string, err error) {
	if err := c.source.enter(ctx); err != nil {
		return l, nil, err
	}
	down := true
	defer func() { c.source.leave(down && !l.source.standby) }()
	c.metrics.running.Inc()
	defer c.metrics.running.Dec()
	f.metrics.loads.Inc()

	s, err := c.begin(ctx, f, o)
	if err != nil {
		down = !isLimit(ctx, err)
		return l, nil, unavailable("begin a load of family "+f.Name, err)
	}
	down = false
	defer func() {
		if l.end == nil { // the loader panicked
			s.end(ctx)()
		}
	}()
	declared := &dependencies{plan: c.plan, types: c.types, control: c.control}
	l.value, err = load(context.WithValue(ctx, dependenciesKey{}, declared), s.tx)
	f.metrics.seconds.Observe(time.Since(s.at).Seconds())
	l.notFound = errors.Is(err, ErrNotFound)
	l.source = s.loadSource
	l.proved = o.leased && s.tx.isWhole()
	closed := s.conn.Conn().IsClosed()
	// A query that is cut off by the time for a load, with its connection, is one that the source hangs in.
	down = closed && (ctx.Err() == nil || context.Cause(ctx) == errLoadTimeout) || sourceFails(err)
	l.end = s.end(ctx)
	if l.notFound {
		err = nil
	} else if err != nil && (down || closed) {
		err = unavailable("load family "+f.Name, err)
	}
	if err == nil {
		err = declared.problem()
	}
	if err != nil {
		l.end()
		return l, nil, err
	}
	l.proved = l.proved && declared.isNamed()
	return l, declared.names(), nil
}

// session is a loader's transaction on a connection of its own.
type session struct {
	conn *pgxpool.Conn
	tx   *loadTx
	loadSource
}

// begin opens a transaction on the primary, or on the standby where what is loaded there
// may be stored.
func (c *Client) begin(ctx context.Context, f *family, o loadOptions) (*session, error) {
	if o.leased && !o.primary && c.o.replica != nil && c.standby.allow(time.Now()) {
		s, err := c.beginStandby(ctx, f, o.token)
		if err == nil {
			return s, nil
		}
		c.log.Debug("loading from the primary, not from the standby", "family", f.Name, "because", err)
	}
	return beginSession(ctx, c.primary)
}

func beginSession(ctx context.Context, pool *pgxpool.Pool) (*session, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn, loadSource: loadSource{at: time.Now()}}
	standby := false
	if s.tx, s.meta.snapshot, standby, err = beginTx(ctx, conn.Conn()); err != nil {
		conn.Release()
		return nil, err
	}
	if standby {
		s.end(ctx)()
		return nil, errors.New("the pool leads to a standby, whose snapshots prove nothing: connect it to the primary (target_session_attrs=primary), and name standbys with WithReplica")
	}
	return s, nil
}

// end ends the transaction in the background: what was read in it is known, so nobody has
// to wait for it but the connection's next user. The returned function waits.
func (s *session) end(ctx context.Context) func() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer s.conn.Release() // closes a connection that is not idle
		if s.conn.Conn().IsClosed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, _ = s.conn.Exec(ctx, "rollback") // it was to read only
	}()
	return func() { <-done }
}

// sourceFails says whether an error is about the source as a whole and not about one
// query.
func sourceFails(err error) bool {
	var refused *pgconn.ConnectError
	if errors.As(err, &refused) {
		return true
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "57P01", "57P02", "57P03", // shutting down, crashed, starting up
		"53000", "53100", "53200", "53300", // no resources; 53400, a limit that is set, is met by one query and not by others
		"58000", "58030": // the system, I/O
		return true
	}
	return false
}

// standbyFails says whether an error is one that the primary would not have made: the
// standby is down, or had to end the query because what it reads is removed there.
func standbyFails(err error) bool {
	var pg *pgconn.PgError
	return errors.Is(err, ErrUnavailable) || errors.As(err, &pg) && strings.HasPrefix(pg.Code, "40")
}

// isLimit says whether a call ended because the caller's time did: that says nothing of
// the source.
func isLimit(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Canceled)
}

// rescue keeps a loader's panic in the background from ending the program.
func (v *View[T]) rescue() {
	if r := recover(); r != nil {
		v.c.log.Error("a loader panicked", "family", v.f.Name, "panic", r, "stack", string(debug.Stack()))
	}
}
