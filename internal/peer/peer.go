// Package peer finds out what answers at an address where a connection did not come
// about: a server of another protocol, as behind a wrong port, leaves nothing but a time-out
// or an odd byte, from which nobody can tell what to correct.
package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"
)

// Protocol is what a server speaks.
type Protocol string

// The protocols. Unknown is a server that says nothing that we know, or nothing at all,
// and one that cannot be reached.
const (
	Unknown   Protocol = ""
	Postgres  Protocol = "Postgres"
	Redis     Protocol = "Redis"
	HTTP      Protocol = "HTTP"
	TLS       Protocol = "TLS"
	SSH       Protocol = "SSH"
	MySQL     Protocol = "MySQL"
	SMTP      Protocol = "SMTP"
	FTP       Protocol = "FTP"
	POP3      Protocol = "POP3"
	IMAP      Protocol = "IMAP"
	Memcached Protocol = "memcached"
)

// Answer is what was found out.
type Answer struct {
	Protocol Protocol
	// Said is how the server's answer begins where it is Unknown, fit to be shown.
	Said string
}

// patience bounds each question; manners is how long a server may take to speak first, which
// those of some protocols do.
const (
	patience = 700 * time.Millisecond
	manners  = 250 * time.Millisecond
)

// How a client of Postgres asks for TLS and for GSSAPI, before it says who it is. A server
// answers with one letter each time whatever its settings are, and logs nothing.
var (
	sslRequest = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}
	gssRequest = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30}
)

// Identify asks the server, without logging in.
func Identify(ctx context.Context, network, addr string) Answer {
	// The caller's time may be over: that is how it was found out that something is wrong.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 6*patience)
	defer cancel()
	p := &prober{ctx: ctx, network: network, addr: addr}
	// Each question on a connection of its own: a Redis reads a line up to the first zero
	// byte, and waits for the rest for ever.
	for _, look := range []func() Protocol{p.greeting, p.postgres, p.line, p.tls} {
		if found := look(); found != Unknown {
			return Answer{Protocol: found}
		}
		if p.gone {
			break
		}
	}
	return Answer{Said: shown(p.said)}
}

type prober struct {
	ctx           context.Context
	network, addr string
	gone          bool   // nobody is there
	said          []byte // the first answer to anything
}

func (p *prober) dial() net.Conn {
	conn, err := (&net.Dialer{Timeout: patience}).DialContext(p.ctx, p.network, p.addr)
	if err != nil {
		p.gone = true
		return nil
	}
	return conn
}

// ask returns how the answer begins; no answer is one too.
func (p *prober) ask(conn net.Conn, question []byte, wait time.Duration) []byte {
	if conn.SetDeadline(time.Now().Add(wait)) != nil {
		return nil
	}
	if len(question) > 0 {
		if _, err := conn.Write(question); err != nil {
			return nil
		}
	}
	answer := make([]byte, 256)
	n, _ := conn.Read(answer)
	if p.said == nil && n > 0 {
		p.said = answer[:n]
	}
	return answer[:n]
}

// greeting waits for a server that speaks first.
func (p *prober) greeting() Protocol {
	conn := p.dial()
	if conn == nil {
		return Unknown
	}
	defer conn.Close()
	return ofGreeting(p.ask(conn, nil, manners))
}

// postgres asks twice: one byte is soon said, also by what is no Postgres.
func (p *prober) postgres() Protocol {
	conn := p.dial()
	if conn == nil {
		return Unknown
	}
	defer conn.Close()
	switch first := p.ask(conn, sslRequest, patience); {
	case isErrorMessage(first):
		return Postgres
	case string(first) == "S":
		if p.handshake(conn) {
			return Postgres
		}
	case string(first) == "N":
		second := p.ask(conn, gssRequest, patience)
		if string(second) == "N" || string(second) == "G" || isErrorMessage(second) {
			return Postgres
		}
	default:
		return ofAnswer(first)
	}
	return Unknown
}

// line asks in the way of protocols that consist of lines.
func (p *prober) line() Protocol {
	conn := p.dial()
	if conn == nil {
		return Unknown
	}
	defer conn.Close()
	return ofAnswer(p.ask(conn, []byte("PING\r\n\r\n"), patience))
}

func (p *prober) tls() Protocol {
	conn := p.dial()
	if conn == nil {
		return Unknown
	}
	defer conn.Close()
	if p.handshake(conn) {
		return TLS
	}
	return Unknown
}

// handshake says whether the other side speaks TLS. It believes any certificate: nothing is
// told on the connection. A server that refuses it in the terms of TLS speaks it too.
func (p *prober) handshake(conn net.Conn) bool {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if conn.SetDeadline(time.Now().Add(patience)) != nil {
		return false
	}
	err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx) //nolint:gosec // see above
	var remote *net.OpError
	return err == nil || errors.As(err, &remote) && remote.Op == "remote error"
}
