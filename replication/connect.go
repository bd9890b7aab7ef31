package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/internal/peer"
	"github.com/cdc-invalidator/cdc-invalidator/internal/tlsfault"
)

// connectError says why a connection did not come about, and what that asks for. The
// library tries several ways (with TLS and without, each address of each host) and returns
// what each of them ended with, of which mostly one tells the reason.
func connectError(ctx context.Context, op string, cfg *pgconn.Config, err error, grant string) error {
	if errors.Is(err, context.Canceled) { // the caller gave up: neither side is to blame
		return fmt.Errorf("%s: %w", op, context.Canceled)
	}
	tries := attempts(err)
	best := tries[0]
	for _, t := range tries[1:] {
		if t.rank() > best.rank() {
			best = t
		}
	}
	var others []string
	for _, t := range tries {
		if t.server != best.server && t.server != "" {
			others = append(others, t.text())
		}
	}
	cause := &connectCause{err: best.err, text: strings.Join(append([]string{best.text()}, others...), "; ")}
	var pg *pgconn.PgError
	switch {
	case errors.As(best.err, &pg):
		return refusedConnection(op, pg, cause, grant)
	case best.wrongRole():
		return &ConfigError{Op: op, Problem: "no server in source.url is a primary", Err: &connectCause{err: errors.Join(ErrStandby, best.err), text: cause.text},
			Fix: "name the primary in source.url, or all servers that may become it, with target_session_attrs=read-write"}
	}
	if fault, ok := tlsfault.Find(best.err); ok && fault.Kind != tlsfault.NoTLS {
		return &ConfigError{Op: op, Problem: fault.Problem, Err: cause, Fix: tlsFix(fault.Kind)}
	}
	if best.dialed() {
		network, addr := "tcp", best.server
		if addr == "" {
			network, addr = pgconn.NetworkAddress(cfg.Host, cfg.Port)
		}
		if strings.HasPrefix(addr, "/") {
			network = "unix"
		}
		found := peer.Identify(ctx, network, addr)
		if err := otherProtocol(op, addr, found.Protocol, best, cause, cfg.SSLNegotiation == "direct"); err != nil {
			return err
		}
		if found.Said != "" {
			cause.text = "what answers at " + addr + " does not speak as a Postgres does: it said " + found.Said
		}
	}
	return &UnavailableError{Op: op, Err: cause, Hint: best.hint()}
}

// hint is what to look at when there was no connection to the server at all.
func (a attempt) hint() string {
	var dns *net.DNSError
	switch {
	case errors.As(a.err, &dns):
		return "does the host in source.url have an address from here?"
	case !a.dialed():
		return "is Postgres running and reachable at source.url?"
	}
	return ""
}

// otherProtocol is for a server that is there and with which no connection came about;
// nil where it may be a Postgres that is only in a bad way.
func otherProtocol(op, addr string, p peer.Protocol, best attempt, cause error, direct bool) error {
	const port = "correct the host and port in source.url: "
	fault := func(problem, fix string) error {
		return &ConfigError{Op: op, Problem: problem, Err: cause, Fix: fix}
	}
	switch p {
	case peer.Redis:
		return fault("what answers at "+addr+" is a Redis, and no Postgres", port+"it may be that of redis.url")
	case peer.HTTP:
		return fault("what answers at "+addr+" speaks HTTP, and is no Postgres", port+"it is that of a web server")
	case peer.TLS:
		return fault("what answers at "+addr+" speaks TLS from the first byte on, which Postgres does not", port+"it is that of a web server, or of a proxy that ends TLS")
	case peer.Postgres:
		switch {
		case best.noTLS():
			return fault("the server does not speak TLS there", tlsFix(tlsfault.NoTLS))
		case direct && best.closed():
			return fault("the server does not take TLS that begins without being asked for, which source.url wants (sslnegotiation=direct)",
				"remove sslnegotiation=direct from source.url: only Postgres 17 and above know it")
		case best.ours():
			return fault("the server does not meet what source.url asks of it", "see channel_binding, require_auth, sslcertmode, min_protocol_version in source.url (and PGCHANNELBINDING, PGREQUIREAUTH):\n"+
				"remove the one that is named above, or have the server offer it (channel binding needs TLS, and scram-sha-256 in pg_hba.conf)")
		}
	case peer.Unknown:
	default:
		return fault("what answers at "+addr+" speaks "+string(p)+", and is no Postgres", port+"it is that of another service")
	}
	return nil
}

// refusedConnection is for a server that has answered with an error.
func refusedConnection(op string, pg *pgconn.PgError, cause error, grant string) error {
	if known := byCode(op, pg, cause, grant); known != nil {
		return known
	}
	switch class := pg.Code[:min(2, len(pg.Code))]; {
	case pg.Code == "08P01", pg.Code == "0A000", pg.Code == "XX000" && strings.Contains(strings.ToLower(pg.Message), "tenant"):
		return &ConfigError{Op: op, Problem: "what answers is no Postgres itself, but a pooler in front of it", Err: cause, Fix: directFix}
	case pg.Code == "42704" || class == "22":
		return &ConfigError{Op: op, Problem: "the server does not take a setting that source.url has", Err: cause,
			Fix: "correct or remove that name=value in source.url"}
	case mendsItself(pg.Code):
		return &UnavailableError{Op: op, Err: cause}
	}
	return &ConfigError{Op: op, Problem: "the server refuses the connection", Err: cause, Fix: "see the server's answer, and its log"}
}

