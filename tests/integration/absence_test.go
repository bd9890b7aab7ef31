package integration

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// While nothing is followed the state in Redis does not say ok: the source is away, the daemon
// was stopped, or one begins that finds what a dead one has left.
func TestStateWithoutASession(t *testing.T) {
	t.Parallel()
	w, pg, _ := privateWorld(t, 10, nil)
	state := func() string { return w.control()["state"] }
	p := w.start()
	pg.Kill()
	w.eventually("the state does not say ok while the source is away", func() bool { return state() == "catching_up" })
	if reason := w.control()["reason"]; !strings.Contains(reason, "not attached to the source") {
		t.Errorf("reason %q", reason)
	}
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.conn = servertest.Connect(t, w.url)
	w.settle(p)

	p.stop()
	if state() != "catching_up" {
		t.Errorf("state %s after the daemon was stopped", state())
	}
	log := p.log.String() // what is queued may wait for seconds, which the state must not
	if told, ended := strings.Index(log, "the state is not ok any more"), strings.Index(log, "msg=stopping"); told < 0 || ended < told {
		t.Error("the state said ok until all was applied that was queued")
	}

	p = w.start()
	p.kill()
	if state() != "ok" {
		t.Fatal("that shows nothing")
	}
	pg.Kill()
	p = w.launch()
	w.eventually("what a dead daemon has left is not kept", func() bool { return state() == "catching_up" })
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.conn = servertest.Connect(t, w.url)
	w.settle(p)
	p.stop()
}

// However a daemon came to follow the source, it says that it does not any more. Without
// heartbeats nothing else would find a state that nobody keeps.
func TestStateOnceASessionHasEnded(t *testing.T) {
	t.Parallel()
	w, pg, _ := privateWorld(t, 10, nil)
	w.reconfigure("heartbeat: 100ms", "heartbeat: 0s")
	for _, attached := range []struct {
		how  string
		prep func()
	}{
		{"for the first time", func() {}},
		{"again", func() {}},
		{"after a gap", func() { w.exec("SELECT pg_drop_replication_slot('" + w.slot + "')") }},
	} {
		t.Run(attached.how, func(t *testing.T) {
			attached.prep()
			p := w.start()
			w.eventually("the state is ok", func() bool {
				w.nudge()
				return w.control()["state"] == "ok"
			})
			pg.Kill()
			w.eventually("the state does not say ok", func() bool { return w.control()["state"] == "catching_up" })
			if err := pg.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.conn = servertest.Connect(w.t, w.url) // for the next one, too
			p.stop()
		})
	}
}

// Only the daemon that has the slot says how things are: neither one that waits, nor one that
// cannot reach the source, nor one that wakes up, overrules it.
func TestStateOfADaemonThatWorksIsNotOverruled(t *testing.T) {
	t.Parallel()
	w, pg, _ := privateWorld(t, 10, nil)
	p := w.start()
	unreachable := *w
	unreachable.config = w.config + ".other.yaml"
	unreachable.url = strings.Replace(w.url, pg.Address(), "127.0.0.1:1", 1)
	unreachable.writeConfig(itemsMappings)
	other, waiting := unreachable.launch(), w.launch()
	w.eventually("one cannot reach the source, the other waits", func() bool {
		return other.logged("not streaming") > 8 && waiting.logged("in use by another process") > 5
	})
	if p.logged("not streaming") != 0 || p.logged("was superseded") != 0 {
		t.Error("the daemon that works was disturbed")
	}
	w.settle(p)
	// One that wakes up after it was taken over from.
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.eventually("the other one has taken over", func() bool { return waiting.logged("msg=streaming") > 0 })
	w.settle(waiting)
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.eventually("the first has noticed", func() bool { return p.logged("in use by another process") > 2 })
	w.settle(waiting)
	for _, d := range []*process{other, waiting, p} {
		d.stop()
	}
}

// The usual way to set up, plan and apply before run, is no incident.
func TestFirstAttachmentToASlotMadeBeforehand(t *testing.T) {
	t.Parallel()
	w, _, rd := privateWorld(t, 10, nil)
	if code, out, errOut := w.run("apply", "--config", w.config, "--yes"); code != 0 {
		t.Fatalf("apply: %d\n%s%s", code, out, errOut)
	}
	w.cacheRows(0, 5)
	w.update(5, 10)
	p, address := w.startHTTP()
	if p.logged("level=error") != 0 || p.logged("first attachment") == 0 {
		t.Errorf("the log tells of an incident, or of nothing:\n%s", p.log.String())
	}
	w.wantGone(0, 5) // nobody knows how old it is
	response, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	metrics, err := io.ReadAll(response.Body)
	if err != nil || !strings.Contains(string(metrics), "cdc_invalidator_gaps_total 0\n") {
		t.Errorf("%v: a gap is counted:\n%s", err, metrics)
	}
	w.settle(p)
	p.kill()
	// The same slot once it was used: Redis has lost what it held.
	rd.Kill()
	if err := rd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p = w.start()
	if p.logged("gap: ") == 0 {
		t.Error("a Redis that has lost all is taken for a first attachment")
	}
	p.stop()
}

// Several hosts and the role that is wanted of one, in each way in which the role can be given.
func TestTargetSessionAttrs(t *testing.T) {
	t.Parallel()
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	rd := servertest.PrivateRedis(t, localserver.RedisOptions{})
	w := newWorldOn(t, servertest.NewDatabase(t, pg, "shop").URL, rd.URL(), itemsSchema(100), itemsMappings)
	w.exec(`ALTER ROLE postgres SET default_transaction_read_only = on`) // as such roles often are
	standby := servertest.Standby(t, pg, localserver.PostgresOptions{})
	direct := w.url
	for _, c := range []struct{ hosts, attrs string }{
		{pg.Address(), "read-write"}, {pg.Address(), "primary"}, {pg.Address(), "any"},
		{standby.Address() + "," + pg.Address(), "read-write"}, {standby.Address() + "," + pg.Address(), "primary"},
		{pg.Address() + "," + standby.Address(), "read-write"}, {"127.0.0.1:1," + standby.Address() + "," + pg.Address(), "read-write"},
	} {
		w.url = changed(t, direct, func(u *url.URL) { q := u.Query(); q.Set("target_session_attrs", c.attrs); u.RawQuery = q.Encode() })
		w.url = strings.Replace(w.url, pg.Address(), c.hosts, 1)
		w.writeConfig(itemsMappings)
		p := w.start()
		w.cacheRows(0, 50)
		w.exec(`SET default_transaction_read_only = off`)
		w.update(0, 50)
		w.settle(p)
		w.wantGone(0, 50)
		p.stop()
		if code, out, _ := w.run("doctor", "--quiet", "--config", w.config); code != 0 {
			t.Errorf("%v: doctor: %d\n%s", c, code, out)
		}
	}
	w.exec(`ALTER ROLE postgres RESET default_transaction_read_only`)
}
