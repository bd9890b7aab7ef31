package consistency

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// redisPauses stop a client's commands: before they are sent, or after they were answered.
type redisPauses struct {
	mu    sync.Mutex
	armed []*commandPause
}

type commandPause struct {
	pause
	command, key string
	after        bool
}

// next stops the next such command on a key before it is sent.
func (p *redisPauses) next(command, key string) *pause { return p.arm(command, key, false) }

// answered stops the client when it has the answer, and does not know it yet.
func (p *redisPauses) answered(command, key string) *pause { return p.arm(command, key, true) }

func (p *redisPauses) arm(command, key string, after bool) *pause {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := &commandPause{pause: pause{reached: make(chan struct{}), resume: make(chan struct{})}, command: command, key: key, after: after}
	p.armed = append(p.armed, x)
	return &x.pause
}

func (p *redisPauses) pass(ctx context.Context, cmd redis.Cmder, after bool) {
	p.mu.Lock()
	i := slices.IndexFunc(p.armed, func(x *commandPause) bool {
		return x.after == after && strings.EqualFold(cmd.Name(), x.command) && slices.ContainsFunc(cmd.Args(), func(a any) bool { return fmt.Sprint(a) == x.key })
	})
	var x *commandPause
	if i >= 0 {
		x = p.armed[i]
		p.armed = slices.Delete(p.armed, i, i+1)
	}
	p.mu.Unlock()
	if x == nil {
		return
	}
	close(x.reached)
	select {
	case <-x.resume:
	case <-ctx.Done():
	}
}

// DialHook implements redis.Hook.
func (p *redisPauses) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook implements redis.Hook.
func (p *redisPauses) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		p.pass(ctx, cmd, false)
		err := next(ctx, cmd)
		p.pass(ctx, cmd, true)
		return err
	}
}

// ProcessPipelineHook implements redis.Hook.
func (p *redisPauses) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			p.pass(ctx, cmd, false)
		}
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			p.pass(ctx, cmd, true)
		}
		return err
	}
}
