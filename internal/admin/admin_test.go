package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type health struct {
	mu         sync.Mutex
	conditions []Condition
	live       error
	block      chan struct{} // when set, Conditions waits for it
	entered    chan struct{}
}

func (h *health) Conditions() []Condition {
	if h.block != nil {
		h.entered <- struct{}{}
		<-h.block
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.conditions
}

func (h *health) Live() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.live
}

func (h *health) set(live error, c ...Condition) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.live, h.conditions = live, c
}

// start runs a server and returns its base URL, and what ends it.
func start(t *testing.T, h Health) (url string, stop func() error) {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "the_daemons_own_total", Help: "x"}))
	s := NewServer(Options{Addr: "127.0.0.1:0", Health: h, Gatherer: reg,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	addr, err := s.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return "http://" + addr.String(), stop
}

func get(t *testing.T, url string) (code int, body string, header http.Header) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func TestHealthPages(t *testing.T) {
	h := &health{}
	url, _ := start(t, h)
	good := Condition{Name: "streaming", OK: true, Ready: true, Since: time.Date(2024, 5, 1, 10, 0, 0, 0, time.UTC)}
	ready := Condition{Name: "redis", Ready: true, Reason: "connection refused", Fix: "start it: a < b"}
	aside := Condition{Name: "config_reload", Reason: "the new file has faults"}
	for _, tc := range []struct {
		name                   string
		live                   error
		conditions             []Condition
		livez, readyz, healthz int
	}{
		{"starting", nil, nil, 200, 503, 503},
		{"all good", nil, []Condition{good}, 200, 200, 200},
		{"not ready", nil, []Condition{good, ready}, 200, 503, 503},
		{"ready, and something is wrong", nil, []Condition{good, aside}, 200, 200, 503},
		{"only what does not count for readiness", nil, []Condition{aside}, 200, 503, 503},
		{"stuck", errors.New("no progress for 5m"), []Condition{good}, 503, 200, 200},
	} {
		h.set(tc.live, tc.conditions...)
		for page, want := range map[string]int{"/livez": tc.livez, "/readyz": tc.readyz, "/healthz": tc.healthz} {
			code, body, header := get(t, url+page)
			if code != want {
				t.Errorf("%s: %s answers %d, want %d: %s", tc.name, page, code, want, body)
			}
			var a answer
			if err := json.Unmarshal([]byte(body), &a); err != nil || (a.Status == "ok") != (code == 200) {
				t.Errorf("%s: %s: %v: %s", tc.name, page, err, body)
			}
			if header.Get("Content-Type") != "application/json" || header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %v", page, header)
			}
		}
	}
	h.set(nil, good, ready, aside)
	_, body, _ := get(t, url+"/healthz")
	for _, want := range []string{`"connection refused"`, `"start it: a < b"`, `"since": "2024-05-01T10:00:00Z"`, "config_reload"} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is not in %s", want, body)
		}
	}
	if _, body, _ = get(t, url+"/readyz"); strings.Contains(body, "config_reload") {
		t.Errorf("readyz shows what does not count: %s", body)
	}
}

type reporting struct {
	health
	status Status
}

func (r *reporting) Status() Status { return r.status }

func TestStatus(t *testing.T) {
	h := &reporting{status: Status{Status: "of no account", Version: "v1", Source: Source{Slot: "s"}}}
	h.set(nil, Condition{Name: "a", OK: true}, Condition{Name: "b", Reason: "x < y"})
	url, _ := start(t, h)
	code, body, header := get(t, url+"/status")
	var s Status
	if err := json.Unmarshal([]byte(body), &s); err != nil || code != 200 || header.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %v: %s", code, err, body)
	}
	if s.Status != "failed" || len(s.Conditions) != 2 || s.Version != "v1" || s.Source.Slot != "s" || !strings.Contains(body, "x < y") || !strings.Contains(body, `"lag_seconds": null`) {
		t.Errorf("%s", body)
	}
	h.set(nil, Condition{Name: "a", OK: true})
	if _, body, _ = get(t, url+"/status"); !strings.Contains(body, `"status": "ok"`) {
		t.Errorf("%s", body)
	}
	plain, _ := start(t, &health{})
	if code, _, _ := get(t, plain+"/status"); code != 404 {
		t.Errorf("a health without a status answers %d", code)
	}
}

func TestMetrics(t *testing.T) {
	h := &health{}
	h.set(nil, Condition{Name: "streaming", OK: true}, Condition{Name: "redis"})
	url, _ := start(t, h)
	code, body, _ := get(t, url+"/metrics")
	for _, want := range []string{`cdc_invalidator_condition{condition="streaming"} 1`, `cdc_invalidator_condition{condition="redis"} 0`, "the_daemons_own_total 0"} {
		if code != 200 || !strings.Contains(body, want) {
			t.Errorf("%d: %s is not in %s", code, want, body)
		}
	}
}

func TestOtherRequests(t *testing.T) {
	url, _ := start(t, &health{})
	if code, body, _ := get(t, url+"/"); code != 200 || !strings.Contains(body, "/healthz") {
		t.Errorf("index: %d %s", code, body)
	}
	for _, path := range []string{"/debug/pprof/", "/nothing", "/healthz/x"} {
		if code, _, _ := get(t, url+path); code != 404 {
			t.Errorf("%s answers %d", path, code)
		}
	}
	resp, err := http.Post(url+"/healthz", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 405 {
		t.Errorf("POST answers %d", resp.StatusCode)
	}
}

func TestDefaultIsLoopback(t *testing.T) {
	host, _, err := net.SplitHostPort(DefaultAddr)
	if err != nil || !net.ParseIP(host).IsLoopback() {
		t.Errorf("%s: %v", DefaultAddr, err)
	}
}

func TestOpenAddressIsWarnedOf(t *testing.T) {
	var log strings.Builder
	s := NewServer(Options{Addr: ":0", Health: &health{}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if _, err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "other machines") {
		t.Errorf("no warning: %q", log.String())
	}
}

func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = NewServer(Options{Addr: l.Addr().String(), Health: &health{}, Logger: slog.New(slog.DiscardHandler)}).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "--http") {
		t.Errorf("%v", err)
	}
}

// A request that is being answered when the daemon ends gets its answer.
func TestShutdownLetsRequestsFinish(t *testing.T) {
	h := &health{block: make(chan struct{}), entered: make(chan struct{}, 1)}
	h.set(nil, Condition{Name: "a", OK: true})
	url, stop := start(t, h)
	type result struct {
		code int
		err  error
	}
	got := make(chan result, 1)
	go func() {
		resp, err := http.Get(url + "/healthz")
		if err != nil {
			got <- result{err: err}
			return
		}
		resp.Body.Close()
		got <- result{code: resp.StatusCode}
	}()
	<-h.entered
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	for { // until no new connection is taken
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			break
		}
		c.Close()
	}
	close(h.block)
	if r := <-got; r.err != nil || r.code != 200 {
		t.Errorf("%+v", r)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// A client that never ends its request must not hold a connection for ever.
func TestSlowClientIsCutOff(t *testing.T) {
	url, _ := start(t, &health{})
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /livez HTTP/1.1\r\nHost: x\r\n")
	if err := c.SetReadDeadline(time.Now().Add(readTimeout + 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(c)
	if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
		t.Error("the connection is still open")
	}
}
