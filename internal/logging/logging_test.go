package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type secret string

func (secret) String() string { return "[redacted]" }

func TestJSONFields(t *testing.T) {
	var buf bytes.Buffer
	log := New(&buf, JSON, slog.LevelInfo).With("slot", "s1").WithGroup("pg")
	log.Warn("reconnecting", "position", lsn.LSN(0x16B374D848), "after", 1500*time.Millisecond,
		"error", errors.New("connection refused"), "url", secret("postgres://u:hunter2@h/db"),
		slog.Group("server", "version", 150018, "standby", false))

	var got map[string]any
	if err := json.Unmarshal(buf.Bytes(), &got); err != nil {
		t.Fatalf("not one JSON object: %v: %s", err, buf.Bytes())
	}
	want := map[string]any{
		"level": "warning", "msg": "reconnecting", "slot": "s1",
		"pg.position": "16/B374D848", "pg.after": "1.5s", "pg.error": "connection refused",
		"pg.url": "[redacted]", "pg.server.version": float64(150018), "pg.server.standby": false,
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("field %s = %#v, want %#v", k, got[k], v)
		}
	}
	at, err := time.Parse(timeFormat, got["time"].(string))
	if err != nil || at.Location() != time.UTC {
		t.Errorf("time %q: %v, want UTC", got["time"], err)
	}
	if strings.Contains(buf.String(), "hunter2") {
		t.Errorf("a secret reached the log: %s", buf.String())
	}
}

func TestTextIsOneLinePerRecord(t *testing.T) {
	var buf bytes.Buffer
	log := New(&buf, Text, slog.LevelInfo)
	log.Info("hello", "value", "two\nlines", "empty", "", "position", lsn.LSN(0x10))
	out := buf.String()
	if strings.Count(out, "\n") != 1 {
		t.Fatalf("a value broke the line: %q", out)
	}
	for _, want := range []string{`level=info`, `msg=hello`, `value="two\nlines"`, `empty=""`, `position=0/10`} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %q", want, out)
		}
	}
	if strings.Contains(out, "\x1b[") {
		t.Errorf("colours without a terminal: %q", out)
	}
}

func TestLevels(t *testing.T) {
	for _, tc := range []struct {
		level string
		want  []string
	}{
		{"debug", []string{"d", "i", "w", "e", "x"}},
		{"info", []string{"i", "w", "e", "x"}},
		{"WARN", []string{"w", "e", "x"}},
		{"error", []string{"e", "x"}},
	} {
		level, err := ParseLevel(tc.level)
		if err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		log := New(&buf, JSON, level)
		log.Debug("d")
		log.Info("i")
		log.Warn("w")
		log.Error("e")
		// Far above error: logrus would call this "panic".
		log.Log(t.Context(), slog.LevelError+8, "x")
		var got []string
		for line := range strings.Lines(buf.String()) {
			var r struct{ Msg, Level string }
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatal(err)
			}
			if r.Level == "panic" || r.Level == "fatal" {
				t.Errorf("level %q in %s", r.Level, line)
			}
			got = append(got, r.Msg)
		}
		if strings.Join(got, "") != strings.Join(tc.want, "") {
			t.Errorf("level %s: wrote %v, want %v", tc.level, got, tc.want)
		}
		if log.Enabled(t.Context(), slog.LevelDebug) != (tc.level == "debug") {
			t.Errorf("level %s: Enabled(debug) is wrong", tc.level)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	if _, err := ParseLevel("loud"); err == nil {
		t.Error("level loud was accepted")
	}
	if _, err := ParseFormat("xml"); err == nil {
		t.Error("format xml was accepted")
	}
	if f, err := ParseFormat("JSON"); err != nil || f != JSON {
		t.Errorf("ParseFormat(JSON) = %v, %v", f, err)
	}
}

// One derived logger is used by several goroutines in the daemon.
func TestConcurrentUse(t *testing.T) {
	var buf bytes.Buffer
	log := New(&buf, JSON, slog.LevelInfo).With("component", "x")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				log.Info("m", "n", i)
			}
		})
	}
	wg.Wait()
	if n := bytes.Count(buf.Bytes(), []byte("\n")); n != 400 {
		t.Errorf("%d lines, want 400", n)
	}
}
