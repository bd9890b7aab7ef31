package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/clusternode"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// servers decides which connections to Redis are believed.
//
// What the control hash proves holds on the server that it was read from. A name, a Service
// or a proxy leads new connections to the new primary after a failover, while a pool's old ones
// stay with the old one, which may even take writes; so without more a read has the hash from
// one and the value from the other. Therefore each connection is asked, when it is made, what
// history it leads to (the replication id of a primary), and all that are used are of one:
//
//   - Another history whose hash is further is where the daemon writes now: all connections
//     are dropped, and what is known is void.
//   - While the daemon goes on where we are, a connection to another history is refused.
//   - When it does not go on, a new connection is made again and again, to see where it is.
//
// In a cluster the hash lies on one node. Of the others each has a mark of what it has
// (sink/mark.go), and a connection to a node whose mark is behind what the last look at the hash
// proved is refused.
//
// Nothing is held against a single connection afterwards: to drop one is to drop all.
type servers struct {
	c     *control
	look  func(ctx context.Context) error // makes a new connection; nil in a cluster
	stall time.Duration                   // without news from the daemon for so long, it may be elsewhere
	conns tracker

	prefix, slot string

	mu      sync.Mutex
	id      string    // the replication id that is believed; "" before the first
	shown   shown     // the furthest that was seen there
	newsAt  time.Time // when that was
	sought  time.Time // when a new connection was made to look elsewhere
	members []*node   // of a cluster
}

// shown is how far a control hash says the daemon is.
type shown struct {
	generation string
	fresh      int64
	reached    lsn.LSN
}

func shownBy(s *controlState) shown { return shown{s.generation, s.freshAsOf, s.reached} }

// further says whether s is later than o. Positions of two generations do not compare.
func (s shown) further(o shown) bool {
	if s.generation != o.generation {
		return s.generation > o.generation
	}
	return s.fresh > o.fresh || s.reached > o.reached
}

func (s shown) behind(o shown) bool {
	return s.generation < o.generation || s.generation == o.generation && (s.fresh < o.fresh || s.reached < o.reached)
}

var (
	errReplica     = errors.New("cache: the connection leads to a replica")
	errElsewhere   = errors.New("cache: the connection leads to another primary than the one that the daemon writes to")
	errMovedOn     = errors.New("cache: the daemon writes to another primary now; all connections are made again")
	errMarkBehind  = errors.New("cache: the node of the cluster has not all that the control hash speaks of")
	errNoIdentity  = errors.New("cache: INFO replication names no role and no master_replid: does a proxy answer it?")
	infoPermission = "; the reader's account needs +info, in a cluster also +cluster|nodes"
)

// met judges a new connection to a server that stands alone or behind a name.
func (s *servers) met(ctx context.Context, conn *redis.Conn) error {
	s.mu.Lock()
	before := s.shown // on the same data the hash can only have gone on since
	s.mu.Unlock()
	id, state, err := s.ask(ctx, conn)
	if err != nil {
		return err
	}
	return s.judge(id, state, before, time.Now())
}

// ask reads identity and hash on one connection; state is nil where the hash cannot be read.
func (s *servers) ask(ctx context.Context, on redis.Cmdable) (id string, state *controlState, err error) {
	p := on.Pipeline()
	info, hash := p.Info(ctx, "replication"), p.HMGet(ctx, s.c.key, controlFields...)
	_, _ = p.Exec(ctx) // each command's error is looked at
	if id, err = identity(info); err != nil {
		return "", nil, err
	}
	values, err := hash.Result()
	if err != nil && !redis.HasErrorPrefix(err, "WRONGTYPE") {
		return "", nil, err
	}
	if state, err = parseControlState(values); err != nil {
		return id, nil, nil //nolint:nilerr // no hash that says anything
	}
	return id, state, nil
}

// identity is a primary's replication id, which is new after each start and each promotion.
func identity(info *redis.StringCmd) (string, error) {
	text, err := info.Result()
	if err != nil {
		if redis.HasErrorPrefix(err, "NOPERM") {
			return "", fmt.Errorf("cache: ask for the server's identity: %w%s", err, infoPermission)
		}
		return "", err
	}
	var role, id string
	for line := range strings.SplitSeq(text, "\n") {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\r"), ":")
		switch name {
		case "role":
			role = value
		case "master_replid":
			id = value
		}
	}
	switch {
	case role == "" || id == "":
		return "", errNoIdentity
	case role != "master":
		return "", errReplica
	}
	return id, nil
}

// judge decides on a connection to a history, whose hash shows state; nil for none. before is what
// had been shown before that was read.
func (s *servers) judge(id string, state *controlState, before shown, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var has shown
	if state != nil {
		has = shownBy(state)
	}
	switch {
	case s.id == "":
		s.id, s.shown, s.newsAt = id, has, now
		return nil
	case s.id == id:
		if has.behind(before) { // it was flushed, or evicted
			s.shown = has
			s.c.epoch.Add(1)
		}
		return nil
	case !has.further(s.shown) && now.Sub(s.newsAt) < s.stall:
		return errElsewhere
	}
	s.id, s.shown, s.newsAt = id, has, now
	s.drop()
	return errMovedOn
}

