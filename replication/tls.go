package replication

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/internal/tlsfault"
)

// urlError is for a source.url that the client library cannot use. The library's
// own text shows the URL with what it takes for the password cut out, and in a
// malformed URL it may take the wrong part: only what cannot hold it is shown.
func urlError(op string, err error) error {
	problem := "source.url cannot be read"
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		if cause := errors.Unwrap(parse); cause != nil && strings.Contains(parse.Error(), "failed to configure TLS") {
			// About files and modes; the URL is not in it.
			return &ConfigError{Op: op, Problem: "source.url: its TLS settings cannot be used", Err: cause,
				Fix: "see sslmode, sslrootcert, sslcert and sslkey in source.url: the files must be there and readable by the daemon's user"}
		}
	}
	return &ConfigError{Op: op, Problem: problem,
		Fix: "use the form postgres://user:password@host:5432/database?sslmode=verify-full\n" +
			"/ @ : ? # % in a password are written as %2F %40 %3A %3F %23 %25"}
}

// CheckURL says what is wrong with source.url, the files that it names included; it asks
// no server.
func CheckURL(url string) error {
	if _, err := pgconn.ParseConfig(url); err != nil {
		return urlError("connect to the source", err)
	}
	return nil
}

// SameServer says whether two URLs differ in nothing but who we are and how we prove
// it: user, password, certificates.
func SameServer(a, b string) bool {
	x, err1 := pgconn.ParseConfig(a)
	y, err2 := pgconn.ParseConfig(b)
	if err1 != nil || err2 != nil || x.Database != y.Database || !sameHost(x.Host, x.Port, y.Host, y.Port) {
		return false
	}
	return slices.EqualFunc(x.Fallbacks, y.Fallbacks, func(f, g *pgconn.FallbackConfig) bool {
		return sameHost(f.Host, f.Port, g.Host, g.Port)
	})
}

func sameHost(host1 string, port1 uint16, host2 string, port2 uint16) bool {
	return host1 == host2 && port1 == port2
}

// RefusesLogin says that the server does not take the user or the password.
func RefusesLogin(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "28P01" || pg.Code == "28000")
}

// tlsError says what a failed TLS handshake asks for; nil when err is none.
func tlsError(op string, err error) error {
	fault, ok := tlsfault.Find(err)
	if !ok && err != nil && strings.Contains(err.Error(), "server refused TLS connection") { // the library gives it no type
		fault, ok = tlsfault.Fault{Kind: tlsfault.NoTLS, Problem: "the server does not speak TLS there"}, true
	}
	if !ok {
		return nil
	}
	return &ConfigError{Op: op, Problem: fault.Problem, Err: err, Fix: tlsFix(fault.Kind)}
}

func tlsFix(k tlsfault.Kind) string {
	switch k {
	case tlsfault.UnknownAuthority:
		return "name the authority's certificate in source.url: sslrootcert=/path/to/ca.pem\n" +
			"(the one that signed the server's certificate; a managed service offers its own for download)"
	case tlsfault.WrongName:
		return "use in source.url a host that the certificate is for, or give the server a certificate for this one\n" +
			"(sslmode=verify-ca checks the authority and not the host)"
	case tlsfault.Expired:
		return "give the server a certificate that is valid now (ssl_cert_file; SELECT pg_reload_conf();), and see that the clocks are right"
	case tlsfault.NoTLS:
		return "ALTER SYSTEM SET ssl = on;  -- with ssl_cert_file and ssl_key_file, then SELECT pg_reload_conf();\n" +
			"or, on a network that nobody else can read, sslmode=disable in source.url"
	case tlsfault.ClientCertificate:
		return "name a certificate that the server takes, and its key, in source.url: sslcert=/path/to/client.crt&sslkey=/path/to/client.key"
	}
	return fmt.Sprintf("see the TLS settings of both sides (%d)", k)
}
