package integration

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// limited makes the world's daemon a user of Redis of its own, with the rights that are
// printed for it, and returns those, one word each.
func (w *world) limited(mappings string) (rights []string) {
	w.t.Helper()
	const password = "canary-limited"
	w.secrets.addText(password, "a password")
	w.redisURL = changed(w.t, w.redisURL, account("limited", password))
	w.writeConfig(mappings)
	file, err := mapping.Load(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	plan, err := mapping.Compile(file)
	if err != nil {
		w.t.Fatal(err)
	}
	_, rule, _ := strings.Cut(sink.ACLRule("limited", file.Redis, plan.Families()), ">PASSWORD ")
	rights = strings.Fields(rule)
	w.allow(append([]string{"reset", "on", ">" + password}, rights...)...)
	return rights
}

func (w *world) allow(words ...string) {
	w.t.Helper()
	args := []any{"ACL", "SETUSER", "limited"}
	for _, word := range words {
		args = append(args, word)
	}
	if err := w.rdb.Do(w.t.Context(), args...).Err(); err != nil {
		w.t.Fatal(err)
	}
}

// untouched fails where a daemon has made something on the source.
func (w *world) untouched() {
	w.t.Helper()
	var made int
	if err := w.conn.QueryRow(w.t.Context(), `SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1) + (SELECT count(*) FROM pg_publication WHERE pubname = $2)`,
		w.slot, w.slot+"_pub").Scan(&made); err != nil {
		w.t.Fatal(err)
	}
	if made != 0 {
		w.t.Errorf("%d objects were made on the source", made)
	}
}

// A user of Redis that lacks any one right ends the daemon at its start, before it has made
// anything on the source, with the line that grants it.
func TestEachRightIsNeededAtTheStart(t *testing.T) {
	t.Parallel()
	w, _, _ := privateWorld(t, 10, nil)
	rights := w.limited(itemsMappings)
	for _, right := range rights {
		t.Run(right, func(t *testing.T) {
			w := *w
			w.t = t
			if name, ok := strings.CutPrefix(right, "+"); ok {
				w.allow("-" + name)
			} else {
				words := []string{"resetkeys"}
				for _, other := range rights {
					if strings.HasPrefix(other, "~") && other != right {
						words = append(words, other)
					}
				}
				w.allow(words...)
			}
			w.ends([]string{"the user may not ", "ACL SETUSER limited " + right})
			w.untouched()
			w.allow(rights...)
		})
	}
	p := w.start() // with all of them it runs
	p.stop()
}

// The same for commands that the server does not have under their name.
func TestEachCommandIsNeededAtTheStart(t *testing.T) {
	t.Parallel()
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	for _, c := range []struct{ name, as string }{{"EVALSHA", ""}, {"UNLINK", "unlink_renamed"}, {"SCAN", ""}, {"HSET", "hset_renamed"}, {"INFO", ""}} {
		t.Run(c.name, func(t *testing.T) {
			rd := servertest.PrivateRedis(t, localserver.RedisOptions{Args: []string{"--rename-command", c.name, c.as}})
			w := newWorldOn(t, servertest.NewDatabase(t, pg, "shop").URL, rd.URL(), itemsSchema(1), itemsMappings)
			w.ends([]string{"the server has the command " + strings.ToLower(c.name) + " disabled or under another name", "rename-command"})
			w.untouched()
		})
	}
}

// A right that is taken away while the daemon runs shows in a condition with the line that grants
// it, whether or not anything needs it just then. Once it is back, all is well again.
func TestARightIsTakenAwayWhileTheDaemonRuns(t *testing.T) {
	t.Parallel()
	w, _, _ := privateWorld(t, 10, nil)
	rights := w.limited(itemsMappings)
	p, address := w.startHTTP()
	w.eventually("all is well", func() bool { code, _ := w.answered(address, "/healthz"); return code == http.StatusOK })
	// One after the other, those last without which nothing goes on.
	var last, order []string
	for _, right := range rights {
		switch right {
		case "+unlink", "+evalsha", "+script|load", "+info", "+hgetall", "+select":
			last = append(last, right)
		default:
			if strings.HasPrefix(right, "+") {
				order = append(order, right)
			}
		}
	}
	for _, right := range append(order, last...) {
		w.allow("-" + strings.TrimPrefix(right, "+"))
		w.eventually("a condition says that "+right+" is missing", func() bool {
			code, conditions := w.answered(address, "/readyz")
			for _, c := range conditions {
				if c.State == admin.StateFailed && c.Ready && strings.HasPrefix(c.Fix, "ACL SETUSER limited ") && slices.Contains(strings.Fields(c.Fix), right) {
					if strings.Contains(c.Reason, "ACL SETUSER") {
						t.Errorf("%s: the reason has the fix in it: %+v", right, c)
					}
					return code == http.StatusServiceUnavailable
				}
			}
			return false
		})
	}
	w.allow(rights...)
	w.eventually("all is well again", func() bool { code, _ := w.answered(address, "/healthz"); return code == http.StatusOK })
	w.update(0, 5)
	w.settle(p)
	p.stop()
}
