package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Settling is what a slot's control hash says to somebody who waits, and what bears on it.
type Settling struct {
	Control
	Held []HeldNow // classes that hold something back now, by name
	// Families are the stamps of the families that the daemon follows, nil where the control
	// hash names none or others.
	Families *mapping.Stamps
}

// HeldNow is what is held back of a class.
type HeldNow struct {
	Class   string
	Waiting int
	Until   time.Time // deadline of the newest, by the source's clock
}

// Settled says whether everything that ended at or below a position is applied to the Redis
// that was asked: nothing is missing, held back, or part of a purge under way.
func (s *Settling) Settled(at lsn.LSN) bool {
	return s.Found && s.State != StateGap && len(s.Purging) == 0 && !s.NodesChanged && s.Control.Settled >= at &&
		s.Control.Settled <= s.End // else it was spoilt: what is settled is applied
}

// Watch reads a slot's control hash as an onlooker: it attaches to nothing and changes
// nothing. It is for one goroutine.
type Watch struct {
	login        atomic.Pointer[endpoint]
	prefix, slot string
	be           *backend
	made         time.Time
}

// OpenWatch prepares; it does not connect.
func OpenWatch(config mapping.Redis, slot string) (*Watch, error) {
	e, err := parseURL(config.URL.Reveal())
	if err != nil {
		return nil, &Error{Op: "open", Kind: KindConfiguration, Err: err}
	}
	w := &Watch{prefix: cmp.Or(config.Prefix, defaultPrefix), slot: slot}
	w.login.Store(e)
	return w, nil
}

// Close closes the connections.
func (w *Watch) Close() error {
	be := w.be
	w.be = nil
	if be == nil {
		return nil
	}
	return be.close()
}

// Look asks every primary who it is, and reads the hash after that: so its nodes are
// compared with servers that were there before it was read.
func (w *Watch) Look(ctx context.Context) (Settling, error) {
	s, err := w.look(ctx)
	if err != nil {
		// The next look makes new connections, which lead to whoever is the primary then.
		err = errors.Join(wrap("read the control hash", "", "", err), w.Close())
	}
	return s, err
}

func (w *Watch) look(ctx context.Context) (Settling, error) {
	// A connection that stays up may lead to a primary that was demoted or cut off.
	if w.be != nil && time.Since(w.made) >= verifyInterval {
		if err := w.Close(); err != nil {
			return Settling{}, err
		}
	}
	if w.be == nil {
		w.be, w.made = newBackend(&w.login, nil), time.Now()
	}
	ids, err := w.be.identify(ctx)
	if err != nil {
		return Settling{}, err
	}
	for _, id := range ids {
		if id.Role != rolePrimary {
			return Settling{}, &Error{Kind: KindUnavailable, Addr: id.Addr, Err: fmt.Errorf("the node is a %s", id.Role)}
		}
	}
	c, err := w.be.loadControl(ctx, mapping.ControlKey(w.prefix, w.slot))
	if err != nil {
		return Settling{}, err
	}
	c.NodesChanged = c.Found && c.nodes != fingerprints(ids)
	s := Settling{Control: c}
	if s.Families, err = w.be.loadStamps(ctx, mapping.StampsKey(w.prefix, w.slot), c.Stamps); err != nil {
		return Settling{}, err
	}
	for _, class := range slices.Sorted(maps.Keys(c.held)) {
		h, err := w.held(ctx, class)
		if err != nil {
			return Settling{}, err
		}
		if h.Waiting > 0 {
			s.Held = append(s.Held, h)
		}
	}
	return s, nil
}

func (w *Watch) held(ctx context.Context, class string) (HeldNow, error) {
	h := HeldNow{Class: class}
	key := heldKey(w.prefix, w.slot, class)
	c, err := w.be.nodeFor(ctx, key)
	if err != nil {
		return h, err
	}
	waiting := redis.NewIntCmd(ctx, "zcount", key, "-inf", "(+inf")
	newest := redis.NewStringSliceCmd(ctx, "zrevrange", key, 1, 1, "withscores") // behind it is the sentinel
	if err := send(ctx, c, waiting, newest); err != nil {
		return h, wrap("", w.be.addr(c), "", err)
	}
	h.Waiting = int(waiting.Val())
	if v := newest.Val(); len(v) == 2 {
		ms, err := strconv.ParseFloat(v[1], 64)
		if err != nil {
			return h, fmt.Errorf("deadline of what class %s holds: %w", class, err)
		}
		h.Until = time.UnixMilli(int64(ms)).UTC()
	}
	return h, nil
}
