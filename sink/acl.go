package sink

import (
	"slices"
	"strings"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// command is one that the sink sends, or that its scripts call: the server checks
// the user's rights for both.
type command struct {
	name string // as in an ACL rule, without the +
	when commandUse
	// probe is a form of it that finds nothing, or that the server refuses, once it has
	// checked the right: rights are checked before anything is done. Refusals are counted
	// by the server, and somebody may watch that; the daemon asks again and again.
	probe func(key string) []any
}

type commandUse uint8

const (
	always     commandUse = iota
	inDatabase            // in a database other than 0
	inCluster
	dedicated // with redis.dedicated
	streaming // with redis.stream_max_length
)

// commands is the one list of what the user has to be granted. HELLO and AUTH are
// not in it: the server lets everybody send them.
func commands() []command {
	return []command{
		{"unlink", always, func(key string) []any { return []any{"unlink", key} }},
		{"evalsha", always, func(key string) []any { return []any{"evalsha", sha(probeSource), 1, key} }}, // which the next one loads, for the next time
		{"script|load", always, func(string) []any { return []any{"script", "load", probeSource} }},
		{"info", always, func(string) []any { return []any{"info", "server"} }},
		{"scan", always, func(string) []any { return []any{"scan", 0, "count", 1} }},
		{"get", always, func(key string) []any { return []any{"get", key} }},
		{"set", always, func(key string) []any { return []any{"set", key, "", "xx"} }}, // there is no such key
		{"hmget", always, func(key string) []any { return []any{"hmget", key, "generation"} }},
		{"hset", always, func(key string) []any { return []any{"hset", key, "a", "b", "c"} }}, // a value is missing
		{"hgetall", always, func(key string) []any { return []any{"hgetall", key} }},
		{"persist", always, func(key string) []any { return []any{"persist", key} }},
		// Scripts for soft invalidation and dependents.
		{"time", always, func(string) []any { return []any{"time"} }},
		{"getrange", always, func(key string) []any { return []any{"getrange", key, 0, 0} }},
		{"setrange", always, func(key string) []any { return []any{"setrange", key, 0, ""} }}, // nothing to write
		{"pttl", always, func(key string) []any { return []any{"pttl", key} }},
		{"pexpire", always, func(key string) []any { return []any{"pexpire", key, 1} }}, // there is no such key
		{"zrevrange", always, func(key string) []any { return []any{"zrevrange", key, 0, 0} }},
		{"zrangebyscore", always, func(key string) []any { return []any{"zrangebyscore", key, 0, 0} }},
		{"zscore", always, func(key string) []any { return []any{"zscore", key, ""} }},
		{"zrem", always, func(key string) []any { return []any{"zrem", key, ""} }},
		// Scripts for what is held.
		{"hdel", always, func(key string) []any { return []any{"hdel", key, "a"} }},
		{"zadd", always, func(key string) []any { return []any{"zadd", key, "xx", 0, "a"} }}, // there is no such member
		{"zcount", always, func(key string) []any { return []any{"zcount", key, 0, 0} }},
		{"select", inDatabase, func(string) []any { return []any{"select", 0} }},
		{"cluster|slots", inCluster, func(string) []any { return []any{"cluster", "slots"} }},
		{"cluster|nodes", inCluster, func(string) []any { return []any{"cluster", "nodes"} }},
		{"asking", inCluster, func(string) []any { return []any{"asking"} }},
		{"xadd", streaming, func(key string) []any { return []any{"xadd", key, "nomkstream", "*", "a", "b"} }}, // there is no such key
		{"flushdb", dedicated, func(string) []any { return []any{"flushdb", "neither"} }},                      // neither async nor sync
	}
}

// commandsFor are those that a configuration needs. A URL without a value may lead
// to any database.
func commandsFor(config mapping.Redis) []command {
	e, err := parseURL(config.URL.Reveal())
	return slices.DeleteFunc(commands(), func(c command) bool {
		switch c.when {
		case inDatabase:
			return err == nil && e.db == 0
		case inCluster:
			return err != nil || e.kind != cluster
		case dedicated:
			return !config.Dedicated
		case streaming:
			return config.StreamMaxLength <= 0
		}
		return false
	})
}

// KeyPatterns are globs of the keys that the sink reads and writes: its own, and
// what the families' invalidations name. Of a versioned family that is also what readers
// cached: under no version, which a purge removes, and as the dependents of an entity.
func KeyPatterns(config mapping.Redis, families []*mapping.Family) []string {
	patterns := []string{ownPattern(config)}
	for _, f := range families {
		patterns = append(patterns, f.Pattern(nil))
		if f.Versioned {
			patterns = append(patterns, f.DataPattern())
		}
	}
	slices.Sort(patterns[1:])
	return slices.Compact(patterns)
}

func ownPattern(config mapping.Redis) string {
	prefix := config.Prefix
	if prefix == "" {
		prefix = defaultPrefix
	}
	return prefix + "*" // a prefix has no character that a glob treats differently
}

// ACLRule grants a user exactly what the sink needs, in words that 6.2 and all
// since understand. It is a line for redis-cli, with a placeholder for the password.
func ACLRule(user string, config mapping.Redis, families []*mapping.Family) string {
	words := []string{"ACL", "SETUSER", user, "reset", "on", ">PASSWORD"}
	for _, p := range KeyPatterns(config, families) {
		words = append(words, "~"+p)
	}
	for _, c := range commandsFor(config) {
		words = append(words, "+"+c.name)
	}
	for i, w := range words {
		words[i] = RedisCLIWord(w)
	}
	return strings.Join(words, " ")
}

// RedisCLIWord quotes a word where redis-cli would not read it as it stands.
func RedisCLIWord(w string) string {
	if w != "" && !strings.ContainsAny(w, " \t\"'\\") {
		return w
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(w) + `"`
}

// aclHint names every command that the sink sends, so that one look at the error is
// enough to write the rule.
func aclHint() string {
	names := func(when commandUse) string {
		var b strings.Builder
		for _, c := range commands() {
			if c.when == when {
				b.WriteString(" +" + c.name)
			}
		}
		return b.String()
	}
	return "grant the user: ACL SETUSER <user> on ><password> ~<data keys> ~<redis.prefix>*" + names(always) +
		", with a database other than 0 also" + names(inDatabase) + ", in a cluster also" + names(inCluster) +
		", with redis.dedicated also" + names(dedicated) + ", with redis.stream_max_length also" + names(streaming) + "; doctor --print-grants prints the whole rule"
}
