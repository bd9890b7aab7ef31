package integration

import (
	"strings"
	"syscall"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// Readers must be able to tell a cache that is up to date from one that is behind, by
// the state alone.
func TestStateWhileBehind(t *testing.T) {
	w := itemsWorld(t, 100)
	source := newNoticing(t, w)
	p := w.start()
	state := func() string { return w.control()["state"] }
	revision := w.control()["state_revision"]
	beats := func(n int) {
		t.Helper()
		for range n {
			last := w.control()["fresh_as_of"]
			w.eventually("a heartbeat is applied", func() bool { return w.control()["fresh_as_of"] != last })
		}
	}
	beats(3)
	if now := w.control()["state_revision"]; now != revision && state() == "ok" {
		t.Errorf("the state was written again without a change: %s, was %s", now, revision)
	}

	source.stall.Lock()
	w.eventually("the state says that it is behind", func() bool { return state() == "catching_up" })
	w.update(0, 10)
	source.stall.Unlock()
	w.settle(p)

	// Behind from the start.
	p.kill()
	source.stall.Lock()
	p = w.launch()
	w.eventually("the state says that it is behind", func() bool { return state() == "catching_up" })
	if p.logged("msg=resuming") == 0 {
		t.Error("that was not the new daemon")
	}
	source.stall.Unlock()
	w.settle(p)
	beats(1)
	p.stop()
}

// A table that has left the publication changes without a word. Until it is back, nothing
// may be taken for fresh; what other tables change is removed all the same.
func TestUnpublishedTableKeepsFreshnessBack(t *testing.T) {
	w := newWorld(t, ddlSchema, ddlMappings)
	p := w.start()
	state := func() string { return w.control()["state"] }
	w.settle(p)
	w.exec(w.withPublication([]string{`ALTER PUBLICATION %s DROP TABLE items`})...)
	w.eventually("the state says that it is behind", func() bool { return state() == "catching_up" })
	w.put("other:5")
	w.exec(`INSERT INTO other VALUES (5)`)
	w.eventually("another table's key is gone", func() bool { return !w.cachedNow("other:5") })
	if state() != "catching_up" {
		t.Errorf("state %s", state())
	}
	w.exec(w.withPublication([]string{`ALTER PUBLICATION %s ADD TABLE items`})...)
	w.eventually("the state is ok again", func() bool { return state() == "ok" })
	p.stop()
}

// Whatever a library has to say goes through the daemon's own log.
func TestEveryLineOfTheLogIsOurs(t *testing.T) {
	pg, rd := servertest.Postgres(t), servertest.PrivateRedis(t, localserver.RedisOptions{})
	w := newWorldOn(t, pg.URL, rd.URL(), itemsSchema(200), itemsMappings)
	p := w.start()
	rd.Kill()
	w.update(0, 10)
	w.eventually("the daemon waits for redis", func() bool { return p.logged("waiting for redis") > 0 })
	w.eventually("the client has said something", func() bool { return p.logged("connection pool") > 0 })
	p.kill()
	for line := range strings.Lines(p.log.String()) {
		if !strings.HasPrefix(line, "time=") {
			t.Errorf("a line of somebody else: %s", line)
		}
	}
}

// A Redis that hung takes what was sent to it meanwhile, though its sender has given
// up by then. The state must be what holds now all the same.
func TestStateAfterRedisHung(t *testing.T) {
	w, _, rd := privateWorld(t, 10, nil)
	w.reconfigure("heartbeat: 100ms", "heartbeat: 50ms")
	p := w.start()
	const given = `reachable at redis.url?)" work="publishing the state"` // of the failure, not of its end
	const taken = `succeeds again" work="publishing the state"`
	for n := range 3 {
		if err := rd.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		w.eventually("the state is given up", func() bool { return p.logged(given) > n })
		if err := rd.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		w.eventually("the state is published", func() bool { return p.logged(taken) > n })
		w.settle(p)
	}
	p.stop()
}
