package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/tlsfault"
)

// ErrNodeChanged means that Redis may have lost acknowledged writes: another
// process answers, or the same one with another history, or the node is no
// primary any more. Nothing of the refused batch was applied there. The caller
// attaches again (Attach), decides from the Control it returns where to replay
// from, and resends. No retry without Attach succeeds.
var ErrNodeChanged = errors.New("the Redis node changed")

// ErrSuperseded means that another process wrote the control hash: a later
// generation, or a later state. The caller attaches again.
var ErrSuperseded = errors.New("another process has taken over the control hash")

// ErrReplica means that the node is a replica: after a failover it may take a moment until
// its address leads to the primary again, or for ever, when redis.url names the wrong node.
var ErrReplica = errors.New("not a primary")

// ErrNotAttached means that Attach, or for a new control hash StartGeneration,
// was not called yet.
var ErrNotAttached = errors.New("not attached")

// errAbsent: the control hash was flushed or evicted on a node that is otherwise
// the same. It is written again and the batch resent.
var errAbsent = errors.New("the control hash is absent")

// errUnacknowledged stands on every command until its reply was read, so that a
// command that was forgotten on the way can never pass for one that succeeded.
var errUnacknowledged = errors.New("no reply was read")

// Kind says what an error asks for. All kinds but KindUsage are retried: even
// a wrong password may be mended on the server's side, and dropping
// invalidations is never the answer.
type Kind uint8

// The kinds of error.
const (
	KindUnavailable   Kind = iota // network, timeout, starting up, cluster down: wait
	KindConfiguration             // redis.url, or a right of its user: a person must mend it
	KindNodeChanged               // Attach
	KindSuperseded                // Attach
	KindScript                    // NOSCRIPT: handled inside; seen only when it persists
	KindCanceled                  // the caller's context ended
	KindUsage                     // a bug in the caller
	KindOther
)

var kindNames = [...]string{"unavailable", "configuration", "node_changed", "superseded", "noscript", "canceled", "usage", "other"}

func (k Kind) String() string { return kindNames[k] }

// Error is what every method of Redis returns. It quotes no key and no password.
type Error struct {
	Op       string // "apply", "checkpoint", ...
	Kind     Kind
	Addr     string // the node, where one is known
	Position string // the highest commit LSN of the batch, or the checkpoint's
	Hint     string // what to do; empty when waiting is all
	Err      error
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString("redis: " + e.Op)
		if e.Position != "" {
			b.WriteString(" up to " + e.Position)
		}
		if e.Addr != "" {
			b.WriteString(" on " + e.Addr)
		}
		b.WriteString(": ")
	}
	b.WriteString(e.Err.Error())
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Remedy is the text without the hint, and the hint.
func (e *Error) Remedy() (problem, fix string) {
	bare := *e
	bare.Hint = ""
	return bare.Error(), e.Hint
}

// Configuration reports whether a person has to mend something.
func (e *Error) Configuration() bool { return e.Kind == KindConfiguration }

// Retry reports whether resending the same thing can succeed, now or later,
// without Attach.
func (e *Error) Retry() bool {
	switch e.Kind {
	case KindNodeChanged, KindSuperseded, KindCanceled, KindUsage:
		return false
	}
	return true
}

// replies maps the first word of an error reply to what it means.
var replies = map[string]struct {
	kind Kind
	hint string
}{
	"NOPERM":      {KindConfiguration, aclHint()},
	"NOAUTH":      {KindConfiguration, "the server wants a password: put it into redis.url"},
	"CROSSSLOT":   {KindConfiguration, clusterHint},
	"WRONGPASS":   {KindConfiguration, "user or password in redis.url are not the server's"},
	"MISCONF":     {KindUnavailable, "the server cannot write its snapshot and refuses writes: mend its disk, or set stop-writes-on-bgsave-error no"},
	"OOM":         {KindUnavailable, "the server is above maxmemory and finds nothing to evict: " + evictionFix},
	"DENIED":      {KindConfiguration, "protected mode: give the server a password or a bind address"},
	"NOREPLICAS":  {KindUnavailable, "min-replicas-to-write is not met: bring the replicas back"},
	"READONLY":    {KindNodeChanged, replicaFix},
	"MASTERDOWN":  {KindNodeChanged, replicaFix},
	"NOSCRIPT":    {KindScript, "the scripts are loaded again"},
	"LOADING":     {KindUnavailable, "the server is loading its data; waiting"},
	"BUSY":        {KindUnavailable, "a script of another client is running; waiting"},
	"CLUSTERDOWN": {KindUnavailable, "the cluster has slots that no primary serves; check CLUSTER INFO"},
	"MOVED":       {KindUnavailable, "slots have moved; the topology is read again"},
	"ASK":         {KindUnavailable, "slots are moving; the topology is read again"},
	"TRYAGAIN":    {KindUnavailable, "slots are moving; waiting"},
	"UNBLOCKED":   {KindUnavailable, "the node changed its role"},
}

