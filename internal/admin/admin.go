// Package admin serves what operators and their monitoring ask a running daemon
// over HTTP: whether it lives, whether it is ready, what is wrong and how to mend
// it, and its metrics. It changes nothing.
//
//	/livez    200 unless the daemon is stuck so that only a restart helps
//	/readyz   200 when every condition that counts for readiness holds
//	/healthz  200 when every condition holds; all of them, with reason and fix
//	/status   all that the daemon knows of itself (Status), always 200
//	/metrics  Prometheus
//
// The three health pages answer 503 otherwise, and a JSON object either way.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// DefaultAddr is reachable from this machine only: the pages need no password.
const DefaultAddr = "127.0.0.1:9464"

// Limits of one request. The daemon works in a small memory budget, which a slow
// or greedy client must not be able to spend.
const (
	readTimeout      = 5 * time.Second
	writeTimeout     = 30 * time.Second
	idleTimeout      = 60 * time.Second
	maxHeaderBytes   = 16 << 10
	shutdownTimeout  = 5 * time.Second
	maxScrapesAtOnce = 3
)

// State is how a condition is.
type State string

// The states. What was never tried, or not since something ended that it was true of, is
// unknown: that is not ok, and nothing is known to be wrong either.
const (
	StateOK      State = "ok"
	StateFailed  State = "failed"
	StateUnknown State = "unknown"
)

// Condition is one thing that must hold for the daemon to keep its promise.
type Condition struct {
	Name   string    `json:"name"`
	State  State     `json:"state"`
	OK     bool      `json:"ok"`               // the state is ok
	Reason string    `json:"reason,omitempty"` // why it does not hold or is not known, or what should be known although it holds
	Fix    string    `json:"fix,omitempty"`    // what to do about it
	Since  time.Time `json:"since,omitzero"`   // when the state last changed
	Ready  bool      `json:"ready"`            // counts for /readyz
}

// NewCondition makes one that has been in its state since an unknown time.
func NewCondition(name string, state State, reason, fix string) Condition {
	return Condition{Name: name, State: state, OK: state == StateOK, Reason: reason, Fix: fix}
}

// Health is asked at each request, from several goroutines at once; it must
// answer without waiting for a server.
type Health interface {
	Conditions() []Condition
}

// Liveness may be implemented by a Health as well. An error means that the daemon
// is stuck and that a restart would help; a server that is away is no such error.
type Liveness interface {
	Live() error
}

// Options configures a Server.
type Options struct {
	Addr     string // DefaultAddr when empty
	Health   Health
	Gatherer prometheus.Gatherer // what /metrics shows, beside the conditions
	Logger   *slog.Logger
}

// Server is the HTTP side of a daemon.
type Server struct {
	o        Options
	gatherer prometheus.Gatherer
	listener net.Listener
}

// NewServer makes a server; Run runs it.
func NewServer(o Options) *Server {
	if o.Addr == "" {
		o.Addr = DefaultAddr
	}
	// A registry of its own, so that several servers of one process do not meet.
	conditions := prometheus.NewRegistry()
	RegisterMetrics(conditions, o.Health)
	gatherers := prometheus.Gatherers{conditions}
	if o.Gatherer != nil {
		gatherers = append(gatherers, o.Gatherer)
	}
	return &Server{o: o, gatherer: gatherers}
}

// Listen takes the address, if somebody wants to know it before Run, which calls
// Listen otherwise. After it, Run must be called.
func (s *Server) Listen(ctx context.Context) (net.Addr, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.o.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen for HTTP on %s: %w (give another address with --http)", s.o.Addr, err)
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		s.o.Logger.Warn("status pages and metrics can be read from other machines, without a password", "address", l.Addr().String())
	}
	s.listener = l
	return l.Addr(), nil
}

// Run serves until ctx ends, lets requests that are under way finish, and returns
// nil. Any other end is an error, an address in use among them.
func (s *Server) Run(ctx context.Context) error {
	if s.listener == nil {
		if _, err := s.Listen(ctx); err != nil {
			return err
		}
	}
	server := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(s.listener) }()
	s.o.Logger.Info("serving status pages and metrics", "address", s.listener.Addr().String())
	select {
	case err := <-done:
		return fmt.Errorf("serve HTTP on %s: %w", s.o.Addr, err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		_ = server.Close() // whoever is still reading has had their time
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", s.o.Addr, err)
	}
	return nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", s.livez)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s.report(w, func(c Condition) bool { return c.Ready })
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		s.report(w, func(Condition) bool { return true })
	})
	mux.HandleFunc("GET /status", s.status)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.gatherer, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError, // one broken collector must not hide the others
		MaxRequestsInFlight: maxScrapesAtOnce,
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, "cdc-invalidator\n\n/livez\n/readyz\n/healthz\n/status\n/metrics\n")
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		mux.ServeHTTP(w, r)
	})
}

// answer is the body of the health pages.
type answer struct {
	Status     string      `json:"status"` // ok or failed
	Reason     string      `json:"reason,omitempty"`
	Conditions []Condition `json:"conditions,omitempty"`
}

func (s *Server) livez(w http.ResponseWriter, _ *http.Request) {
	if l, ok := s.o.Health.(Liveness); ok {
		if err := l.Live(); err != nil {
			write(w, answer{Status: "failed", Reason: err.Error()})
			return
		}
	}
	write(w, answer{Status: "ok"})
}

func (s *Server) report(w http.ResponseWriter, include func(Condition) bool) {
	a := answer{Status: "ok"}
	for _, c := range s.o.Health.Conditions() {
		if !include(c) {
			continue
		}
		a.Conditions = append(a.Conditions, c)
		if !c.OK {
			a.Status = "failed"
		}
	}
	// A daemon that says nothing of itself has not begun yet.
	if len(a.Conditions) == 0 {
		a = answer{Status: "failed", Reason: "starting"}
	}
	write(w, a)
}

func write(w http.ResponseWriter, a answer) {
	w.Header().Set("Content-Type", "application/json")
	if a.Status != "ok" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // fixes are SQL
	enc.SetIndent("", "  ")
	_ = enc.Encode(a) // the client has gone; there is nobody to tell
}
