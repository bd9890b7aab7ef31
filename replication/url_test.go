package replication

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// FuzzPasswordInURL: whatever a password is made of, and however it was put into the URL, no
// text of an error shows it, nor any longer part of it. Where it is taken, it is taken whole.
func FuzzPasswordInURL(f *testing.F) {
	for _, p := range passwords {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, password string) {
		if len(password) < 8 || strings.ContainsRune(password, 0) {
			t.Skip("too short to be told from other text")
		}
		encoded := url.UserPassword("me", password).String()
		quoted := "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(password) + "'"
		for form, c := range map[string]struct {
			url   string
			exact bool
		}{
			"URL":                    {"postgres://me:" + password + "@127.0.0.1:1/db", false},
			"URL, several hosts":     {"postgres://me:" + password + "@127.0.0.1:1,127.0.0.1:2/db?sslmode=require", false},
			"URL, encoded":           {"postgres://" + encoded + "@127.0.0.1:1/db", true},
			"URL, as a parameter":    {"postgres://me@127.0.0.1:1/db?password=" + password, false},
			"keywords":               {"host=127.0.0.1 port=1 user=me password=" + password + " dbname=db", false},
			"keywords, quoted":       {"host=127.0.0.1 port=1 user=me password=" + quoted + " dbname=db", true},
			"keywords, badly quoted": {"host=127.0.0.1 port=1 user=me password='" + password + "' dbname=db", false},
		} {
			cfg, err := parseURL("connect", c.url)
			switch {
			case err != nil:
				if c.exact {
					t.Errorf("%s: refused: %v", form, err)
				}
				wantConfigFault(t, form, err)
			case c.exact && cfg.Password != password:
				t.Errorf("%s: another password is used", form)
			default:
				// As it fails later: with each of the texts in which a host or a database is named.
				dial := &pgconn.PgError{Severity: "FATAL", Code: "3D000", Message: `database "` + cfg.Database + `" does not exist`}
				err = connectError(t.Context(), "connect", cfg, errors.Join(errors.New("lookup "+cfg.Host+": no such host"), dial), "")
			}
			wantNothingOf(t, form, password, err)
		}
	})
}

var passwords = []string{
	"TOPSECRET-plain", "x@TOPSECRET", "TOPSECRET@127.0.0.1", "1/TOPSECRET", "a/b@TOPSECRET", "p#TOPSECRET", "p?TOPSECRET=1&x", "100%TOPSECRET", "%zzTOPSECRET",
	"a TOPSECRET b", "a host=TOPSECRET", "a' host='TOPSECRET", `it's"TOP\SECRET`, `\'TOPSECRET`, "TOPSECRET,TOPSECRET", "[TOPSECRET", "TOPSECRET]:5432", "pässwörd-TOPSECRET",
	"1:2:TOPSECRET", "1?x=TOPSECRET", "1/x?y=@TOPSECRET", "a&TOPSECRET=b", "a\nTOPSECRET\t", "%40TOPSECRET", "1/db?target_session_attrs=TOPSECRET@", "1/x?user=TOPSECRET", "1/x?password=TOPSECRET",
}

func wantConfigFault(t *testing.T, form string, err error) {
	t.Helper()
	var config *ConfigError
	if !errors.As(err, &config) || config.Fix == "" {
		t.Errorf("%s: %v", form, err)
	}
}

// wantNothingOf looks for every part of the password of eight bytes.
func wantNothingOf(t *testing.T, form, password string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	const part = 8
	text := err.Error()
	known := encodingFix + "127.0.0.1:1,127.0.0.1:2 percent-encode source.url postgres://me@ target_session_attrs=read-write standby prefer-standby " +
		"database does not exist correct the database name lookup no such host SQLSTATE"
	for i := 0; i+part <= len(password); i++ {
		if p := password[i : i+part]; strings.Contains(text, p) && !strings.Contains(known, p) {
			t.Errorf("%s: %q of the password is in %q", form, p, text)
			return
		}
	}
}

func TestConnectErrorsBeginWithTheReason(t *testing.T) {
	cfg, err := parseURL("x", "postgres://me@127.0.0.1:1/db")
	if err != nil {
		t.Fatal(err)
	}
	_, err = pgconn.ConnectConfig(t.Context(), cfg)
	err = connectError(t.Context(), "connect to the source", cfg, err, "")
	var away *UnavailableError
	if !errors.As(err, &away) || !strings.HasPrefix(err.Error(), "connect to the source: dial tcp 127.0.0.1:1: connect: connection refused (is Postgres running") {
		t.Errorf("%v", err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = pgconn.ConnectConfig(canceled, cfg)
	if err = connectError(canceled, "connect", cfg, err, ""); !errors.Is(err, context.Canceled) || errors.As(err, &away) {
		t.Errorf("%v", err)
	}
}
