package tlsfault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handshake connects a client with a server, both real, and returns what the client
// gets to know.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	defer func() { <-done }()
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if server == nil {
			_, _ = io.WriteString(conn, "-ERR not TLS\r\n")
			_, _ = io.Copy(io.Discard, conn)
			return
		}
		_ = tls.Server(conn, server).HandshakeContext(context.Background())
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Read(make([]byte, 1)) // TLS 1.3 tells of a refused client here only
	return err
}

func pool(ca *servertest.CA) *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(ca.PEM)
	return p
}

func pair(t *testing.T, c *servertest.Cert) tls.Certificate {
	t.Helper()
	cert, err := tls.X509KeyPair(c.Cert, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestFind(t *testing.T) {
	ca, other := servertest.NewCA(t, "right"), servertest.NewCA(t, "wrong")
	good := pair(t, ca.Issue(t, servertest.CertOptions{CommonName: "s", Hosts: []string{"localhost", "10.0.0.1"}}))
	old := pair(t, ca.Issue(t, servertest.CertOptions{Hosts: []string{"localhost"}, NotAfter: time.Now().Add(-time.Minute)}))
	nameless := pair(t, ca.Issue(t, servertest.CertOptions{CommonName: "localhost"}))
	stranger := pair(t, other.Issue(t, servertest.CertOptions{CommonName: "client"}))
	serve := func(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
	mutual := serve(good)
	mutual.ClientAuth, mutual.ClientCAs = tls.RequireAndVerifyClientCert, pool(ca)
	trusting := func(host string, ca *servertest.CA, certs ...tls.Certificate) *tls.Config {
		return &tls.Config{ServerName: host, RootCAs: pool(ca), Certificates: certs}
	}
	for _, c := range []struct {
		name           string
		server, client *tls.Config
		kind           Kind
		problem        string
	}{
		{"authority", serve(good), trusting("localhost", other), UnknownAuthority, `(it was issued by "CN=right")`},
		{"name", serve(good), trusting("db.example.org", ca), WrongName, "is for localhost, 10.0.0.1, not for db.example.org"},
		{"no name", serve(nameless), trusting("localhost", ca), WrongName, "no host at all"},
		{"expired", serve(old), trusting("localhost", ca), Expired, "expired at 20"},
		{"no TLS", nil, trusting("localhost", ca), NoTLS, "does not speak TLS"},
		{"no client certificate", mutual, trusting("localhost", ca), ClientCertificate, "the server wants a client certificate"},
		{"a stranger's certificate", mutual, &tls.Config{ServerName: "localhost", RootCAs: pool(ca),
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger, nil }}, ClientCertificate, "does not trust the authority"},
	} {
		err := handshake(t, c.server, c.client)
		fault, ok := Find(fmt.Errorf("connect: %w", errors.Join(io.EOF, err)))
		if !ok || fault.Kind != c.kind || !strings.Contains(fault.Problem, c.problem) {
			t.Errorf("%s: %v gives %+v, want kind %d with %q", c.name, err, fault, c.kind, c.problem)
		}
	}
	for _, err := range []error{nil, io.EOF, os.ErrDeadlineExceeded, &net.OpError{Op: "dial", Err: errors.New("connection refused")}} {
		if fault, ok := Find(err); ok {
			t.Errorf("%v gives %+v", err, fault)
		}
	}
}

func TestNotYetValid(t *testing.T) {
	cert := &x509.Certificate{NotBefore: time.Now().Add(time.Hour), NotAfter: time.Now().Add(2 * time.Hour)}
	fault, ok := Find(x509.CertificateInvalidError{Cert: cert, Reason: x509.Expired})
	if !ok || fault.Kind != Expired || !strings.Contains(fault.Problem, "is not valid before") {
		t.Errorf("%+v", fault)
	}
}
