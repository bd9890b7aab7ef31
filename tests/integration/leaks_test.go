package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// secrets are what must be in nothing that the program prints or serves: passwords,
// which are random and long, anywhere; keys and values of rows as words of their own,
// since a test's "7" or "a@x" is a part of much else.
type secrets struct {
	mu    sync.Mutex
	texts map[string]string // what it is, for the message
	words map[string]bool
}

func newSecrets(urls ...string) *secrets {
	s := &secrets{texts: map[string]string{}, words: map[string]bool{}}
	for _, u := range urls {
		s.addURL(u)
	}
	return s
}

// addURL adds a URL's password.
func (s *secrets) addURL(text string) {
	u, err := url.Parse(text)
	if err != nil {
		return
	}
	if password, ok := u.User.Password(); ok && len(password) >= 8 {
		s.addText(password, "the password in "+u.Redacted())
		s.addText(url.QueryEscape(password), "the password in "+u.Redacted())
	}
}

func (s *secrets) addText(text, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.texts[text] = what
}

// addKeys adds keys of the cache. Those without a colon are words like others.
func (s *secrets) addKeys(keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		if k = trimWord(k); strings.Contains(k, ":") {
			s.words[k] = true
		}
	}
}

// address is a literal that only a row has, in a statement that writes rows; canary is
// one that is made to be found.
var (
	writes  = regexp.MustCompile(`(?i)\b(insert|update|copy)\b`)
	address = regexp.MustCompile(`'([^']*@[^']*)'`)
	canary  = regexp.MustCompile(`canary[0-9A-Za-z-]*`)
)

// addValues adds the values in a statement that can be told from other words.
func (s *secrets) addValues(sql string) {
	if !writes.MatchString(sql) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range address.FindAllStringSubmatch(sql, -1) {
		if w := trimWord(m[1]); len(w) > 2 {
			s.words[w] = true
		}
	}
	for _, m := range canary.FindAllString(sql, -1) {
		s.texts[m] = "the row value " + m
	}
}

var between = regexp.MustCompile("[\\s\"'`,=()<>|;]+")

func trimWord(w string) string { return strings.Trim(w, `.:\`) }

// leaks lists what of the secrets is in a text, each with the line.
func (s *secrets) leaks(text string) (found []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for secret, what := range s.texts {
		if i := strings.Index(text, secret); i >= 0 {
			found = append(found, what+": "+lineAt(text, i))
		}
	}
	for line := range strings.Lines(text) {
		for _, w := range between.Split(line, -1) {
			if w = trimWord(w); s.words[w] || strings.HasSuffix(w, "@x") {
				found = append(found, "the key or value "+w+": "+strings.TrimSpace(line))
			}
		}
	}
	return found
}

func lineAt(text string, i int) string {
	start := strings.LastIndexByte(text[:i], '\n') + 1
	end := strings.IndexByte(text[i:], '\n')
	if end < 0 {
		return text[start:]
	}
	return text[start : i+end]
}

// mustNotLeak fails the test when there is a secret in an output.
func (w *world) mustNotLeak(of, text string) {
	w.t.Helper()
	const most = 5
	for i, l := range w.secrets.leaks(text) {
		if i == most {
			w.t.Errorf("%s shows more of them", of)
			return
		}
		w.t.Errorf("%s shows %s", of, l)
	}
}

var served = regexp.MustCompile(`serving status pages.* address="?([0-9.]+:[0-9]+)`)

// address is where the daemon serves its pages; "" when it has not begun.
func (p *process) address() string {
	if m := served.FindStringSubmatch(p.log.String()); m != nil {
		return m[1]
	}
	return ""
}

// pages are all that the daemon serves.
var pages = []string{"/", "/livez", "/readyz", "/healthz", "/status", "/metrics"}

// collect fetches every page as it is now, if the daemon serves any.
func (p *process) collect() {
	at := p.address()
	if at == "" || p.ended() {
		return
	}
	// A daemon that a test has stopped (SIGSTOP) answers nothing.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}
	for _, page := range pages {
		response, err := client.Get("http://" + at + page)
		if err != nil {
			return
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err == nil {
			fmt.Fprintf(&p.pages, "%s\n%s\n", page, body)
		}
	}
}

// checkLeaks looks at all that the daemon has printed and served.
func (p *process) checkLeaks() {
	p.w.t.Helper()
	p.w.mustNotLeak("the daemon's output", p.log.String())
	p.w.mustNotLeak("a page of the daemon", p.pages.String())
}

// command runs one of the other commands with the world's file, and looks at what it
// prints as at a daemon's output.
func (w *world) command(args ...string) (code int, stdout, stderr string) {
	w.t.Helper()
	path, err := binary()
	if err != nil {
		w.t.Fatal(err)
	}
	var out, errOut lockedBuffer
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Env = os.Environ()
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		w.t.Fatal(err)
	}
	w.mustNotLeak(strings.Join(args[:1], " "), out.String())
	w.mustNotLeak(strings.Join(args[:1], " "), errOut.String())
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// The search itself: what it has to find, and what it must not.
func TestLeaksAreFound(t *testing.T) {
	s := newSecrets("postgres://u:long-pass%2Fword@h/db", "redis://h")
	s.addKeys("t:7:user:1", "all")
	s.addValues(`INSERT INTO users VALUES (1, 'canary-1234'), (2, 'some one@example.org'), (3, 'b@y')`)
	s.addValues(`SELECT 'c@y'`)
	for text, want := range map[string]int{
		"connect to postgres://u:long-pass/word@h":      1,
		"connect to postgres://u:long-pass%2Fword@h":    1,
		`level=info key="t:7:user:1"`:                   1,
		`unlink t:7:user:1: refused`:                    1,
		`{"reason": "key t:7:user:1."}`:                 1,
		"t:7:user:12 t:7:user all":                      0,
		"value is canary-1234!":                         1,
		"b@y":                                           1,
		"reader of 1@x, (b@y)":                          2,
		"c@y and example.org":                           0,
		"postgres://u:xxxxx@h/db listens on h:5432 all": 0,
	} {
		if got := s.leaks(text); len(got) != want {
			t.Errorf("%s: %q, want %d", text, got, want)
		}
	}
}
