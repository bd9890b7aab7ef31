package replication

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// What source.url asks for, and a server that is there cannot give, is mended by a person.
func TestSettingsOfTheURLThatTheServerCannotMeet(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	for query, want := range map[string]string{
		"replication=database":                  "remove replication=",
		"replication=true":                      "remove replication=",
		"replication=1":                         "remove replication=",
		"channel_binding=require":               "does not meet",
		"require_auth=gss":                      "does not meet",
		"min_protocol_version=3.2":              "does not meet",
		"sslnegotiation=direct&sslmode=require": "sslnegotiation=direct",
	} {
		t.Run(query, func(t *testing.T) {
			u, err := url.Parse(server.URL())
			if err != nil {
				t.Fatal(err)
			}
			u.RawQuery = query
			conn, err := ConnectControl(t.Context(), u.String(), "test")
			if err == nil {
				CloseControl(t.Context(), conn)
				t.Fatal("it connects")
			}
			var config *ConfigError
			if !errors.As(err, &config) || config.Fix == "" || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "%!") {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}

// The cause is named, and not another one.
func TestWhyAURLCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	if err := errors.Join(os.WriteFile(good, []byte("[here]\nhost=h\n"), 0o600), os.WriteFile(bad, []byte("[here]\nhost\nTOPSECRET\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for u, want := range map[string]string{
		"postgres://me@h:99999/db":                                             "has a port",
		"postgres://me@h:abc/db":                                               "has a port",
		"postgres://me@h/db?connect_timeout=abc":                               "connect_timeout",
		"postgres://me@::1:5432/db":                                            "in brackets",
		"host=h port=x dbname=db":                                              "has a port",
		"postgres:///?service=nosuch&servicefile=" + good:                      "names a service that",
		"service=nosuch servicefile=" + good:                                   "names a service that",
		"postgres:///?service=here&servicefile=" + bad:                         "service file cannot be read",
		"postgres:///?service=here&servicefile=" + dir + "/none":               "it is not there, not readable",
		"postgres://me@h/db?channel_binding=x":                                 "channel_binding",
		"postgres://me@h/db?require_auth=x":                                    "require_auth",
		"postgres://me@h/db?min_protocol_version=3.2&max_protocol_version=3.0": "protocol_version",
		"postgres://me@h/db?sslnegotiation=x":                                  "sslnegotiation",
		"host=h port=1,2,3":                                                    "number of ports",
	} {
		err := CheckURL(u)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "source.url cannot be read") || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: %v, want %q", u, err, want)
		}
	}
}
