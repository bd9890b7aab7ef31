package integration

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
)

// step caches gone and kept, runs the statements, and expects that exactly the
// first are gone afterwards.
func (w *world) step(p *process, name string, gone, kept []string, sql ...string) {
	w.t.Helper()
	w.t.Log(name)
	w.forget()
	w.put(gone...)
	w.put(kept...)
	w.exec(sql...)
	w.drained(p)
	got := w.cached()
	want := slices.Clone(kept)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.t.Errorf("%s: cached are\n  %q\nwant\n  %q", name, got, want)
	}
}

// forget removes the data keys, but for version keys, which only the daemon writes.
func (w *world) forget(versions ...string) {
	w.t.Helper()
	for _, k := range w.cached() {
		if slices.Contains(versions, k) {
			continue
		}
		if err := w.rdb.Del(w.t.Context(), k).Err(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// keys is for lists of literals.
func keys(k ...string) []string { return k }

// cachedNow says whether a key is there.
func (w *world) cachedNow(key string) bool {
	n, err := w.rdb.Exists(context.Background(), key).Result()
	return err == nil && n == 1
}

// get is a key's value, "" when there is none.
func (w *world) get(key string) string {
	w.t.Helper()
	v, err := w.rdb.Get(w.t.Context(), key).Result()
	if err != nil && err != redis.Nil {
		w.t.Fatal(err)
	}
	return v
}

// logged counts the lines of the daemon's log that have the text.
func (p *process) logged(text string) int { return strings.Count(p.log.String(), text) }

// silently runs DDL that the log says nothing of, and waits until gone, which it
// caches before, is gone: one key of each family that the table maps to, so that
// the purge of all of them is over.
func (w *world) silently(p *process, gone []string, sql ...string) {
	w.t.Helper()
	w.put(gone...)
	w.exec(sql...)
	w.eventually(strings.Join(gone, " and ")+" are gone after "+strings.Join(sql, "; "), func() bool {
		if p.ended() {
			w.t.Fatalf("the daemon ended: %v\n%s", p.err, p.log.String())
		}
		return !slices.ContainsFunc(gone, w.cachedNow)
	})
	// A purge is over when what came after it is applied.
	w.exec(`SELECT pg_logical_emit_message(true, 'test.after', '')`)
	w.applied(p)
}

// looked waits until the watcher has reported n changes more than before, and
// until what it did about them is over.
func (w *world) looked(p *process, before, n int) {
	w.t.Helper()
	w.eventually("the catalog watcher has reported", func() bool { return p.logged(definitionChanged) >= before+n })
	w.exec(`SELECT pg_logical_emit_message(true, 'test.after', '')`)
	w.applied(p)
}

const definitionChanged = "a mapped table's definition changed"

// startHTTP starts the daemon with its status pages, and returns their address.
func (w *world) startHTTP(env ...string) (*process, string) {
	w.t.Helper()
	p := w.launch(env...)
	w.settle(p)
	var address string
	w.eventually("the daemon serves its status pages", func() bool { address = p.address(); return address != "" })
	return p, address
}

// condition reads one condition from /healthz.
func (w *world) condition(address, name string) admin.Condition {
	w.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	response, err := client.Get("http://" + address + "/healthz")
	if err != nil {
		w.t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct{ Conditions []admin.Condition }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		w.t.Fatal(err)
	}
	for _, c := range answer.Conditions {
		if c.Name == name {
			return c
		}
	}
	w.t.Fatalf("no condition %s in %v", name, answer.Conditions)
	return admin.Condition{}
}

// refuses starts the daemon and expects that it ends by itself with exit code 78
// and says all of the texts.
func (w *world) refuses(texts ...string) {
	w.t.Helper()
	p := w.launch()
	p.wait()
	if code := p.cmd.ProcessState.ExitCode(); code != 78 {
		w.t.Fatalf("exit code %d, want 78\n%s", code, p.log.String())
	}
	for _, text := range texts {
		if p.logged(text) == 0 {
			w.t.Errorf("the message lacks %q:\n%s", text, p.log.String())
		}
	}
}

// plainBinary builds the daemon as it is released: without the race detector,
// which multiplies the memory in use.
func plainBinary(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cdc-invalidator")
	if out, err := exec.Command("go", "build", "-o", path, "../../cmd/cdc-invalidator").CombinedOutput(); err != nil {
		t.Fatalf("build the daemon: %v\n%s", err, out)
	}
	return path
}

// writeFile replaces a file's content.
func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// withPublication puts the publication's name where a statement has %s.
func (w *world) withPublication(sql []string) []string {
	out := make([]string, len(sql))
	for i, s := range sql {
		out[i] = strings.ReplaceAll(s, "%s", w.slot+"_pub")
	}
	return out
}