const directFix = "give the server's own address in source.url: a pooler (PgBouncer, Odyssey, a managed service's pooled endpoint) knows no replication,\n" +
	"and hides what a session has set; on managed services it is the \"direct\" connection string"

// connectCause is what a failed connection says of itself, in the place of the library's
// text, which lists all ways that were tried and begins with the user and the database.
type connectCause struct {
	err  error
	text string
}

func (e *connectCause) Error() string { return e.text }
func (e *connectCause) Unwrap() error { return e.err }

// attempt is one way that was tried.
type attempt struct {
	server string // host:port, or a socket; "" where it did not come so far
	err    error
}

// attempts takes an error of the library apart.
func attempts(err error) []attempt {
	var all []attempt
	var walk func(error)
	walk = func(err error) {
		var connect *pgconn.ConnectError
		if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // this very layer
			for _, e := range joined.Unwrap() {
				walk(e)
			}
			return
		}
		if errors.As(err, &connect) && connect.Unwrap() != nil {
			walk(connect.Unwrap())
			return
		}
		all = append(all, attempt{server: serverOf(err), err: err})
	}
	walk(err)
	return all
}

// serverOf reads the address from the text of an attempt, "10.0.0.5:5432 (db.example): dial
// error: ...": the type has no other way to it.
func serverOf(err error) string {
	addr, _, ok := strings.Cut(err.Error(), " (")
	if _, _, e := net.SplitHostPort(addr); ok && (e == nil || strings.HasPrefix(addr, "/")) {
		return addr
	}
	return ""
}

// noTLS says that the server has declined TLS, for which the library has no type.
func (a attempt) noTLS() bool {
	return strings.Contains(a.err.Error(), "server refused TLS connection") || errors.Is(a.err, tlsfault.ErrNoTLS)
}

func (a attempt) wrongRole() bool {
	return errors.Is(a.err, pgconn.ErrReadOnlyConnection) || errors.Is(a.err, pgconn.ErrStandbyConnection)
}

// dialed says that there was a connection.
func (a attempt) dialed() bool {
	var op *net.OpError
	var dns *net.DNSError
	return !errors.As(a.err, &dns) && !(errors.As(a.err, &op) && op.Op == "dial") && !strings.Contains(a.err.Error(), "dial error")
}

// closed says that the server ended the connection without a word.
func (a attempt) closed() bool {
	return errors.Is(a.err, io.EOF) || errors.Is(a.err, io.ErrUnexpectedEOF) || errors.Is(a.err, syscall.ECONNRESET) || errors.Is(a.err, syscall.EPIPE)
}

// ours says that it was the client library that did not want to go on, with a server that
// answers as it should: what it wanted stands in the URL.
func (a attempt) ours() bool {
	var network net.Error
	return !a.closed() && !errors.As(a.err, &network) && !errors.Is(a.err, context.DeadlineExceeded) && !errors.Is(a.err, net.ErrClosed)
}

// rank orders attempts by how much they tell.
func (a attempt) rank() int {
	var pg *pgconn.PgError
	_, tls := tlsfault.Find(a.err)
	switch {
	case errors.As(a.err, &pg):
		return 5
	case a.wrongRole():
		return 4
	case tls:
		return 3
	case a.noTLS():
		return 0 // under sslmode=prefer the way without TLS comes after it
	case a.dialed():
		return 2
	}
	return 1
}

// text is the cause, with the server where the cause does not name it.
func (a attempt) text() string {
	cause, named := a.err, false
	var pg *pgconn.PgError
	var op *net.OpError
	var dns *net.DNSError
	switch {
	case errors.As(a.err, &pg):
		cause = pg
	case errors.As(a.err, &dns):
		cause, named = dns, true
	case errors.As(a.err, &op) && op.Op == "dial":
		cause, named = op, true
	case a.wrongRole():
		return a.server + " is a standby, or read-only"
	case errors.Is(a.err, context.DeadlineExceeded):
		cause = errors.New("no answer in time")
	case errors.Is(a.err, io.EOF), errors.Is(a.err, io.ErrUnexpectedEOF):
		cause = errors.New("it closed the connection without an answer")
	default:
		if _, rest, ok := strings.Cut(a.err.Error(), "): "); ok && a.server != "" {
			cause = errors.New(strings.TrimSuffix(rest, ": %!w(<nil>)")) // of the library's wrapping of nothing
		}
	}
	if named || a.server == "" {
		return cause.Error()
	}
	return a.server + ": " + cause.Error()
}
