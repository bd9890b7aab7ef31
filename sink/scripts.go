package sink

import (
	"context"
	"crypto/sha1" //nolint:gosec // Redis names scripts by their SHA-1
	_ "embed"
	"encoding/hex"

	"github.com/redis/go-redis/v9"
)

//go:embed lua/checkpoint.lua
var checkpointSource string

//go:embed lua/install.lua
var installSource string

//go:embed lua/state.lua
var stateSource string

//go:embed lua/epoch.lua
var epochSource string

//go:embed lua/stamps.lua
var stampsSource string

//go:embed lua/mark.lua
var markSource string

//go:embed lua/advance.lua
var advanceSource string

//go:embed lua/hold.lua
var holdSource string

//go:embed lua/take.lua
var takeSource string

//go:embed lua/done.lua
var doneSource string

//go:embed lua/soft.lua
var softSource string

//go:embed lua/dependents.lua
var dependentsSource string

//go:embed lua/settle.lua
var settleSource string

//go:embed lua/publish.lua
var publishSource string

// script is a Lua script that is called by its hash only. redis.Script is not
// used: inside a pipeline it has no answer to NOSCRIPT, and outside of one it
// sends EVAL, which hides that a node lost its scripts.
type script struct {
	source string
	sha    string
}

// scripts holds all that the sink calls. Each new connection loads them, since a
// promoted replica (7.0 and later) has not received them from its primary.
type scripts struct {
	checkpoint, install, state, epoch, advance, soft, dependents, publish script
	hold, take, done, settle, stamps, mark                                script
}

func newScripts() *scripts {
	s := &scripts{
		checkpoint: script{source: checkpointSource},
		install:    script{source: installSource},
		state:      script{source: stateSource},
		epoch:      script{source: epochSource},
		advance:    script{source: advanceSource},
		soft:       script{source: softSource},
		dependents: script{source: dependentsSource},
		publish:    script{source: publishSource},
		hold:       script{source: holdSource},
		take:       script{source: takeSource},
		done:       script{source: doneSource},
		settle:     script{source: settleSource},
		stamps:     script{source: stampsSource},
		mark:       script{source: markSource},
	}
	for _, sc := range s.all() {
		sc.sha = sha(sc.source)
	}
	return s
}

func sha(source string) string {
	sum := sha1.Sum([]byte(source)) //nolint:gosec // see above
	return hex.EncodeToString(sum[:])
}

// probeSource does nothing: whether scripts can be loaded and called.
const probeSource = "return 0"

func (s *scripts) all() []*script {
	return []*script{&s.checkpoint, &s.install, &s.state, &s.epoch, &s.advance, &s.soft, &s.dependents, &s.publish,
		&s.hold, &s.take, &s.done, &s.settle, &s.stamps, &s.mark}
}

// loads are the commands that load all scripts. SCRIPT LOAD of a known script
// does nothing.
func (s *scripts) loads(ctx context.Context) []redis.Cmder {
	var cmds []redis.Cmder
	for _, sc := range s.all() {
		cmds = append(cmds, redis.NewStringCmd(ctx, "script", "load", sc.source))
	}
	return cmds
}

// command makes an EVALSHA. Its keys are declared, as some servers demand.
func (sc *script) command(ctx context.Context, keys, args []any) *redis.Cmd {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, "evalsha", sc.sha, len(keys))
	all = append(all, keys...)
	all = append(all, args...)
	return redis.NewCmd(ctx, all...)
}
