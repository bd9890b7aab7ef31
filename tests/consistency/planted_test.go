package consistency

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// edit replaces a text in a file. The text must be there exactly once: code that has
// changed since needs its bug planted anew.
type edit struct{ file, old, new string }

// planted is a bug that a scenario must catch.
type planted struct {
	name     string
	scenario string // without library/; or "./package Test" where no reader has a part in it
	edits    []edit
}

func one(file, old, new string) []edit { return []edit{{file, old, new}} }

// The bugs. Each breaks one reason why the project holds; what the reasons are is said
// where the code is.
func plantedBugs() []planted {
	return []planted{
		{"fill.lua takes every token", "lease runs out during a load",
			one("cache/lua/fill.lua", "if string.sub(cur, 1, 4) ~= 'cdc2' or string.sub(cur, 6, 21) ~= ARGV[1] then return 0 end", "")},
		{"fill.lua stores where nothing is any more", "loader asleep across invalidations",
			[]edit{
				{"cache/lua/fill.lua", "if string.sub(cur, 1, 4) ~= 'cdc2' or", "if cur ~= '' and"},
				{"cache/lua/fill.lua", "if string.sub(cur, 22, 33) <=", "if cur ~= '' and string.sub(cur, 22, 33) <="},
			}},
		{"the snapshot is taken before the lease", "lease taken late", []edit{
			{"cache/miss.go", "	giveUp := time.Now().Add(v.c.o.wait)\n", "	early, err := beginSession(ctx, v.c.primary)\n	if err != nil {\n		return outcome[T]{}, err\n	}\n	ctx = context.WithValue(ctx, earlyKey{}, early)\n	giveUp := time.Now().Add(v.c.o.wait)\n"},
			{"cache/miss.go", "// modeEarly is modeRefresh", "type earlyKey struct{}\n\n// modeEarly is modeRefresh"},
			{"cache/load.go", "	return beginSession(ctx, c.primary)\n", "	if s, ok := ctx.Value(earlyKey{}).(*session); ok {\n		return s, nil\n	}\n	return beginSession(ctx, c.primary)\n"},
		}},
		{"the visibility gate lets everything pass", "commit waits for a standby",
			one("ordering/gate.go", "for asked := 0; done < len(b.txns); asked++ {", "for asked := 0; done < len(b.txns) && asked < 1; asked++ {")},
		{"the old image is not mapped", "old and new image",
			one("mapping/map.go", "		t.image(ch, (*column).oldValue, out)\n		if same(", "		if same(")},
		{"negative entries survive", "old and new image",
			one("mapping/map.go", "	case decoder.Insert:\n		t.image(ch, (*column).newValue, out)\n", "	case decoder.Insert:\n")},
		{"soft.lua leaves the refresh its right to fill", "soft: refresh asleep across a second change",
			one("sink/lua/soft.lua", "redis.pcall('SETRANGE', key, 5, '0000000000000000000000000000000000000000' .. stale)", "redis.pcall('SETRANGE', key, 33, '000000000000' .. stale)")},
		{"soft.lua prolongs what was marked before", "soft: nobody can refresh",
			[]edit{
				{"sink/lua/soft.lua", "if string.sub(header, 46, 57) < stale then stale = string.sub(header, 46, 57) end", ""},
				{"sink/lua/soft.lua", "if done and (left < 0 or left > keep) then", "if done then"}, // it would be gone by then
			}},
		{"dependents are registered after the load", "dependents: load asleep", []edit{
			{"cache/load.go", "		if len(pending) > 0 && proved {\n", "		if late := pending; len(late) > 0 && proved {\n			defer func() { _ = c.register(context.WithoutCancel(ctx), f, keys, late) }()\n			registered = append(registered, late...)\n			pending = nil\n		}\n		if len(pending) > 0 && proved {\n"},
		}},
		{"dependents are forgotten though registered again", "dependents: readers at its heels", []edit{
			{"sink/lua/dependents.lua", "if redis.call('ZSCORE', KEYS[1], ARGV[i + 1]) == ARGV[i] then", "if true then"},
			// So that it needs no luck: the right code holds here as well.
			{"sink/dependents.go", "		failpoint.Hit(failpoint.Forgetting)\n", "		failpoint.Hit(failpoint.Forgetting)\n		time.Sleep(20 * time.Millisecond)\n"},
			{"sink/dependents.go", "	\"strings\"\n", "	\"strings\"\n	\"time\"\n"},
		}},
		{"a version key that is not there has a fixed version", "version keys evicted",
			one("cache/version.go", "_, _ = rand.Read(random[:]) // never fails", "_ = rand.Reader")},
		{"the checkpoint is stored before the batch is applied", "daemon killed at every point",
			one("internal/daemon/applier.go", "		failpoint.Hit(failpoint.Gated)\n", "		if p, ok := b.Position(); ok {\n			a.pending, a.unsaved = p, true\n			if err := a.save(ctx); err != nil {\n				return err\n			}\n		}\n		failpoint.Hit(failpoint.Gated)\n")},
		{"the daemon's silence is taken for health", "hold: daemon stops before it has applied",
			one("cache/control.go", "if age > class.Staleness+spare {", "if age < 0 {")},
		{"the proof leaves out what a class holds back", "hold: daemon stops before it has applied",
			one("cache/control.go", " + class.Hold()\n", "\n")},
		{"what is held is forgotten before it is applied", "held: daemon killed while it applies", []edit{
			{"sink/held_drain.go", "	if err := r.apply(ctx, delivery{b: r.heldBatch(s, t, taken), drained: true}); err != nil {\n		return Drained{}, err\n	}\n	failpoint.Hit(failpoint.HeldApplied)\n	if err := r.done(ctx, be, s, taken.members); err != nil {\n",
				"	if err := r.done(ctx, be, s, taken.members); err != nil {\n		return Drained{}, err\n	}\n	failpoint.Hit(failpoint.HeldApplied)\n	if err := r.apply(ctx, delivery{b: r.heldBatch(s, t, taken), drained: true}); err != nil {\n"},
		}},
		{"a slow load counts as young because it was stored", "loader slower than its class",
			one("cache/flight.go", "	case !out.stored || v.f.Versioned:", "	case out.stored:\n		return true, \"\"\n	case !out.stored || v.f.Versioned:")},
		{"tokens are ignored", "sessions with tokens, daemon stopped",
			one("cache/client.go", "	return token == nil || token.metBy(m) ||", "	return true || token == nil || token.metBy(m) ||")},
		{"a token is compared with what is learned later", "token: applied between read and check",
			one("cache/client.go", "!f.Class.Held() && known.includes(token)", "!f.Class.Held() && c.control.look().includes(token)")},
		{"loads from a standby do not look at what was sent", "standby reader",
			one("cache/standby.go", "case replayed <= sent:", "case false:")},
		{"memory keeps what was read before a removal", "L1: stored late",
			one("cache/l1.go", "if m.seq < l.floor || l.recent[m.key] > m.seq {", "if m.seq < l.floor {")},
		{"a gap in the stream is passed over", "L1: stream cut",
			one("cache/stream.go", "	case m.session != s.session || m.n != s.n+1:", "	case false:")},
		{"the checkpoint is believed although its transaction does not come again", "./tests/integration TestSourceTakenBackToACopyIsAGap",
			one("internal/daemon/history.go", "seen: stored.XID == 0", "seen: true")},
		{"marks of primaries are not looked at by the daemon", "./sink TestClusterPrimariesThatComeBack",
			one("sink/mark.go", "if m.applied < c.Have ||", "if false && m.applied < c.Have ||")},
		{"marks of primaries are not looked at by readers", "./cache TestClusterNodeThatIsBackWithOldDataIsNotTrusted",
			one("cache/servers.go", "|| max(applied, end) < at {", "|| false && max(applied, end) < at {")},
		{"connections are not taken for what they lead to", "./cache TestPoolBehindANameIsOfOnePrimary", []edit{
			{"cache/servers.go", "	case s.id == id:\n", "	case true:\n"},
			{"cache/servers.go", "	case id != s.id:\n", "	case false:\n"},
		}},
		{"readers do not look at the stamp of an entry", "slot lost",
			one("cache/stamps.go", "	return stamp == want || want", "	return stamp != \"\" || want")},
		{"stamps are given before all that was open has ended", "gap while commits wait for a standby",
			one("internal/daemon/stamps.go", "	if snapshot.Past(s.next) {", "	if snapshot.Past(s.next) || true {")},
		{"stamps are given before all that was open when a file came has ended", "./tests/integration TestStampWaitsUntilAllIsVisible",
			one("internal/daemon/stamps.go", "	if snapshot.Past(s.next) {", "	if snapshot.Past(s.next) || true {")},
		{"the last transaction is confirmed", "./tests/integration TestHistoryThatGoesOnIsNoGap",
			one("ordering/position.go", "if p.XID != 0 {", "if false {")},
	}
}

