package integration

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

const reloadSchema = `
	CREATE TABLE a (id int PRIMARY KEY, v int);
	CREATE TABLE b (id int PRIMARY KEY, v int);
	INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1), (2)`

func reloadMappings(template, tables string) string {
	return `
classes:
  critical: {staleness: 1s}
keys:
  k: {key: "` + template + `", class: critical}
mappings:
` + tables
}

const (
	mapsA = "  - {table: public.a, keys: [k]}\n"
	mapsB = "  - {table: public.b, keys: [k]}\n"
)

// reload sends SIGHUP and waits until the daemon says what came of it.
func (p *process) reload(says string) {
	p.w.t.Helper()
	p.reloadSays(says)
	if says == reloaded {
		p.w.eventually("what the new file adds is followed", p.w.followed)
	}
}

// reloadSays is reload without waiting until all of the new file is followed.
func (p *process) reloadSays(says string) {
	p.w.t.Helper()
	before := p.logged(says)
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		p.w.t.Fatal(err)
	}
	p.w.eventually("the log says "+says, func() bool { return p.logged(says) > before })
}

const (
	reloaded = "mappings reloaded"
	refused  = "the mappings were not reloaded"
)

func TestReload(t *testing.T) {
	w := newWorld(t, reloadSchema, reloadMappings("old:{id}", mapsA+mapsB))
	p, address := w.startHTTP()
	w.step(p, "before", keys("old:1"), keys("old:2", "new:1"), `UPDATE a SET v = 1 WHERE id = 1`)

	w.writeConfig(reloadMappings("new:{id}", mapsA+mapsB))
	w.step(p, "a file alone changes nothing", keys("old:1"), keys("old:2", "new:1"), `UPDATE a SET v = 1 WHERE id = 1`)
	p.reload(reloaded)
	w.step(p, "another template", keys("new:1"), keys("old:1", "new:2"), `UPDATE a SET v = 1 WHERE id = 1`)

	for name, bad := range map[string]string{
		"no YAML":          "mappings: [",
		"a missing table":  reloadMappings("bad:{id}", mapsA+"  - {table: public.missing, keys: [k]}\n"),
		"a missing column": reloadMappings("bad:{nothing}", mapsA),
	} {
		w.writeConfig(bad)
		p.reload(refused)
		c := w.condition(address, "mappings")
		if c.OK || c.Reason == "" || !strings.Contains(c.Fix, "the mappings from before are in force") {
			t.Errorf("%s: the condition says %+v", name, c)
		}
		w.step(p, name, keys("new:1"), keys("old:1", "bad:1"), `UPDATE b SET v = 1 WHERE id = 1`)
	}

	w.writeConfig(reloadMappings("last:{id}", mapsA))
	p.reload(reloaded)
	if c := w.condition(address, "mappings"); !c.OK || c.Reason != "" {
		t.Errorf("after a good file the condition says %+v", c)
	}
	w.step(p, "a mapping less", keys("last:1"), keys("last:2", "new:1"), `UPDATE a SET v = 1 WHERE id = 1`, `UPDATE b SET v = 1 WHERE id = 2`)
	w.writeConfig(reloadMappings("last:{id}", mapsA+mapsB))
	p.reload(reloaded)
	w.step(p, "and back", keys("last:1", "last:2"), keys("new:1"), `UPDATE a SET v = 1 WHERE id = 1`, `UPDATE b SET v = 1 WHERE id = 2`)
	p.stop()
}

// The budget that lag is compared with, and the default heartbeat, follow from the
// classes, which a reload changes.
func TestReloadOfTheClasses(t *testing.T) {
	w := newWorld(t, reloadSchema, "")
	source := newNoticing(t, w)
	write := func(staleness string) {
		t.Helper()
		w.writeConfig(strings.Replace(reloadMappings("k:{id}", mapsA), "1s", staleness, 1))
		w.reconfigure("  heartbeat: 100ms\n", "")
		w.reconfigure(w.url, source.url)
	}
	write("30s")
	p, address := w.startHTTP()
	if c := w.condition(address, "lag"); !c.OK {
		t.Errorf("at the start %+v", c)
	}
	write("1s")
	p.reload(reloaded)
	began := time.Now()
	for range 4 {
		last := w.control()["fresh_as_of"]
		w.eventually("a heartbeat is applied", func() bool { return w.control()["fresh_as_of"] != last })
	}
	if took := time.Since(began); took > 9*time.Second {
		t.Errorf("four heartbeats took %v: they do not follow the budget", took)
	}
	source.stall.Lock()
	w.eventually("the new budget is exceeded", func() bool {
		c := w.condition(address, "lag")
		return !c.OK && strings.Contains(c.Reason, "the strictest budget is 1s")
	})
	source.stall.Unlock()
	if p.logged("read at start only") > 0 {
		t.Error("it warns of source settings, and only the classes have changed")
	}
	w.writeConfig(reloadMappings("k:{id}", mapsA)) // with a heartbeat of its own
	w.reconfigure(w.url, source.url)
	p.reload(reloaded)
	if p.logged("read at start only") != 1 {
		t.Error("it does not warn of a heartbeat that needs a restart")
	}
	p.stop()
}

// A table that the publication does not have would be mapped in vain: the file is
// refused until it is added.
func TestReloadThatNeedsMoreOfThePublication(t *testing.T) {
	w := newWorld(t, reloadSchema, reloadMappings("k:{id}", mapsA))
	p, address := w.startHTTP()
	w.writeConfig(reloadMappings("k:{id}", mapsA+mapsB))
	p.reload(refused)
	fix := "ALTER PUBLICATION " + w.slot + "_pub ADD TABLE public.b;"
	if c := w.condition(address, "mappings"); c.OK || !strings.Contains(c.Reason+c.Fix, fix) {
		t.Fatalf("the condition says %+v, want the fix %s", c, fix)
	}
	w.step(p, "not mapped yet", keys("k:1"), keys("k:2"), `UPDATE a SET v = 1 WHERE id = 1`, `UPDATE b SET v = 1 WHERE id = 2`)
	w.exec(fix)
	p.reload(reloaded)
	w.step(p, "mapped now", keys("k:1", "k:2"), keys("k:3"), `UPDATE a SET v = 1 WHERE id = 1`, `UPDATE b SET v = 1 WHERE id = 2`)
	p.stop()
}