// replyCode is the first word of a server's error reply, "" for any other error.
func replyCode(err error) string {
	var re redis.Error
	if !errors.As(err, &re) {
		return ""
	}
	msg := re.Error()
	// What a script got from a command arrives inside of the script's own error:
	// "ERR ... -OOM command not allowed" before 7.0, "OOM ... script: ..." since.
	code, _, _ := strings.Cut(msg, " ")
	if code == "ERR" {
		for _, inner := range []string{"OOM", "READONLY", "MISCONF", "NOREPLICAS", "NOPERM"} {
			if strings.Contains(msg, "-"+inner+" ") {
				return inner
			}
		}
		if strings.Contains(msg, "can't run this command") {
			return "NOPERM"
		}
	}
	return strings.TrimPrefix(code, "-")
}

// wrap gives an error its operation and meaning. It keeps an *Error as it is,
// apart from what that one could not know.
func wrap(op, addr, position string, err error) error {
	if err == nil {
		return nil
	}
	var known *Error
	if errors.As(err, &known) {
		e := *known
		if e.Op == "" {
			e.Op = op
		}
		if e.Addr == "" {
			e.Addr = addr
		}
		if e.Position == "" {
			e.Position = position
		}
		return &e
	}
	if answer, ok := unknownCommand(err); ok {
		return &Error{Op: op, Addr: addr, Position: position, Err: noCommand(answer), Kind: KindConfiguration,
			Hint: "the server has this command disabled or under another name; the daemon needs it as it is"}
	}
	e := &Error{Op: op, Addr: addr, Position: position, Err: err}
	e.Kind, e.Hint = classify(err)
	if e.Kind == KindNodeChanged && !errors.Is(err, ErrNodeChanged) {
		e.Err = fmt.Errorf("%w: %w", ErrNodeChanged, err)
	}
	return e
}

// repeatedArguments is where a server begins to repeat what it was asked.
const repeatedArguments = ", with args beginning with"

// unknownCommand recognises a command that the server does not have (renamed, disabled,
// not of this service), and returns its answer without what it repeats of the command:
// the arguments are keys.
func unknownCommand(err error) (answer string, ok bool) {
	text, _, repeats := strings.Cut(err.Error(), repeatedArguments)
	return text, replyCode(err) == "ERR" && (repeats || strings.Contains(text, "unknown command") || strings.Contains(text, "Unknown Redis command"))
}

// noCommand is the answer of a server that does not have a command.
type noCommand string

func (e noCommand) Error() string { return string(e) }

func isUnknownCommand(err error) bool {
	if err == nil {
		return false
	}
	if known := noCommand(""); errors.As(err, &known) {
		return true
	}
	_, unknown := unknownCommand(err)
	return unknown
}

func classify(err error) (Kind, string) {
	switch {
	case errors.Is(err, ErrNodeChanged):
		return KindNodeChanged, "attaching again decides what to replay"
	case errors.Is(err, ErrSuperseded):
		return KindSuperseded, "is a second daemon running on this slot?"
	case errors.Is(err, ErrNotAttached):
		return KindUsage, ""
	case errors.Is(err, errAbsent):
		return KindUnavailable, "it was evicted or flushed again as soon as it was written: " + evictionFix
	case errors.Is(err, context.Canceled):
		return KindCanceled, ""
	}
	if code := replyCode(err); code != "" {
		if hint := refusedSetting(err.Error()); hint != "" {
			return KindConfiguration, hint
		}
		if r, ok := replies[code]; ok {
			return r.kind, r.hint
		}
		return KindOther, ""
	}
	if fault, ok := tlsfault.Find(err); ok {
		return KindConfiguration, fault.Problem + "; " + tlsFix(fault.Kind)
	}
	var ne net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, redis.ErrClosed), errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		return KindUnavailable, "is Redis running and reachable at redis.url?"
	}
	return KindOther, ""
}

const (
	// evictionFix keeps the sink's own keys, which have no lifetime.
	evictionFix = "raise maxmemory, and set maxmemory-policy to volatile-lru with a ttl on every family, so that what is evicted is cached values"
	replicaFix  = "it is a replica now; the daemon connects again. Should it stay one, let redis.url lead to the primary, or to the sentinels (redis+sentinel://)"
)

const clusterHint = "it is a node of a cluster: use redis+cluster://host:port,host:port in redis.url"

// refusedSetting recognises answers to what a connection begins with, for which servers have
// no word of their own: they all begin with ERR.
func refusedSetting(text string) (hint string) {
	for _, r := range []struct{ part, hint string }{
		{"DB index is out of range", "the server has no database of that number: correct the one in redis.url, or raise databases in its configuration"},
		{"invalid DB index", "the server has no database of that number: correct the one in redis.url"},
		{"SELECT is not allowed in cluster mode", clusterHint + ", without a database"},
		{"without any password configured", "the server has no password: take it out of redis.url, or give the server one"},
		{"Client sent AUTH, but no password is set", "the server has no password: take it out of redis.url, or give the server one"},
		{"cluster support disabled", "it is not a cluster: use redis:// in redis.url"},
	} {
		if strings.Contains(text, r.part) {
			return r.hint
		}
	}
	return ""
}
