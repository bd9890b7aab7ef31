package peer

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

func TestMain(m *testing.M) { servertest.VerifyMain(m, goleak.IgnoreCurrent()) }

func TestIdentify(t *testing.T) {
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	plain, secure := httptest.NewServer(hello), httptest.NewTLSServer(hello)
	defer plain.Close()
	defer secure.Close()
	cert := servertest.NewCA(t, "an authority").Issue(t, servertest.CertOptions{CommonName: "redis", Hosts: []string{"localhost"}})
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	rd := servertest.PrivateRedis(t, localserver.RedisOptions{Password: "canary", TLS: &localserver.RedisTLS{Cert: cert.Cert, Key: cert.Key}})
	address := func(u string) string { return u[strings.LastIndex(u, "/")+1:] }
	closing, silent := listener(t, func(c net.Conn) { c.Close() }), listener(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c); c.Close() })
	for addr, want := range map[string]Protocol{
		pg.Address():        Postgres,
		rd.Address():        Redis,
		address(plain.URL):  HTTP,
		address(secure.URL): TLS,
		fmt.Sprintf("127.0.0.1:%d", rd.TLSPort()): TLS,
		closing:       Unknown,
		silent:        Unknown,
		"127.0.0.1:1": Unknown,
	} {
		if got := Identify(t.Context(), "tcp", addr); got.Protocol != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
}

func listener(t *testing.T, serve func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}