// news notes what a look in an epoch has shown on a connection to a history.
func (s *servers) news(id string, state *controlState, epoch uint64, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case epoch != s.c.epoch.Load():
		return errMovedOn
	case s.id == "":
		s.id = id
	case id != s.id:
		// The server has become another one under a connection that stayed up.
		s.id = ""
		s.drop()
		return errElsewhere
	}
	switch has := shownBy(state); {
	case has.further(s.shown):
		s.shown, s.newsAt = has, now
	case has.behind(s.shown):
		s.shown = has // this look is of that already
	}
	return nil
}

// seek makes a new connection if the daemon does not go on where we are.
func (s *servers) seek(ctx context.Context) {
	s.mu.Lock()
	now := time.Now()
	due := s.look != nil && now.Sub(s.newsAt) >= s.stall && now.Sub(s.sought) >= minStall
	if due {
		s.sought = now
	}
	s.mu.Unlock()
	if !due {
		return
	}
	if err := s.look(ctx); err != nil {
		s.c.log.Debug("looked for the primary that the daemon writes to", "error", err)
	}
}

// drop makes what is known void and closes every connection, the lock held. In this order: no
// connection to the new server is used while the old look is believed.
func (s *servers) drop() {
	s.c.epoch.Add(1)
	s.conns.closeAll()
	for _, n := range s.members {
		n.closeAll()
	}
}

// again drops all connections of a cluster: they were judged by nothing, or by a look at
// other primaries than those of now.
func (s *servers) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.members {
		n.replica.Store(false)
		n.closeAll()
	}
}

// node is one node of a cluster. It is a hook of the client for that node.
type node struct {
	tracker
	s *servers
	// replica says that a connection was made while the node was a replica, whose data nobody
	// has looked at. Data is asked for there only once it has become a primary: on new
	// connections then.
	replica atomic.Bool
}

func (s *servers) node() *node {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := &node{s: s}
	s.members = append(s.members, n)
	return n
}

// DialHook implements redis.Hook.
func (n *node) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (n *node) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() != "cluster" && n.replica.Swap(false) {
			n.closeAll()
		}
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook implements redis.Hook.
func (n *node) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if n.replica.Swap(false) {
			n.closeAll()
		}
		return next(ctx, cmds)
	}
}

// markTags is how many of a node's tags are tried: a slot may have begun to move.
const markTags = 3

// met judges a new connection to the node.
func (n *node) met(ctx context.Context, conn *redis.Conn) error {
	last := n.s.c.look() // before: on the same data the mark can only have gone on since
	text, err := conn.ClusterNodes(ctx).Result()
	if err != nil {
		if redis.HasErrorPrefix(err, "NOPERM") {
			return fmt.Errorf("cache: ask for the node's slots: %w%s", err, infoPermission)
		}
		return err
	}
	self, err := clusternode.Parse(text)
	if err != nil {
		return err
	}
	if !self.Primary {
		n.replica.Store(true) // it is asked for the topology only
		return nil
	}
	if last == nil || last.err != nil || last.reached == 0 {
		return nil // see control.poll, which drops it once there is a look
	}
	tries := 0
	for tag := range self.Tags() {
		if tries++; tries > markTags {
			break
		}
		values, err := conn.HMGet(ctx, mapping.MarkKey(n.s.prefix, n.s.slot, tag), "node", "applied", "end").Result()
		if err != nil && (redis.HasErrorPrefix(err, "ASK") || redis.HasErrorPrefix(err, "MOVED") || redis.HasErrorPrefix(err, "TRYAGAIN")) {
			continue
		}
		if err != nil {
			return err
		}
		return markReaches(values, self.ID, last.reached)
	}
	return errMarkBehind
}

func markReaches(values []any, id string, at lsn.LSN) error {
	var text [3]string
	for i, v := range values {
		text[i], _ = v.(string)
	}
	applied, err1 := lsn.ParseHex(text[1])
	end, err2 := lsn.ParseHex(text[2])
	if err1 != nil || err2 != nil || text[0] != id || max(applied, end) < at {
		return errMarkBehind
	}
	return nil
}

// tracker knows the connections of a client, to close them. It dials for that client: a hook
// would miss what the client dials by itself, for MinIdleConns, before hooks can be added.
type tracker struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

type dialer = func(ctx context.Context, network, addr string) (net.Conn, error)

// dialer is next with what it dials tracked.
func (t *tracker) dialer(next dialer) dialer {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return t.took(conn), nil
	}
}

func (t *tracker) took(conn net.Conn) net.Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns == nil {
		t.conns = map[net.Conn]struct{}{}
	}
	t.conns[conn] = struct{}{}
	if plain, ok := conn.(syscall.Conn); ok {
		return &plainConn{trackedConn{conn, t}, plain}
	}
	return &trackedConn{conn, t}
}

// closeAll closes every connection: its next use fails, and is made on a new one.
func (t *tracker) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for conn := range t.conns {
		_ = conn.Close() // it is given up, whatever that says
	}
	clear(t.conns)
}

// trackedConn is a connection of a tracker.
type trackedConn struct {
	net.Conn
	of *tracker
}

// Close implements net.Conn.
func (c *trackedConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c.Conn)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// plainConn is one without TLS, of which the client can see when the server has closed it.
type plainConn struct {
	trackedConn
	syscall.Conn
}
