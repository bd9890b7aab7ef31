package replication

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// CheckURL says what is wrong with source.url, the files that it names included; it asks
// no server.
func CheckURL(url string) error {
	_, err := parseURL("connect to the source", url)
	return err
}

// Account is the role and the database that a URL names.
func Account(url string) (role, database string, err error) {
	cfg, err := parseURL("read the account", url)
	if err != nil {
		return "", "", err
	}
	return cfg.User, cfg.Database, nil
}

// parseURL reads source.url. A URL that may be read in two ways, as after a character of the
// password that has a meaning in URLs, is refused: the library would take one of them, and
// the rest of the password for a host or a database, which go into errors and logs. For
// the same reason no error here shows anything of it.
func parseURL(op, url string) (*pgconn.Config, error) {
	const op1 = "read source.url"
	refused := func(problem, fix string) error {
		return &ConfigError{Op: op1, Problem: "source.url " + problem, Fix: fix}
	}
	settings, err := connSettings(url)
	if err != nil {
		return nil, refused(err.Error(), encodingFix)
	}
	if _, ok := settings["replication"]; ok {
		return nil, refused("has the setting replication, which the daemon sets by itself, on one of its connections", "remove replication=... from source.url")
	}
	attrs := settings["target_session_attrs"]
	if attrs == "" {
		attrs = os.Getenv("PGTARGETSESSIONATTRS")
	}
	switch attrs {
	case "standby", "prefer-standby", "read-only":
		return nil, refused("asks for a standby (target_session_attrs="+attrs+"), and the changes of a standby's tables cannot be followed safely",
			"write target_session_attrs=read-write (or primary), so that of several hosts the primary is taken")
	case "", "any", "read-write", "primary":
	default: // it may be anything, a part of a password too
		return nil, refused("has a target_session_attrs that there is not", "write target_session_attrs=read-write, primary or any")
	}
	switch settings["sslnegotiation"] {
	case "", "postgres", "direct":
	default:
		return nil, refused("has an sslnegotiation that there is not", "write sslnegotiation=postgres or direct")
	}
	cfg, err := pgconn.ParseConfig(url)
	if err != nil {
		return nil, urlError(op, err)
	}
	hosts := []string{cfg.Host}
	for _, f := range cfg.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	for _, host := range hosts {
		if !plausibleHost(host) {
			return nil, refused("names a host with a character that no host has (is there an @ : / ? or # in the password?)", encodingFix)
		}
	}
	return cfg, nil
}

const encodingFix = "use the form postgres://user:password@host:5432/database?sslmode=verify-full\n" +
	"/ @ : ? # % and blanks in a user or password are written as %2F %40 %3A %3F %23 %25 %20"

// plausibleHost says whether it may be a name, an address, or the folder of a socket.
func plausibleHost(host string) bool {
	if strings.HasPrefix(host, "/") {
		return !strings.ContainsAny(host, "@\x00\n")
	}
	return !strings.ContainsFunc(host, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_:%", r) || r > 0x7f)
	})
}

// keyword is what a setting's name looks like.
var keyword = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// connSettings are those of a connection string whose parts cannot be taken for others.
func connSettings(url string) (map[string]string, error) {
	for _, scheme := range []string{"postgres://", "postgresql://"} {
		if rest, ok := strings.CutPrefix(url, scheme); ok {
			return urlSettings(rest)
		}
	}
	return keywordSettings(url)
}

func urlSettings(rest string) (map[string]string, error) {
	// As the library and libpq do: the first @ ends user and password, unless there is
	// a / before it.
	tail, hasUser := rest, false
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		tail, hasUser = rest[i+1:], true
	}
	place, query, _ := strings.Cut(tail, "?")
	if strings.Contains(place, "@") {
		if hasUser {
			return nil, errors.New("has two @, so that it cannot be told where the password ends and the host begins: percent-encode the one in the user or password as %40")
		}
		return nil, errors.New("has a / before its @, so that it cannot be told where the password ends: percent-encode / and @ in the user or password as %2F and %40")
	}
	hosts, _, _ := strings.Cut(place, "/")
	for host := range strings.SplitSeq(hosts, ",") {
		if strings.Count(host, ":") > 1 && !strings.HasPrefix(host, "[") {
			return nil, errors.New("has a host with several colons: an address of IPv6 is written in brackets, [::1]:5432 (or is there a : in the password, and no @ behind it?)")
		}
	}
	settings := map[string]string{}
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		if !ok || !keyword.MatchString(name) {
			return nil, errors.New("has something behind the ? that is no name=value (is there a ? & or # in the password? percent-encode it as %3F %26 %23)")
		}
		if strings.Contains(value, "@") && (!hasUser || name != "user" && name != "password") {
			return nil, errors.New("has an @ behind the ?, so that it cannot be told where the password ends: percent-encode it as %40")
		}
		settings[name] = value
	}
	return settings, nil
}

