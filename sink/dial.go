package sink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/tlsfault"
)

// probeTimeout bounds the question whether a server that does not answer a TLS
// handshake answers without one.
const probeTimeout = 500 * time.Millisecond

// credentials are asked for at each new connection: a password may have been
// rotated since the last one.
func (b *backend) credentials() (username, password string) {
	e := b.login.Load()
	return e.username, e.password
}

// dial makes a connection, with TLS where the URL says so. The library's own dialer
// would keep one TLS configuration for ever, and leaves a server that does not speak
// TLS as a timeout that says nothing.
func (b *backend) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	config := b.login.Load().tls
	if config == nil {
		return conn, nil
	}
	if config.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			host = addr
		}
		config = config.Clone()
		config.ServerName = host
	}
	bounded, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(bounded); err != nil {
		_ = conn.Close()
		err = fmt.Errorf("TLS handshake with %s: %w", addr, err)
		if (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF)) && answersPlain(ctx, d, network, addr) {
			err = fmt.Errorf("%w: %w", tlsfault.ErrNoTLS, err)
		}
		return nil, err
	}
	return secured, nil
}

// answersPlain asks a server for a PING without TLS. A Redis that gets a handshake
// takes it for the beginning of a long line and waits for the rest.
func answersPlain(ctx context.Context, d *net.Dialer, network, addr string) bool {
	// The caller's time is over: that is how it was found out.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
	defer cancel()
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(probeTimeout)) != nil {
		return false
	}
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return false
	}
	var first [1]byte
	_, err = io.ReadFull(conn, first[:])
	return err == nil && (first[0] == '+' || first[0] == '-') // PONG, or NOAUTH
}

func tlsFix(k tlsfault.Kind) string {
	switch k {
	case tlsfault.UnknownAuthority:
		return "name the authority's certificate in redis.url: ca_file=/path/to/ca.pem"
	case tlsfault.WrongName:
		return "use in redis.url a host that the certificate is for, or name one with server_name="
	case tlsfault.Expired:
		return "give the server a certificate that is valid now (CONFIG SET tls-cert-file), and see that the clocks are right"
	case tlsfault.NoTLS:
		return "use the port that the server has for TLS (tls-port) in redis.url, or redis:// on a network that nobody else can read"
	}
	return "name a certificate that the server takes, and its key, in redis.url: cert_file=/path/to/client.crt&key_file=/path/to/client.key"
}

// UpdateLogin takes the user, the passwords and the certificates of a redis.url into
// use, for connections that are made from now on. It reports whether a user or password
// is another one. A URL of another server is refused: that takes an Open, which decides
// what the new one has.
func (r *Redis) UpdateLogin(url string) (changed bool, err error) {
	e, err := parseURL(url)
	if err != nil {
		return false, &Error{Op: "take new credentials", Kind: KindConfiguration, Err: err}
	}
	old := r.login.Load()
	if !e.sameServer(old) {
		return false, &Error{Op: "take new credentials", Kind: KindConfiguration, Err: ErrOtherServer}
	}
	r.login.Store(e)
	return e.username != old.username || e.password != old.password ||
		e.sentinelUser != old.sentinelUser || e.sentinelSecret != old.sentinelSecret, nil
}

// ErrOtherServer means that a URL differs in more than who we are.
var ErrOtherServer = errors.New("redis.url names another server or database")

func (e *endpoint) sameServer(o *endpoint) bool {
	return e.kind == o.kind && e.network == o.network && slices.Equal(e.addrs, o.addrs) &&
		e.master == o.master && e.db == o.db && (e.tls == nil) == (o.tls == nil)
}

// RefusesLogin says that a server does not take the user or the password.
func RefusesLogin(err error) bool {
	switch replyCode(err) {
	case "WRONGPASS", "NOAUTH":
		return true
	}
	return false
}
