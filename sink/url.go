package sink

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
)

type serverKind uint8

const (
	standalone serverKind = iota
	sentinel
	cluster
)

// endpoint is what a Redis URL says.
type endpoint struct {
	kind           serverKind
	network        string // tcp or unix
	addrs          []string
	master         string // sentinel: the name of the group
	username       string
	password       string
	sentinelUser   string
	sentinelSecret string
	db             int
	tls            *tls.Config
}

const urlForms = "redis://[user:password@]host:port/db, rediss:// (TLS), unix:///path/to/socket?db=0, " +
	"redis+sentinel://host:port,host:port/master/db or redis+cluster://host:port,host:port (rediss+... with TLS)"

// CheckURL says what is wrong with a Redis URL, the files that it names included; it
// asks no server.
func CheckURL(raw string) error {
	if _, err := parseURL(raw); err != nil {
		return &Error{Op: "read redis.url", Kind: KindConfiguration, Err: err}
	}
	return nil
}

// parseURL reads a Redis URL. net/url is used for its parts only: it refuses
// several hosts, and its errors quote the whole text with the password in it.
// For the same reason no error here quotes anything but what cannot be a secret.
func parseURL(raw string) (*endpoint, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return nil, fmt.Errorf("redis url: no scheme; want %s", urlForms)
	}
	e := &endpoint{network: "tcp"}
	base, variant, _ := strings.Cut(scheme, "+")
	switch base {
	case "redis":
	case "rediss":
		e.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	case "unix":
		e.network = "unix"
	default:
		return nil, fmt.Errorf("redis url: unknown scheme; want %s", urlForms)
	}
	switch {
	case variant == "" && scheme == base:
	case variant == "sentinel" && base != "unix":
		e.kind = sentinel
	case variant == "cluster" && base != "unix":
		e.kind = cluster
	default:
		return nil, fmt.Errorf("redis url: unknown scheme; want %s", urlForms)
	}

	rest, rawQuery, _ := strings.Cut(rest, "?")
	authority, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		if err := e.setUser(authority[:i]); err != nil {
			return nil, err
		}
		authority = authority[i+1:]
	}
	// Behind the hosts an @ is most likely the one of a password with a / or ? in it, of
	// which the rest would be taken for a group's name or a file's, and shown.
	if strings.Contains(path, "@") && e.network != "unix" || strings.Contains(rawQuery, "@") {
		return nil, errors.New("redis url: an @ behind the host, so that it cannot be told where the password ends; percent-encode / ? @ in a user or password (%2F %3F %40), and an @ anywhere else too")
	}
	path, err := url.PathUnescape(path)
	if err != nil {
		return nil, errors.New("redis url: the path has a bad percent-encoding")
	}
	if err := e.setHosts(authority, path); err != nil {
		return nil, err
	}
	if err := e.setQuery(rawQuery); err != nil {
		return nil, err
	}
	if e.kind == cluster && e.db != 0 {
		return nil, fmt.Errorf("redis url: database %d: a cluster has database 0 only", e.db)
	}
	if e.kind == sentinel && e.master == "" {
		return nil, errors.New("redis url: no master name; want redis+sentinel://host:port,host:port/master")
	}
	return e, nil
}

func (e *endpoint) setUser(info string) error {
	user, password, _ := strings.Cut(info, ":")
	var err1, err2 error
	e.username, err1 = url.PathUnescape(user)
	e.password, err2 = url.PathUnescape(password)
	if err1 != nil || err2 != nil {
		return errors.New("redis url: bad percent-encoding in user or password; write a literal % as %25")
	}
	return nil
}

func (e *endpoint) setHosts(authority, path string) error {
	if e.network == "unix" {
		if authority != "" || path == "" || path == "/" {
			return errors.New("redis url: want unix:///path/to/socket, with three slashes")
		}
		e.addrs = []string{path}
		return nil
	}
	port := "6379"
	if e.kind == sentinel {
		port = "26379"
	}
	for _, host := range strings.Split(authority, ",") {
		switch h, p, err := net.SplitHostPort(host); {
		case host == "":
			return errors.New("redis url: a host is missing")
		case strings.ContainsFunc(host, notOfHosts):
			return errors.New("redis url: a host with a character that no host has (is there an @ : / ? or # in the password? percent-encode it: %40 %3A %2F %3F %23)")
		case err == nil:
			if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
				return errors.New("redis url: a port is not a number from 1 to 65535 (is there a / or @ in the password? write %2F, %40)")
			}
			if h == "" {
				return errors.New("redis url: a host is missing before its port")
			}
		default:
			host = net.JoinHostPort(strings.Trim(host, "[]"), port)
		}
		e.addrs = append(e.addrs, host)
	}
	if e.kind == standalone && len(e.addrs) > 1 {
		return errors.New("redis url: several hosts; use redis+sentinel:// or redis+cluster://")
	}
	path = strings.Trim(path, "/")
	if e.kind == sentinel {
		e.master, path, _ = strings.Cut(path, "/")
	}
	if path != "" {
		return e.setDB(path)
	}
	return nil
}

func notOfHosts(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_:[]%", r) || r > 0x7f)
}

func (e *endpoint) setDB(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return errors.New("redis url: the database is not a number")
	}
	e.db = n
	return nil
}

func (e *endpoint) setQuery(raw string) error {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return errors.New("redis url: the part after ? is malformed")
	}
	var certFile, keyFile string
	for name, all := range values {
		v := all[len(all)-1]
		needsTLS := true
		var err error
		switch name {
		case "db":
			needsTLS, err = false, e.setDB(v)
		case "sentinel_username":
			needsTLS, e.sentinelUser = false, v
		case "sentinel_password":
			needsTLS, e.sentinelSecret = false, v
		case "ca_file", "cert_file", "key_file", "server_name", "insecure_skip_verify":
			if e.tls == nil {
				break
			}
			switch name {
			case "ca_file":
				e.tls.RootCAs, err = readCA(v)
			case "cert_file":
				certFile = v
			case "key_file":
				keyFile = v
			case "server_name":
				e.tls.ServerName = v
			case "insecure_skip_verify":
				if e.tls.InsecureSkipVerify, err = strconv.ParseBool(v); err != nil {
					err = errors.New("want true or false")
				}
			}
		default:
			// Not quoted: after a password with a ? in it, this is a part of the password.
			return errors.New("redis url: unknown option after ?; known are db, sentinel_username, sentinel_password, " +
				"ca_file, cert_file, key_file, server_name, insecure_skip_verify (a ? in the password is written %3F)")
		}
		if err != nil {
			return fmt.Errorf("redis url: option %s: %w", name, err)
		}
		if needsTLS && e.tls == nil {
			return fmt.Errorf("redis url: option %s needs a rediss:// scheme", name)
		}
		if strings.HasPrefix(name, "sentinel_") && e.kind != sentinel {
			return fmt.Errorf("redis url: option %s needs a redis+sentinel:// scheme", name)
		}
	}
	if certFile != "" || keyFile != "" {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return fmt.Errorf("redis url: options cert_file and key_file: %w", err)
		}
		e.tls.Certificates = []tls.Certificate{cert}
	}
	return nil
}

func readCA(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return pool, nil
}