// keywordSettings reads "host=... password=...". A blank in a password that is not in
// quotes makes what follows a setting of its own.
func keywordSettings(s string) (map[string]string, error) {
	settings := map[string]string{}
	const hint = ": a password with blanks is put into single quotes, with \\' and \\\\ for ' and \\ in it"
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		name, rest, ok := strings.Cut(s, "=")
		if name = strings.TrimSpace(name); !ok || !keyword.MatchString(name) {
			return nil, errors.New("is neither a URL nor a list of keyword=value" + hint)
		}
		value, rest, ok := keywordValue(strings.TrimLeft(rest, " \t\r\n"))
		if !ok {
			return nil, errors.New("has a value whose quotes do not end" + hint)
		}
		if _, twice := settings[name]; twice {
			return nil, errors.New("has a keyword twice, so that it cannot be told which one is meant" + hint)
		}
		settings[name], s = value, rest
	}
	for name := range settings {
		if !slices.Contains(knownKeywords, name) {
			return nil, errors.New("has a keyword that a connection has not" + hint)
		}
	}
	return settings, nil
}

// keywordValue takes one value off the front.
func keywordValue(s string) (value, rest string, ok bool) {
	var b strings.Builder
	quoted := strings.HasPrefix(s, "'")
	if quoted {
		s = s[1:]
	}
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
		case quoted && s[i] == '\'':
			return b.String(), s[i+1:], true
		case !quoted && strings.IndexByte(" \t\r\n", s[i]) >= 0:
			return b.String(), s[i:], true
		}
		b.WriteByte(s[i])
	}
	return b.String(), "", !quoted
}

// knownKeywords are those of libpq that mean something here, and the settings of a session
// that people put into such lists.
var knownKeywords = strings.Fields(`host hostaddr port dbname database user password passfile service servicefile connect_timeout client_encoding
	options application_name fallback_application_name sslmode sslnegotiation sslcert sslkey sslrootcert sslpassword sslsni sslcertmode
	ssl_min_protocol_version ssl_max_protocol_version min_protocol_version max_protocol_version require_auth channel_binding
	krbspn krbsrvname gssencmode target_session_attrs load_balance_hosts keepalives keepalives_idle keepalives_interval keepalives_count
	tcp_user_timeout search_path statement_timeout lock_timeout timezone`)

// SameServer says whether two URLs differ in nothing but who we are and how we prove
// it: user, password, certificates.
func SameServer(a, b string) bool {
	x, err1 := parseURL("", a)
	y, err2 := parseURL("", b)
	if err1 != nil || err2 != nil || x.Database != y.Database || !sameHost(x.Host, x.Port, y.Host, y.Port) {
		return false
	}
	return slices.EqualFunc(x.Fallbacks, y.Fallbacks, func(f, g *pgconn.FallbackConfig) bool {
		return sameHost(f.Host, f.Port, g.Host, g.Port)
	})
}

func sameHost(host1 string, port1 uint16, host2 string, port2 uint16) bool {
	return host1 == host2 && port1 == port2
}

// urlError is for a source.url that the client library cannot use. The library's
// own text shows the URL with what it takes for the password cut out, and in a
// malformed URL it may take the wrong part: only what cannot hold it is shown.
func urlError(op string, err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		if cause := errors.Unwrap(parse); cause != nil && strings.Contains(parse.Error(), "failed to configure TLS") {
			// About files and modes; the URL is not in it.
			return &ConfigError{Op: op, Problem: "source.url: its TLS settings cannot be used", Err: cause,
				Fix: "see sslmode, sslrootcert, sslcert and sslkey in source.url: the files must be there and readable by the daemon's user"}
		}
		for _, u := range unusable {
			if strings.Contains(parse.Error(), u.said) {
				return &ConfigError{Op: op, Problem: "source.url " + u.problem, Fix: u.fix}
			}
		}
	}
	return &ConfigError{Op: op, Problem: "source.url cannot be read", Fix: encodingFix}
}

// unusable are the library's reasons, and ours for them: its own quote the URL. The names of
// settings come from the environment (PGPORT), or from a service, too.
var unusable = []struct{ said, problem, fix string }{
	{"could not match", "has another number of ports than of hosts", "name one port, or one for each host"},
	{"invalid port", "has a port that is no number from 1 to 65535", "correct the port (or is there an @ : / ? or # in the password? they are written as %40 %3A %2F %3F %23)"},
	{"invalid connect_timeout", "has a connect_timeout that is no number of seconds", "write connect_timeout=10"},
	{"unable to find service", "names a service that the service file does not have", "correct service=..., or add the section to the file that PGSERVICEFILE names (~/.pg_service.conf without it)"},
	{"failed to read service", "names a service, and the service file cannot be read: it is not there, not readable here, or not a service file", "see the file that servicefile=... or PGSERVICEFILE names (~/.pg_service.conf without them): sections [name], and lines name=value"},
	{"invalid sslcertmode", "has an sslcertmode that there is not", "write sslcertmode=disable, allow or require"},
	{"protocol_version", "has a min_protocol_version or max_protocol_version that cannot be used", "remove them, or write 3.0, 3.2 or latest, the lesser as the least"},
	{"unknown channel_binding", "has a channel_binding that there is not", "write channel_binding=disable, prefer or require"},
	{"invalid require_auth", "has a require_auth that there is not", "write names of methods with commas between: scram-sha-256,md5,password,gss,sspi,none"},
}
