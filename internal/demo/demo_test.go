package demo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	cdcinvalidator "github.com/cdc-invalidator/cdc-invalidator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run runs the demo and checks that it leaves nothing, whatever came of it.
// watch sees the output as it is written.
func run(ctx context.Context, t *testing.T, o Options, watch func(string)) (*Report, string, error) {
	t.Helper()
	var out bytes.Buffer
	o.Out = io.MultiWriter(&out, t.Output(), watcher(watch))
	if o.Mappings == nil {
		o.Mappings = cdcinvalidator.ExampleMappings()
	}
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	report, err := Run(ctx, o)
	text := out.String()
	if dir := folder.FindString(text); dir != "" {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the folder %s is still there: %v", dir, err)
		}
		if left := processesIn(t, dir); len(left) > 0 {
			t.Errorf("processes of the demo are still there: %v", left)
		}
	} else if ctx.Err() == nil {
		t.Errorf("no folder named in %q", text)
	}
	return report, text, err
}

type watcher func(string)

func (w watcher) Write(p []byte) (int, error) {
	if w != nil {
		w(string(p))
	}
	return len(p), nil
}

// waitFor cancels at the first output that contains text.
func waitFor(text string, cancel context.CancelFunc) func(string) {
	return func(out string) {
		if strings.Contains(out, text) {
			cancel()
		}
	}
}

var folder = regexp.MustCompile(`/\S+/cdc-invalidator-\d+`)

// processesIn lists the command lines that mention a folder.
func processesIn(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, f := range files {
		line, err := os.ReadFile(f)
		if cwd, _ := os.Readlink(filepath.Join(filepath.Dir(f), "cwd")); err == nil &&
			(bytes.Contains(line, []byte(dir)) || strings.HasPrefix(cwd, dir)) {
			left = append(left, string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return left
}

func TestNothingIsStaleWithAndMuchIsWithout(t *testing.T) {
	r, text, err := run(t.Context(), t, Options{Duration: 8 * time.Second}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Print(t.Output())
	if !r.OK() {
		t.Errorf("not proved: %+v", r)
	}
	if r.ControlStale == 0 {
		t.Errorf("%d of %d are stale without invalidation: the writers do too little for the comparison to mean anything",
			r.ControlStale, r.ControlCached)
	}
	// How much is the machine's affair; that there is of everything is not.
	if r.Committed == 0 || r.Loads == 0 || r.Misses == 0 || r.Checked == 0 || r.Keys == 0 || r.Latency.P50 <= 0 {
		t.Errorf("too little happened: %+v", r)
	}
	if lines := strings.Count(text, "keys deleted"); lines < 1 {
		t.Errorf("%d progress lines in %q", lines, text)
	}
	if strings.Contains(text, "\r") {
		t.Error("a carriage return where there is no terminal")
	}
}

// The comparison has to find what a wrong mapping leaves stale, or its zero says
// nothing.
func TestAMissingMappingIsFound(t *testing.T) {
	lame := bytes.Replace(cdcinvalidator.ExampleMappings(), []byte("- table: public.users\n"),
		[]byte("- table: public.users\n    actions: [truncate]\n"), 1)
	if bytes.Equal(lame, cdcinvalidator.ExampleMappings()) {
		t.Fatal("the example no longer has the line that this test changes")
	}
	r, _, err := run(t.Context(), t, Options{Duration: 2 * time.Second, Mappings: lame}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.OK() || r.Stale == 0 {
		t.Errorf("nothing was found: %+v", r)
	}
	var text bytes.Buffer
	r.Print(&text)
	if !strings.Contains(text.String(), "STALE: ") {
		t.Errorf("no example in %q", &text)
	}
}

func TestInterruptEndsTheWorkWithAReport(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, text, err := run(ctx, t, Options{Terminal: true}, waitFor("keys deleted", cancel))
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() || r.Committed == 0 {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(text, "\r") {
		t.Errorf("no line was written over in %q", text)
	}
}

func TestInterruptedStartLeavesNothing(t *testing.T) {
	for _, at := range []string{"Starting Postgres", " on port ", "Filling"} {
		t.Run(at, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r, _, err := run(ctx, t, Options{Duration: time.Minute}, waitFor(at, cancel))
			if !errors.Is(err, ErrInterrupted) || r != nil {
				t.Errorf("report %v, error %v", r, err)
			}
		})
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	if _, _, err := run(t.Context(), t, Options{Mappings: []byte("nonsense: true\n")}, nil); err == nil {
		t.Error("a nonsensical mapping file was taken")
	}
	// The daemon fails while it starts, after everything else.
	if _, _, err := run(t.Context(), t, Options{HTTP: "256.0.0.1:1"}, nil); err == nil {
		t.Error("an impossible address was taken")
	}
}

func TestGroup(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := group(n); got != want {
			t.Errorf("group(%d) = %q, want %q", n, got, want)
		}
	}
}
