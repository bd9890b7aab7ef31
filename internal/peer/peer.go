// Package peer finds out what answers at an address where a connection did not come
// about: a server of another protocol, as behind a wrong port, leaves nothing but a time-out
// or an odd byte, from which nobody can tell what to correct.
package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"time"
)

// Protocol is what a server speaks.
type Protocol string

// The protocols. Unknown is a server that says nothing that we know, or nothing at all,
// and one that cannot be reached.
const (
	Unknown  Protocol = ""
	Postgres Protocol = "Postgres"
	Redis    Protocol = "Redis"
	HTTP     Protocol = "HTTP"
	TLS      Protocol = "TLS"
)

// patience bounds each question.
const patience = 700 * time.Millisecond

// sslRequest is how a client of Postgres asks for TLS. No other protocol begins like it, and
// a Postgres answers with one letter whatever its settings are.
var sslRequest = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}

// Identify asks the server, without logging in.
func Identify(ctx context.Context, network, addr string) Protocol {
	// The caller's time may be over: that is how it was found out that something is wrong.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*patience)
	defer cancel()
	d := &net.Dialer{Timeout: patience}
	// Each on a connection of its own: a Redis reads a line up to the first zero byte, and
	// waits for the rest for ever.
	for _, question := range [][]byte{sslRequest, []byte("PING\r\n\r\n")} {
		conn, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return Unknown
		}
		p := of(ask(conn, question))
		_ = conn.Close() // nothing was written that anybody waits for
		if p != Unknown {
			return p
		}
	}
	if speaksTLS(ctx, d, network, addr) {
		return TLS
	}
	return Unknown
}

// ask returns how the answer begins.
func ask(conn net.Conn, question []byte) []byte {
	if conn.SetDeadline(time.Now().Add(patience)) != nil {
		return nil
	}
	if _, err := conn.Write(question); err != nil {
		return nil
	}
	answer := make([]byte, 8)
	n, _ := conn.Read(answer) // no answer is one too
	return answer[:n]
}

func of(answer []byte) Protocol {
	const alert = 0x15
	switch text := string(answer); {
	case text == "":
		return Unknown
	case text == "S", text == "N", answer[0] == 'E' && len(answer) > 1 && answer[1] == 0: // an error message's length follows
		return Postgres
	case strings.HasPrefix(text, "-"), strings.HasPrefix(text, "+"):
		return Redis
	case strings.HasPrefix(text, "HTTP/"), strings.HasPrefix(text, "<"): // the oldest HTTP has no head
		return HTTP
	case answer[0] == alert:
		return TLS
	}
	return Unknown
}

// speaksTLS offers a handshake, and believes any certificate: nothing is told on the
// connection. A server that refuses it in the terms of TLS speaks it too.
func speaksTLS(ctx context.Context, d *net.Dialer, network, addr string) bool {
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx) //nolint:gosec // see above
	var remote *net.OpError
	return err == nil || errors.As(err, &remote) && remote.Op == "remote error"
}
