package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// No command shows a password, or a part of it, whatever it is made of and wherever its URL is
// given: those that cannot be read in one way only are refused.
func TestNoCommandShowsAPassword(t *testing.T) {
	passwords := []string{
		"TOPSECRET", "x@TOPSECRET", "1/TOPSECRET", "a/b@TOPSECRET", "p#TOPSECRET", "p?TOPSECRET=1", "100%TOPSECRET", "a TOPSECRET", `it's"TOP\SECRET`,
		"1/x?user=TOPSECRET", "TOPSECRET,TOPSECRET", "[TOPSECRET]", "1:TOPSECRET", "pässwörd-TOPSECRET", "1/x?sslrootcert=TOPSECRET",
	}
	for _, p := range passwords {
		yaml := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
		sources := []string{"postgres://me:" + p + "@127.0.0.1:1/db", "postgres://me:" + p + "@127.0.0.1:1,127.0.0.1:2/db?sslmode=disable", "host=127.0.0.1 port=1 password=" + p + " dbname=db"}
		redises := []string{"redis://me:" + p + "@127.0.0.1:1/0", "redis+sentinel://:" + p + "@127.0.0.1:1/group", "rediss://me:" + p + "@127.0.0.1:1"}
		for i := range sources {
			t.Setenv("DATABASE_URL", sources[i])
			t.Setenv("REDIS_URL", redises[i])
			file := filepath.Join(t.TempDir(), "m.yaml")
			for _, urls := range [][2]string{{yaml(sources[i]), yaml(redises[i])}, {"'${DATABASE_URL}'", "'${REDIS_URL}'"}, {"postgres://me@127.0.0.1:1/db", "'${REDIS_URL}'"}} {
				text := fmt.Sprintf("version: 1\nsource: {url: %s, slot: {name: s}, publication: {name: p}}\nredis: {url: %s}\nclasses: {c: {staleness: 1s}}\n"+
					"keys: {user: {key: 'user:{id}', class: c}}\nmappings: [{table: public.users, keys: [user]}]\n", urls[0], urls[1])
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				for _, args := range [][]string{
					{"validate", file}, {"validate", "--json", file}, {"doctor", "-c", file}, {"doctor", "-c", file, "--json"}, {"doctor", "-c", file, "--print-grants"}, {"plan", "-c", file}, {"plan", "-c", file, "--url", sources[i]},
					{"apply", "-c", file, "--yes"}, {"tap", "-c", file, "--duration", "1s"}, {"init"}, {"init", "--from-db", sources[i]},
					{"status", "--url", "http://me:" + p + "@127.0.0.1:1"}, {"run", "-c", file, "--http", "127.0.0.1:0", "--log-level", "debug"},
				} {
					var out strings.Builder
					ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond) // for run, which waits for its servers
					Main(ctx, args, strings.NewReader(""), &out, &out)
					cancel()
					if strings.Contains(out.String(), "SECRET") {
						t.Errorf("%q: %s shows it:\n%s", p, args[0], out.String())
					}
				}
			}
		}
	}
}

// Arguments that are mixed up are refused without being shown, whatever is wrong in them.
func TestNoCommandShowsAnArgumentThatMayHoldAPassword(t *testing.T) {
	t.Chdir(t.TempDir())
	forms := []string{"postgres://a:%s@127.0.0.1:1/d", "a:%s@127.0.0.1/d", "postgres:/a:%s@h/d", "host=h password=%s dbname=d", "redis://:%s@127.0.0.1:1", "postgres://h/d?password=%s"}
	turn := 0
	for c := rune(' '); c <= '~'; c++ {
		for _, form := range []string{forms[int(c)%len(forms)], forms[int(c/2)%len(forms)]} {
			arg := strings.Replace(form, "%s", "TOP"+string(c)+"SECRET", 1)
			for _, args := range [][]string{
				{"run", "--config", arg}, {"run", "--config=" + arg}, {"run", arg}, {"run", "-c" + arg}, {"run", "--http", arg, "--config", "m.yaml"}, {"run", "--log-level", arg, "-c", "m.yaml"}, {"run", "--" + arg}, {"run", "-" + arg},
				{"validate", arg}, {"validate", "--json", arg}, {"test", arg}, {"doctor", "--config", arg}, {"doctor", "--password=" + arg}, {"plan", "-c", arg}, {"apply", "-c", arg}, {"tap", "-c", arg}, {"tap", "--duration", arg, "-c", "m.yaml"}, {"wait", "-c", arg},
				{"skip", "-c", arg}, {"explain", "-c", arg}, {"init", "--output", arg}, {"init", arg}, {"init", "--schema", arg}, {"status", arg}, {"status", "--timeout", arg}, {"schema", arg}, {"demo", "--duration", arg}, {arg}, {"help", arg}, {"completion", arg}, {"version", arg},
			} {
				if turn++; turn%2 == 0 {
					continue // every other one is enough
				}
				var out strings.Builder
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				code := Main(ctx, args, strings.NewReader(""), &out, &out)
				cancel()
				if shown := out.String(); strings.Contains(shown, "SECRET") || strings.Contains(shown, "TOP") {
					t.Errorf("%q: shows it (exit code %d):\n%s", args, code, shown)
				}
			}
		}
	}
}
