package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A server of another protocol behind a URL is named, by run, which ends with 78, and by
// doctor. What nobody recognises is waited for, and run never ends with 69.
func TestServersOfOtherProtocols(t *testing.T) {
	for name, tc := range map[string]struct{ greeting, answer, want string }{
		"SSH":       {"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "Invalid SSH identification string.\r\n", "speaks SSH"},
		"SMTP":      {"220 mail.example.com ESMTP Postfix\r\n", "500 5.5.2 Error: bad syntax\r\n", "speaks SMTP"},
		"POP3":      {"+OK Dovecot ready.\r\n", "-ERR Unknown command.\r\n", "speaks POP3"},
		"MySQL":     {"\x0d\x00\x00\x00\x0a8.0.36\x00\x08\x00\x00\x00a", "", "speaks MySQL"},
		"memcached": {"", "ERROR\r\n", "speaks memcached"},
		"HTTP":      {"", "HTTP/1.1 400 Bad Request\r\n\r\n", "speaks HTTP"},
		"S":         {"", "Something", `it said "Something"`},
		"random":    {"", "\x00\xff\x13\x37 N+-E", `it said "\x00\xff\x137 N+-E"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := fakeServer(t, tc.greeting, tc.answer)
			file := filepath.Join(t.TempDir(), "m.yaml")
			for _, urls := range [][2]string{{"postgres://me@" + addr + "/db", "redis://127.0.0.1:1"}, {"postgres://me@127.0.0.1:1/db", "redis://" + addr}} {
				text := fmt.Sprintf("version: 1\nsource: {url: '%s', slot: {name: s}, publication: {name: p}}\nredis: {url: '%s'}\nclasses: {c: {staleness: 1s}}\n"+
					"keys: {user: {key: 'user:{id}', class: c}}\nmappings: [{table: public.users, keys: [user]}]\n", urls[0], urls[1])
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				var report strings.Builder
				code := Main(t.Context(), []string{"doctor", "-c", file}, strings.NewReader(""), &report, &report)
				if !strings.Contains(report.String(), tc.want) || code != exitUnavailable { // the other server is not there
					t.Errorf("doctor, %v: exit code %d, want %q in\n%s", urls, code, tc.want, report.String())
				}
				if strings.HasPrefix(tc.want, "speaks") != strings.Contains(report.String(), "fatal") {
					t.Errorf("doctor, %v:\n%s", urls, report.String())
				}
				if !strings.Contains(urls[0], addr) {
					continue // the source comes first, and is not there
				}
				ctx, cancel := context.WithCancel(t.Context())
				log := &waitFor{text: tc.want, found: cancel}
				if strings.HasPrefix(tc.want, "speaks") {
					log.found = func() {} // it ends by itself
				}
				code = Main(ctx, []string{"run", "-c", file, "--http", "off"}, strings.NewReader(""), log, log)
				cancel()
				want := exitConfig
				if !strings.HasPrefix(tc.want, "speaks") {
					want = exitOK // it goes on until it is told to stop
				}
				if code != want || !strings.Contains(log.String(), tc.want) {
					t.Errorf("run: exit code %d, want %d and %q in\n%s", code, want, tc.want, log.String())
				}
			}
		})
	}
}

// waitFor is a log that says when a text has come.
type waitFor struct {
	strings.Builder
	text  string
	found func()
}

func (w *waitFor) Write(p []byte) (int, error) {
	n, err := w.Builder.Write(p)
	if strings.Contains(w.String(), w.text) {
		w.found()
	}
	return n, err
}

// String is without the escapes of the log.
func (w *waitFor) String() string {
	return strings.ReplaceAll(strings.ReplaceAll(w.Builder.String(), `\\`, `\`), `\"`, `"`)
}

func fakeServer(t *testing.T, greeting, answer string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, greeting)
				if _, err := c.Read(make([]byte, 1000)); err == nil && answer != "" {
					_, _ = io.WriteString(c, answer)
				}
				_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				_, _ = c.Read(make([]byte, 1000))
			}()
		}
	}()
	return l.Addr().String()
}
