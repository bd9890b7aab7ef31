package sink

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// probesAtOnce bounds a pipeline of probes.
const probesAtOnce = 500

// Rights is what the user lacks of what the sink needs.
type Rights struct {
	// MissingCommands are those of the ACL rule that the user may not run, as they
	// stand in the rule; MissingKeys the patterns of keys that it may not touch.
	MissingCommands, MissingKeys []string
	// Disabled are commands that the server does not have under their name
	// (rename-command, or a service that leaves them out).
	Disabled []string

	user string
}

// Lack is one of them, for people.
type Lack struct {
	Code    string // stable
	Subject string
	Message string
	Fix     string
	CLI     bool // Fix is a line for redis-cli
}

// Lacks lists what is missing, and how to mend each.
func (m *Rights) Lacks() []Lack {
	var list []Lack
	for _, c := range m.Disabled {
		list = append(list, Lack{Code: "redis_command", Subject: c, Message: "the server has the command " + spaced(c) + " disabled or under another name",
			Fix: disabledFix})
	}
	for _, c := range m.MissingCommands {
		list = append(list, Lack{Code: "redis_acl", Subject: "+" + c, Message: "the user may not run " + spaced(c), Fix: m.setUser("+" + c), CLI: true})
	}
	for _, p := range m.MissingKeys {
		list = append(list, Lack{Code: "redis_acl_keys", Subject: "~" + p, Message: "the user may not read and write the keys " + p, Fix: m.setUser(RedisCLIWord("~" + p)), CLI: true})
	}
	return list
}

const disabledFix = "take its rename-command out of the server's configuration, and restart the server: the daemon needs the command as it is"

func spaced(command string) string { return strings.ReplaceAll(command, "|", " ") }

func (m *Rights) setUser(words ...string) string {
	user := m.user
	if user == "" {
		user = "default"
	}
	return "ACL SETUSER " + RedisCLIWord(user) + " " + strings.Join(words, " ")
}

// err is all that is missing as one error; nil when nothing is.
func (m *Rights) err() error {
	lacks := m.Lacks()
	if len(lacks) == 0 {
		return nil
	}
	e := &Error{Kind: KindConfiguration}
	var problems, grants, fixes []string
	for _, l := range lacks {
		problems = append(problems, l.Message)
		switch {
		case l.CLI:
			grants = append(grants, RedisCLIWord(l.Subject))
		case !slices.Contains(fixes, l.Fix):
			fixes = append(fixes, l.Fix)
		}
	}
	if len(grants) > 0 {
		fixes = append(fixes, m.setUser(grants...))
	}
	e.Err, e.Hint = errors.New(strings.Join(problems, "; ")), strings.Join(fixes, "; and ")
	return e
}

// CheckRights tries, without a change of any key, whether the sink can do its work: whether the
// user may do all that it needs, on every primary and every key that the families name, the
// server has the commands, and takes writes. It needs no Attach, and may be called at any time
// from any goroutine.
func (r *Redis) CheckRights(ctx context.Context, families []*mapping.Family) error {
	const op = "check what the user may do"
	// The rights do not differ by database, and without SELECT no connection to
	// another one would come about.
	e := *r.login.Load()
	e.db = 0
	var login atomic.Pointer[endpoint]
	login.Store(&e)
	be := newBackend(&login, nil)
	defer func() { _ = be.close() }() // nothing was written on it
	clients, err := be.primaries(ctx)
	m := Rights{user: e.username}
	if deniedCommand(err) {
		m.MissingCommands = append(m.MissingCommands, "cluster|slots")
		return r.fail(op, "", m.err())
	}
	if err != nil {
		return r.fail(op, "", be.explained(ctx, err))
	}
	ids, err := be.identify(ctx)
	if err != nil && !deniedCommand(err) && !isUnknownCommand(err) {
		return r.fail(op, "", be.explained(ctx, err))
	}
	for _, id := range ids {
		if err := id.usable(be.cluster != nil); err != nil {
			return r.fail(op, "", err)
		}
	}
	for _, c := range clients {
		if err := m.probe(ctx, c, commandsFor(r.config), KeyPatterns(r.config, families)); err != nil {
			return r.fail(op, "", wrap("", be.addr(c), "", be.explained(ctx, err)))
		}
	}
	return r.fail(op, "", m.err())
}

// MayLackRights says that the user's rights or the server's commands can be what an error is
// about: CheckRights knows which.
func MayLackRights(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == KindConfiguration && !RefusesLogin(err)
}

// probe tries each command on a key that is not there. Each node has users of its
// own, and checks rights before it says that a key belongs to another one.
func (m *Rights) probe(ctx context.Context, c *redis.Client, needed []command, patterns []string) error {
	var random [12]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	absent := func(pattern string) string { return keyOfPattern(pattern, "doctor-"+hex.EncodeToString(random[:])) }
	missing := func(list *[]string, name string) {
		if !slices.Contains(*list, name) {
			*list = append(*list, name)
		}
	}
	own := absent(patterns[0])
	probes := make([]redis.Cmder, len(needed))
	for i, n := range needed {
		probes[i] = redis.NewCmd(ctx, n.probe(own)...)
	}
	_ = send(ctx, c, probes...) // each command's own error is looked at
	unlink := true
	for i, n := range needed {
		err := probes[i].Err()
		switch {
		case deniedCommand(err):
			missing(&m.MissingCommands, n.name)
		case isUnknownCommand(err):
			missing(&m.Disabled, n.name)
		case failedProbe(err):
			return fmt.Errorf("%s: %w", n.name, err)
		default:
			continue
		}
		unlink = unlink && n.name != "unlink"
	}
	if !unlink {
		return nil // what it may touch cannot be told
	}
	for some := range slices.Chunk(patterns, probesAtOnce/2) {
		var touches []redis.Cmder
		for _, p := range some {
			key := absent(p)
			touches = append(touches, redis.NewCmd(ctx, "unlink", key), redis.NewCmd(ctx, "get", key))
		}
		_ = send(ctx, c, touches...) // as above
		for i, cmd := range touches {
			if err := cmd.Err(); deniedKey(err) {
				missing(&m.MissingKeys, some[i/2])
			} else if failedProbe(err) {
				return err
			}
		}
	}
	return nil
}

// failedProbe says that a command did not get as far as an answer of the server.
func failedProbe(err error) bool {
	return err != nil && (replyCode(err) == "" || RefusesLogin(err)) && !errors.Is(err, redis.Nil)
}

// keyOfPattern is a key that a glob of KeyPatterns matches.
func keyOfPattern(pattern, value string) string {
	var b strings.Builder
	for i := 0; i < len(pattern); i++ {
		switch {
		case pattern[i] == '\\' && i+1 < len(pattern):
			i++
			b.WriteByte(pattern[i])
		case pattern[i] == '*':
			b.WriteString(value)
		default:
			b.WriteByte(pattern[i])
		}
	}
	return b.String()
}

// A refusal names what is missing in words only, and each version in its own: "no
// permissions to run the 'get' command" and "no permissions to access ... key".
func deniedCommand(err error) bool {
	return replyCode(err) == "NOPERM" && strings.Contains(err.Error(), "to run")
}

func deniedKey(err error) bool { return replyCode(err) == "NOPERM" && !deniedCommand(err) }
