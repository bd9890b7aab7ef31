package sink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// clusterKeys is how many keys are in flight at a time over all nodes.
const clusterKeys = 4096

// nodeBatch is what goes to one node of a cluster: a key a command, since keys of
// several slots in one are refused, and keys of one slot are as well while it
// migrates.
type nodeBatch struct {
	client *redis.Client
	addr   string
	cmds   []redis.Cmder
	err    error
}

// applyCluster sends the keys of a batch to the primaries that own them.
func (r *Redis) applyCluster(ctx context.Context, be *backend, d delivery) error {
	b := d.b
	c, err := be.nodeFor(ctx, r.controlKey)
	if err != nil {
		return err
	}
	if err := be.guard.node(be.addr(c)); err != nil {
		return err
	}
	if !d.drained {
		// Alone and acknowledged first: keys on other nodes must not be applied
		// before their position can be read.
		head := r.head(ctx, be, be.addr(c), b)
		_ = c.Process(ctx, head)
		if err := r.headAnswer(be, be.addr(c), head, b); err != nil {
			return err
		}
	}
	p := &r.plan
	p.reset()
	nodes := make(map[*redis.Client]*nodeBatch)
	streams, singles, hold := r.streams(d), p.singles(), r.holder(d)
	for i, n := 0, 0; i < b.Len(); i++ {
		e := b.Entry(i)
		held := hold != nil && hold(i)
		b.SetHeld(i, held)
		var cmds []redis.Cmder
		switch {
		case held:
			n++
		case e.Op == mapping.OpDelete:
			s := singles.get(n)
			s.key.b = e.Key
			cmds = []redis.Cmder{s.cmd}
		case e.Op == mapping.OpAdvance:
			for _, stream := range streams {
				adv := r.scripts.advance.command(ctx, []any{&keyArg{b: e.Key}}, []any{stream, e.CommitLSN.Hex()})
				p.advances = append(p.advances, adv)
				cmds = append(cmds, adv)
			}
		case e.Op == mapping.OpSoft:
			call := newSoftCall(e.Family.Class.FailSafe)
			mark := r.scripts.soft.command(ctx, []any{&keyArg{b: e.Key}}, append(call.args, r.served(e)))
			p.marks = append(p.marks, mark)
			cmds = []redis.Cmder{mark}
		}
		for _, cmd := range cmds {
			if err := be.route(ctx, nodes, e.Key, cmd); err != nil {
				return err
			}
			n++
		}
		if n >= clusterKeys || i == b.Len()-1 {
			for _, g := range p.puts.commands(ctx) {
				if err := be.route(ctx, nodes, []byte(r.heldKey(g.set.class)), g.cmd); err != nil {
					return err
				}
			}
			if err := r.flush(ctx, be, nodes); err != nil {
				return err
			}
			n = 0
		}
	}
	return nil
}

// route adds a command to the batch of its key's node.
func (b *backend) route(ctx context.Context, nodes map[*redis.Client]*nodeBatch, key []byte, cmd redis.Cmder) error {
	// The string is used for the slot only, and does not outlive the call.
	c, err := b.nodeFor(ctx, string(key))
	if err != nil {
		return err
	}
	nb := nodes[c]
	if nb == nil {
		nb = &nodeBatch{client: c, addr: b.addr(c)}
		if err := b.guard.node(nb.addr); err != nil {
			return err
		}
		nodes[c] = nb
	}
	nb.cmds = append(nb.cmds, cmd)
	return nil
}

// flush sends every node its commands at the same time and waits for all.
func (r *Redis) flush(ctx context.Context, be *backend, nodes map[*redis.Client]*nodeBatch) error {
	var wg sync.WaitGroup
	for _, nb := range nodes {
		wg.Go(func() {
			if len(nb.cmds) == 0 {
				return
			}
			_ = send(ctx, nb.client, nb.cmds...) // each command's error is looked at
			nb.err = be.followAsk(ctx, nb)
		})
	}
	wg.Wait()
	var errs []error
	for _, nb := range nodes {
		if nb.err == nil {
			nb.err = r.settle(be, nb.addr, nb.cmds)
		}
		errs = append(errs, nb.err)
		nb.err = nil
		clear(nb.cmds)
		nb.cmds = nb.cmds[:0]
	}
	return firstOf(errs)
}

// firstOf returns the error that says most: a changed node before others.
func firstOf(errs []error) error {
	var first error
	for _, err := range errs {
		if errors.Is(err, ErrNodeChanged) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// followAsk sends what was answered with ASK to the node it names. While a slot
// migrates every absent key of it is answered so, and most keys that are
// invalidated are absent: waiting instead would stop the pipeline for as long.
func (b *backend) followAsk(ctx context.Context, nb *nodeBatch) error {
	var asked map[string][]redis.Cmder
	for _, cmd := range nb.cmds {
		if cmd.Err() == nil || replyCode(cmd.Err()) != "ASK" {
			continue
		}
		addr, err := redirectAddr(cmd.Err(), nb.addr)
		if err != nil {
			return err
		}
		if asked == nil {
			asked = make(map[string][]redis.Cmder)
		}
		asked[addr] = append(asked[addr], cmd)
	}
	for addr, cmds := range asked {
		all := make([]redis.Cmder, 0, 2*len(cmds))
		for _, cmd := range cmds {
			all = append(all, redis.NewStatusCmd(ctx, "asking"), cmd)
		}
		if err := send(ctx, b.askedFor(addr), all...); err != nil {
			b.noteReply(addr, err)
			return wrap("", addr, "", err)
		}
	}
	return nil
}

// redirectAddr reads "ASK 3999 host:port". An empty host means the node's own.
func redirectAddr(err error, from string) (string, error) {
	var re redis.Error
	if errors.As(err, &re) {
		if f := strings.Fields(re.Error()); len(f) == 3 {
			if host, port, err := net.SplitHostPort(f[2]); err == nil {
				if host == "" {
					host, _, _ = net.SplitHostPort(from)
				}
				return net.JoinHostPort(host, port), nil
			}
		}
	}
	return "", fmt.Errorf("malformed redirect of %s", from)
}

// single is a one-key UNLINK, made once and reused.
type single struct {
	key  keyArg
	args [2]any
	cmd  *redis.IntCmd
}

type singles struct{ all []*single }

func (p *plan) singles() *singles { return &p.ones }

func (s *singles) get(i int) *single {
	for i >= len(s.all) {
		one := &single{}
		one.args = [2]any{"unlink", &one.key}
		one.cmd = redis.NewIntCmd(context.Background(), one.args[:]...)
		s.all = append(s.all, one)
	}
	return s.all[i]
}