// TestPlanted copies the tree, plants one bug, and runs the scenario that must catch it.
func TestPlanted(t *testing.T) {
	if os.Getenv("CDC_CONSISTENCY") != "planted" {
		t.Log("bugs are planted by `make planted` only: each needs a build of its own")
		for _, p := range plantedBugs() { // but where they are planted must still be there
			for _, e := range p.edits {
				text, err := os.ReadFile(filepath.Join("..", "..", e.file))
				if err != nil {
					t.Errorf("%s: %v", p.name, err)
				} else if n := strings.Count(string(text), e.old); n != 1 {
					t.Errorf("%s: %s has its text %d times, want once:\n%s", p.name, e.file, n, e.old)
				}
			}
			if pkg, test, ok := strings.Cut(p.scenario, " "); ok && strings.HasPrefix(pkg, "./") {
				if !hasTest(t, pkg, test) {
					t.Errorf("%s: %s has no %s", p.name, pkg, test)
				}
			} else if !hasScenario("library/" + p.scenario) {
				t.Errorf("%s: there is no scenario %q", p.name, p.scenario)
			}
		}
		return
	}
	for _, p := range plantedBugs() {
		t.Run(p.name, func(t *testing.T) {
			tree := copyTree(t)
			for _, e := range p.edits {
				plant(t, tree, e)
			}
			pkg, run, fails := "./tests/consistency", "^TestConsistency$/^library$/^"+escapeName(p.scenario)+"$", "--- FAIL: TestConsistency/library/"
			if other, test, ok := strings.Cut(p.scenario, " "); ok && strings.HasPrefix(other, "./") {
				pkg, run, fails = other, "^"+test+"$", "--- FAIL: "+test
			}
			out, err := inTree(t, tree, 8*time.Minute, "go", "test", pkg, "-count", "1", "-v", "-timeout", "3m", "-run", run)
			text := string(out)
			switch {
			case strings.Contains(text, "[build failed]") || strings.Contains(text, "build the daemon:"):
				t.Errorf("the planted bug does not build, which is no catch\n%s", tail(text))
			case err == nil:
				t.Errorf("%q does not catch it\n%s", p.scenario, tail(text))
			case !strings.Contains(text, fails):
				t.Errorf("%q failed for another reason: %v\n%s", p.scenario, err, tail(text))
			default:
				t.Logf("caught by %q:\n%s", p.scenario, reasons(text))
			}
		})
	}
}

