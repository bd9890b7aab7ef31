package integration

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// tlsSide is one server with TLS, and how the daemon's URL of it is made.
type tlsSide struct {
	good, wrongCA, wrongHost, expired, noTLS, noClientCert, withClientCert string
	goodPlain, clientPlain                                                 string // of the same servers, for the test itself
}

// withQuery adds options to a URL and gives it another host.
func withQuery(t *testing.T, base, scheme, host string, options map[string]string) string {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	for k, v := range options {
		q.Set(k, v)
	}
	u.Scheme, u.Host, u.RawQuery = scheme, host, q.Encode()
	return u.String()
}

// tlsPostgres starts servers whose certificates are good for "localhost" only.
func tlsPostgres(t *testing.T) tlsSide {
	ca, other := servertest.NewCA(t, "the right authority"), servertest.NewCA(t, "another authority")
	good := ca.Issue(t, servertest.CertOptions{CommonName: "db", Hosts: []string{"localhost"}})
	old := ca.Issue(t, servertest.CertOptions{CommonName: "db", Hosts: []string{"localhost"}, NotAfter: time.Now().Add(-time.Hour)})
	client := ca.Issue(t, servertest.CertOptions{CommonName: "postgres"})
	start := func(cert *servertest.Cert, hba string) *localserver.Postgres {
		return servertest.PrivatePostgres(t, localserver.PostgresOptions{
			Files:    map[string][]byte{"server.crt": cert.Cert, "server.key": cert.Key, "clients.crt": ca.PEM, "pg_hba.conf": []byte("local all all trust\n" + hba + "\n")},
			Settings: map[string]string{"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key", "ssl_ca_file": "clients.crt"},
		})
	}
	const withTLS = "hostssl all all all scram-sha-256"
	server, expired := start(good, withTLS), start(old, withTLS)
	clients := start(good, withTLS+" clientcert=verify-ca")
	at := func(p *localserver.Postgres, host, ca string, more ...string) string {
		o := map[string]string{"sslmode": "verify-full", "sslrootcert": ca}
		for i := 0; i+1 < len(more); i += 2 {
			o[more[i]] = more[i+1]
		}
		return withQuery(t, p.URL(), "postgres", fmt.Sprintf("%s:%d", host, p.Port()), o)
	}
	plain := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	return tlsSide{
		good: at(server, "localhost", ca.File), wrongCA: at(server, "localhost", other.File), wrongHost: at(server, "127.0.0.1", ca.File),
		expired: at(expired, "localhost", ca.File), noTLS: at(plain, "localhost", ca.File), noClientCert: at(clients, "localhost", ca.File),
		withClientCert: at(clients, "localhost", ca.File, "sslcert", client.CertFile, "sslkey", client.KeyFile),
		goodPlain:      server.SocketURL(), clientPlain: clients.SocketURL(),
	}
}

func tlsRedis(t *testing.T) tlsSide {
	ca, other := servertest.NewCA(t, "the right authority"), servertest.NewCA(t, "another authority")
	good := ca.Issue(t, servertest.CertOptions{CommonName: "redis", Hosts: []string{"localhost"}})
	old := ca.Issue(t, servertest.CertOptions{CommonName: "redis", Hosts: []string{"localhost"}, NotAfter: time.Now().Add(-time.Hour)})
	client := ca.Issue(t, servertest.CertOptions{CommonName: "daemon"})
	start := func(cert *servertest.Cert, clientCA []byte) *localserver.Redis {
		return servertest.PrivateRedis(t, localserver.RedisOptions{Password: "canary-redis-password",
			TLS: &localserver.RedisTLS{Cert: cert.Cert, Key: cert.Key, ClientCA: clientCA}})
	}
	server, expired, clients := start(good, nil), start(old, nil), start(good, ca.PEM)
	at := func(r *localserver.Redis, port int, host, ca string, more ...string) string {
		o := map[string]string{"ca_file": ca}
		for i := 0; i+1 < len(more); i += 2 {
			o[more[i]] = more[i+1]
		}
		return withQuery(t, r.URL(), "rediss", fmt.Sprintf("%s:%d", host, port), o)
	}
	return tlsSide{
		good: at(server, server.TLSPort(), "localhost", ca.File), wrongCA: at(server, server.TLSPort(), "localhost", other.File),
		wrongHost: at(server, server.TLSPort(), "127.0.0.1", ca.File), expired: at(expired, expired.TLSPort(), "localhost", ca.File),
		noTLS: at(server, server.Port(), "localhost", ca.File), noClientCert: at(clients, clients.TLSPort(), "localhost", ca.File),
		withClientCert: at(clients, clients.TLSPort(), "localhost", ca.File, "cert_file", client.CertFile, "key_file", client.KeyFile),
		goodPlain:      server.URL(), clientPlain: clients.URL(),
	}
}

