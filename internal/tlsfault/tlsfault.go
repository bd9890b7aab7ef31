// Package tlsfault says what is wrong when a TLS connection does not come about:
// the libraries' errors name the check that failed, and not what a person can do.
package tlsfault

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Kind is what has to be mended, and with it where.
type Kind uint8

// The kinds of fault.
const (
	UnknownAuthority  Kind = iota + 1 // the client does not trust who signed the server's certificate
	WrongName                         // the certificate is for another host
	Expired                           // the certificate's time is over, or has not begun
	NoTLS                             // the server does not speak TLS there
	ClientCertificate                 // the server wants a certificate of the client, or another one
)

// Fault is one of them. Its Problem names hosts, issuers and times, which are no
// secrets.
type Fault struct {
	Kind    Kind
	Problem string
}

// ErrNoTLS is for a dialer that has found out by itself that the server does not
// speak TLS.
var ErrNoTLS = errors.New("the server answers without TLS")

// Find looks for a fault in an error's chain.
func Find(err error) (Fault, bool) {
	var (
		authority x509.UnknownAuthorityError
		roots     x509.SystemRootsError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		remote    *net.OpError
	)
	switch {
	case err == nil:
		return Fault{}, false
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return Fault{Expired, validity(invalid.Cert)}, true
	case errors.As(err, &name):
		return Fault{WrongName, "the server's certificate is for " + names(name.Certificate) + ", not for " + name.Host}, true
	case errors.As(err, &authority):
		return Fault{UnknownAuthority, "the server's certificate is not signed by an authority that is trusted here" + issuer(authority.Cert)}, true
	case errors.As(err, &roots):
		return Fault{UnknownAuthority, "this system has no list of trusted authorities"}, true
	case errors.Is(err, ErrNoTLS), errors.As(err, &record):
		return Fault{NoTLS, "the server does not speak TLS there"}, true
	case errors.As(err, &remote) && remote.Op == "remote error" && remote.Err != nil:
		return fromAlert(remote.Err)
	}
	return Fault{}, false
}

// validity says on which side of the certificate's time we are.
func validity(cert *x509.Certificate) string {
	if cert == nil {
		return "the server's certificate is not valid at this time"
	}
	if now := time.Now(); now.Before(cert.NotBefore) {
		return fmt.Sprintf("the server's certificate is not valid before %s, and the clock here says %s", at(cert.NotBefore), at(now))
	}
	return "the server's certificate expired at " + at(cert.NotAfter)
}

func at(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// names lists for which hosts a certificate is.
func names(cert *x509.Certificate) string {
	if cert == nil {
		return "another host"
	}
	all := append([]string{}, cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		all = append(all, net.IP.String(ip))
	}
	if len(all) == 0 {
		return "no host at all (it has no subject alternative name)"
	}
	const most = 5
	if len(all) > most {
		all = append(all[:most], fmt.Sprintf("and %d more", len(all)-most))
	}
	return strings.Join(all, ", ")
}

func issuer(cert *x509.Certificate) string {
	if cert == nil {
		return ""
	}
	return fmt.Sprintf(" (it was issued by %q)", cert.Issuer.String())
}

// The alerts with which a server refuses the client's certificate, or its lack
// (RFC 8446, section 6.2).
var clientAlerts = map[tls.AlertError]string{
	42:  "the server refuses the client certificate: it is damaged or of the wrong kind",
	43:  "the server refuses the client certificate: its kind is not supported",
	44:  "the server refuses the client certificate: it is revoked",
	45:  "the server refuses the client certificate: it has expired",
	46:  "the server refuses the client certificate",
	48:  "the server does not trust the authority that signed the client certificate",
	116: "the server wants a client certificate",
}

// fromAlert recognises the peer's alert. The library has no exported type for it, but
// one whose values have the same texts.
func fromAlert(err error) (Fault, bool) {
	for alert, problem := range clientAlerts {
		if err.Error() == alert.Error() {
			return Fault{ClientCertificate, problem}, true
		}
	}
	return Fault{}, false
}