func hasScenario(name string) bool {
	for _, sc := range libraryScenarios() {
		if sc.name == name {
			return true
		}
	}
	return false
}

// hasTest says whether a package has a test of that name.
func hasTest(t *testing.T, pkg, name string) bool {
	files, err := filepath.Glob(filepath.Join("..", "..", pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), "func "+name+"(t *testing.T)") {
			return true
		}
	}
	return false
}

// escapeName is a scenario's name as -run wants it.
func escapeName(name string) string {
	return strings.NewReplacer(" ", "_", "(", `\(`, ")", `\)`, "+", `\+`, ".", `\.`).Replace(name)
}

// copyTree copies what belongs to the project into a folder of its own.
func copyTree(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	list := exec.Command("git", "ls-files", "-co", "--exclude-standard", "-z")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatalf("list the tree: %v", err)
	}
	tree := t.TempDir()
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		content, err := os.ReadFile(filepath.Join(root, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // removed, and not committed yet
		}
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(tree, name), content, 0o644)
		}
		if err != nil {
			t.Fatalf("copy the tree: %v", err)
		}
	}
	return tree
}

func plant(t *testing.T, tree string, e edit) {
	t.Helper()
	path := filepath.Join(tree, e.file)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), e.old); n != 1 {
		t.Fatalf("%s has the text %d times, want once:\n%s", e.file, n, e.old)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), e.old, e.new, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func inTree(t *testing.T, tree string, limit time.Duration, name string, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = tree
	// A limit that is reached ends the test that `go test` runs, too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	// Without paths in them, the packages that are the same in all copies are built once.
	cmd.Env = append(os.Environ(), "CDC_CONSISTENCY=long", "GOFLAGS=-buildvcs=false -trimpath")
	return cmd.CombinedOutput()
}

func tail(text string) string { return text[max(0, len(text)-3000):] }

// reasons are the lines of a test's output that say what was wrong.
func reasons(text string) string {
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		if strings.Contains(line, "_test.go:") && !strings.Contains(line, "daemon's log") && len(out) < 6 {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}
