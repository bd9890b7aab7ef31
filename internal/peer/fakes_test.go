package peer

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

// fakes are how servers of other protocols begin: what they say first, and what to anything.
var fakes = map[Protocol]struct{ greeting, answer string }{
	SSH:       {"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "Invalid SSH identification string.\r\n"},
	SMTP:      {"220 mail.example.com ESMTP Postfix\r\n", "500 5.5.2 Error: bad syntax\r\n"},
	FTP:       {"220 ProFTPD Server (Debian) [::ffff:10.0.0.1] FTP\r\n", "500 Invalid command\r\n"},
	POP3:      {"+OK Dovecot ready.\r\n", "-ERR Unknown command.\r\n"},
	IMAP:      {"* OK [CAPABILITY IMAP4rev1] Dovecot ready.\r\n", "* BAD Error in IMAP command\r\n"},
	MySQL:     {"\x4a\x00\x00\x00\x0a8.0.36\x00\x08\x00\x00\x00abcdefgh\x00\xff\xff\xff\x02\x00\xff\xdf\x15" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00abcdefghijkl\x00mysql_native_password\x00", ""},
	Memcached: {"", "ERROR\r\n"},
	HTTP:      {"", "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request"},
	Redis:     {"", "-NOAUTH Authentication required.\r\n"},
}

func speaking(greeting, answer string) func(net.Conn) {
	return func(c net.Conn) {
		defer c.Close()
		_, _ = io.WriteString(c, greeting)
		if _, err := c.Read(make([]byte, 1000)); err == nil && answer != "" {
			_, _ = io.WriteString(c, answer)
		}
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, _ = c.Read(make([]byte, 1000))
	}
}

func TestIdentifyOtherProtocols(t *testing.T) {
	for want, f := range fakes {
		t.Run(string(want), func(t *testing.T) {
			t.Parallel()
			if got := Identify(t.Context(), "tcp", listener(t, speaking(f.greeting, f.answer))); got.Protocol != want {
				t.Errorf("%+v, want %q", got, want)
			}
		})
	}
}

// One byte is nothing to go by: each of these begins like one that is known.
func TestIdentifyTakesNoByteForAProtocol(t *testing.T) {
	for _, answer := range []string{"S", "N", "E\x00", "-", "+", "<", "-x\r\n", "+x\r\n", "\x15\x00", "Some text", "No", "ERR", "E\x00\x00\x00", "220 hello\r\n", "\x00\x00\x00\x00\n", "S\x16\x03"} {
		t.Run(answer, func(t *testing.T) {
			t.Parallel()
			if got := Identify(t.Context(), "tcp", listener(t, speaking("", answer))); got.Protocol != Unknown || got.Said == "" {
				t.Errorf("%q: %+v", answer, got)
			}
		})
	}
}

func TestNoAnswerOfRandomBytesIsKnown(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	for range 100_000 {
		text := make([]byte, random.IntN(24))
		for i := range text {
			text[i] = byte(random.IntN(256))
		}
		if p := ofGreeting(text); p != Unknown {
			t.Fatalf("seed %d: %q is taken for %s", seed, text, p)
		}
	}
}

func TestWhatIsShownOfAnAnswer(t *testing.T) {
	for said, want := range map[string]string{"": "", "hello\r\n\x1b[31m": `"hello\r\n\x1b[31m"`, "go to postgres://u:hunter2@h": "an answer of 28 bytes that is not shown"} {
		if got := shown([]byte(said)); got != want {
			t.Errorf("%q: %s, want %s", said, got, want)
		}
	}
	if got := shown(bytes.Repeat([]byte{0}, 4000)); len(got) > 200 {
		t.Errorf("%d characters", len(got))
	}
}
