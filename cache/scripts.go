package cache

import (
	"context"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // Redis names scripts by their SHA-1
	_ "embed"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed lua/read.lua
var readSource string

//go:embed lua/fill.lua
var fillSource string

//go:embed lua/release.lua
var releaseSource string

//go:embed lua/register.lua
var registerSource string

// script is a Lua script that is called by its hash. A node that does not know it
// (restarted, or promoted, which does not bring scripts along from 7.0 on) answers
// NOSCRIPT before anything has happened, and gets the source with the second call.
type script struct {
	source string
	sha    string
}

func newScript(source string) *script {
	sum := sha1.Sum([]byte(source)) //nolint:gosec // see above
	return &script{source: source, sha: hex.EncodeToString(sum[:])}
}

// scripts are the reader's half of the protocol. Their files say what they promise.
type scripts struct {
	read, fill, release, register *script
}

func newScripts() *scripts {
	return &scripts{newScript(readSource), newScript(fillSource), newScript(releaseSource), newScript(registerSource)}
}

// run calls a script on its one key. EVAL goes to the node that holds the key, in a
// cluster too, and leaves the script there.
func (s *script) run(ctx context.Context, rdb redis.Cmdable, key string, args ...any) *redis.Cmd {
	cmd := rdb.EvalSha(ctx, s.sha, []string{key}, args...)
	if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
		cmd = rdb.Eval(ctx, s.source, []string{key}, args...)
	}
	return cmd
}

// call is one script call of several that travel together.
type call struct {
	key  string
	args []any
}

// runAll sends the calls in one pipeline (one a node in a cluster). The answers are
// in the order of the calls, each with its own error.
func (s *script) runAll(ctx context.Context, rdb redis.Cmdable, calls []call) []*redis.Cmd {
	pipe := rdb.Pipeline()
	cmds := make([]*redis.Cmd, len(calls))
	for i, c := range calls {
		cmds[i] = pipe.EvalSha(ctx, s.sha, []string{c.key}, c.args...)
	}
	_, _ = pipe.Exec(ctx) // it returns the first error only; each stands on its command
	for i, c := range calls {
		if redis.HasErrorPrefix(cmds[i].Err(), "NOSCRIPT") {
			cmds[i] = s.run(ctx, rdb, c.key, c.args...)
		}
	}
	return cmds
}

// token names one attempt at read.lua. It is drawn when the command is written, so
// that a client library that sends again after a lost reply sends another one: a copy
// of the first, delayed on its way, cannot give back a lease that has been revoked
// since. What counts is the token that was written last.
type token struct{ text string }

// MarshalBinary draws a new token.
func (t *token) MarshalBinary() ([]byte, error) {
	var raw [8]byte
	for raw == [8]byte{} { // all 0 is nobody
		_, _ = rand.Read(raw[:]) // never fails
	}
	text := hex.AppendEncode(nil, raw[:])
	t.text = string(text)
	return text, nil
}

// verdict is what read.lua decided.
type verdict string

const (
	verdictLease   verdict = "lease"   // load, and fill
	verdictWait    verdict = "wait"    // somebody loads
	verdictValue   verdict = "value"   // fresh
	verdictRefresh verdict = "refresh" // load, and fill; the entry may be served meanwhile
	verdictStale   verdict = "stale"   // may be served, somebody refreshes
	verdictExpired verdict = "expired" // load, and fill; the entry may not be served
	verdictHeld    verdict = "held"    // somebody loads, the entry may not be served
)

// mine says whether the caller is the one to load.
func (v verdict) mine() bool {
	return v == verdictLease || v == verdictRefresh || v == verdictExpired
}

// readAnswer is an answer of read.lua.
type readAnswer struct {
	verdict verdict
	token   string        // of the caller, when it is to load
	entry   string        // "" when there is none to see
	left    time.Duration // of the other one's lease
}

// Modes of read.lua.
const (
	modeRead    = "read"
	modeRefresh = "refresh"
)

func millis(d time.Duration) int64 { return d.Milliseconds() }

func readArgs(t *token, lease time.Duration, mode, stamp string) []any {
	return []any{t, millis(lease), mode, stamp}
}

func (s *scripts) callRead(ctx context.Context, rdb redis.Cmdable, key string, lease time.Duration, mode, stamp string) (readAnswer, error) {
	var t token
	return parseRead(s.read.run(ctx, rdb, key, readArgs(&t, lease, mode, stamp)...), &t)
}

func parseRead(cmd *redis.Cmd, t *token) (readAnswer, error) {
	parts, err := cmd.Slice()
	if err != nil {
		return readAnswer{}, err
	}
	a := readAnswer{token: t.text}
	var ok bool
	text := func(i int) (s string) {
		if ok = i < len(parts); ok {
			s, ok = parts[i].(string)
		}
		return s
	}
	left := func(i int) time.Duration {
		var ms int64
		if ok = i < len(parts); ok {
			ms, ok = parts[i].(int64)
		}
		return time.Duration(ms) * time.Millisecond
	}
	switch a.verdict = verdict(text(0)); a.verdict {
	case verdictLease:
	case verdictWait:
		a.left = left(1)
	case verdictValue, verdictRefresh, verdictStale, verdictExpired:
		a.entry = text(1)
	case verdictHeld:
		if a.entry = text(1); ok {
			a.left = left(2)
		}
	default:
		ok = false
	}
	if !ok {
		return readAnswer{}, fmt.Errorf("read.lua: unknown answer of %d parts", len(parts))
	}
	return a, nil
}

// lifetimes are how long an entry is fresh, served as stale, and kept after that.
type lifetimes struct{ ttl, stale, failSafe time.Duration }

// total is when Redis drops the entry.
func (l lifetimes) total() time.Duration { return l.ttl + l.stale + l.failSafe }

func fillArgs(token string, kind byte, l lifetimes, rest []byte) []any {
	return []any{token, string(kind), millis(l.ttl), millis(l.stale), millis(l.failSafe), rest}
}

func parseDone(cmd *redis.Cmd) (bool, error) {
	n, err := cmd.Int64()
	return n == 1, err
}

// callRelease gives up a load; drop removes a value that was to be refreshed, too.
func (s *scripts) callRelease(ctx context.Context, rdb redis.Cmdable, key, token string, drop bool) error {
	what := "keep"
	if drop {
		what = "drop"
	}
	return s.release.run(ctx, rdb, key, token, what).Err()
}