const tlsSchema = `CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a VALUES (1, ''), (2, '')`

// use gives the daemon other URLs than those that the test itself uses.
func (w *world) use(source, redis string) {
	w.t.Helper()
	w.url, w.redisURL = source, redis
	w.secrets.addURL(source)
	w.secrets.addURL(redis)
	w.writeConfig(reloadMappings("k:{id}", mapsA))
}

// TestTLS: each way in which a certificate is wrong ends the start with 78 and says
// which one it is, and what to do.
func TestTLS(t *testing.T) {
	t.Parallel()
	pg, rd := tlsPostgres(t), tlsRedis(t)
	db, rdb := servertest.Postgres(t), servertest.Redis(t)
	w := newWorldOn(t, db.URL, rdb.URL, tlsSchema, reloadMappings("k:{id}", mapsA))
	for _, c := range []struct {
		name, source, redis string
		says                []string
	}{
		{"postgres: another authority", pg.wrongCA, rdb.URL, keys("not signed by an authority that is trusted here", "the right authority", "sslrootcert=")},
		{"postgres: another host", pg.wrongHost, rdb.URL, keys("the server's certificate is for localhost, not for 127.0.0.1", "use in source.url a host that the certificate is for")},
		{"postgres: expired", pg.expired, rdb.URL, keys("the server's certificate expired at 20", "ssl_cert_file")},
		{"postgres: no TLS", pg.noTLS, rdb.URL, keys("the server does not speak TLS there", "ALTER SYSTEM SET ssl = on")},
		{"postgres: no client certificate", pg.noClientCert, rdb.URL, keys("connection requires a valid client certificate", "sslcert=")},
		{"postgres: no such file", strings.Replace(pg.good, "ca.crt", "none.crt", 1), rdb.URL, keys("its TLS settings cannot be used", "none.crt: no such file", "sslrootcert")},
		{"redis: another authority", db.URL, rd.wrongCA, keys("not signed by an authority that is trusted here", "the right authority", "ca_file=")},
		{"redis: another host", db.URL, rd.wrongHost, keys("the server's certificate is for localhost, not for 127.0.0.1", "server_name=")},
		{"redis: expired", db.URL, rd.expired, keys("the server's certificate expired at 20", "tls-cert-file")},
		{"redis: no TLS", db.URL, rd.noTLS, keys("the server does not speak TLS there", "redis://")},
		{"redis: no client certificate", db.URL, rd.noClientCert, keys("the server wants a client certificate", "cert_file=")},
		{"redis: no such file", db.URL, strings.Replace(rd.good, "ca.crt", "none.crt", 1), keys("option ca_file", "none.crt: no such file")},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := *w
			w.t = t
			w.use(c.source, c.redis)
			w.refuses(c.says...)
			if c.redis != rdb.URL {
				return
			}
			code, _, stderr := w.command("tap", "--config", w.config, "--duration", "1s")
			for _, text := range c.says {
				if code != 78 || !strings.Contains(stderr, text) {
					t.Errorf("tap: exit code %d, %q is not in %s", code, text, stderr)
				}
			}
		})
	}
	for _, c := range []struct{ name, source, redis, plainSource, plainRedis string }{
		{"verified fully", pg.good, rd.good, pg.goodPlain, rd.goodPlain},
		{"with client certificates", pg.withClientCert, rd.withClientCert, pg.clientPlain, rd.clientPlain},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorldOn(t, c.plainSource, c.plainRedis, tlsSchema, reloadMappings("k:{id}", mapsA))
			w.use(c.source, c.redis)
			p := w.start()
			w.step(p, "an update", keys("k:1"), keys("k:2"), `UPDATE a SET v = 'canary-tls' WHERE id = 1`)
			var encrypted, all int
			if err := w.conn.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
				WHERE application_name LIKE 'cdc-invalidator%'`).Scan(&encrypted, &all); err != nil {
				t.Fatal(err)
			}
			if encrypted != all || all < 3 {
				t.Errorf("%d of %d connections to Postgres are encrypted", encrypted, all)
			}
			if code, out, errOut := w.command("tap", "--config", w.config, "--duration", "100ms", "--json"); code != 0 || !strings.Contains(out, `"type":"summary"`) {
				t.Errorf("tap: exit code %d, %s, %s", code, out, errOut)
			}
			p.stop()
		})
	}
}
