package replication

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/internal/tlsfault"
)

// RefusesLogin says that the server does not take the user or the password.
func RefusesLogin(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "28P01" || pg.Code == "28000")
}

// tlsError says what a failed TLS handshake asks for; nil when err is none.
func tlsError(op string, err error) error {
	fault, ok := tlsfault.Find(err)
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
