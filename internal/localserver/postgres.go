package localserver

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// PostgresOptions describe a server to start. The zero value is a server with
// logical decoding, room for many slots, and fsync off.
type PostgresOptions struct {
	// Dir is an existing folder to put the server's files into; the account that
	// runs the server must be able to pass through it (see NewDir). Empty: one of its
	// own, removed by Close.
	Dir string
	// Settings go into postgresql.conf, over the defaults; ALTER SYSTEM overrides
	// them in turn.
	Settings map[string]string
	// Files are put beside postgresql.conf, readable by the server's account only: a
	// certificate and its key, another pg_hba.conf. Settings name them without a folder.
	// A container cannot have any.
	Files map[string][]byte
	// Version is a major version that it must have, for example "16". Empty: the newest.
	Version string
	// Durable leaves fsync and full_page_writes on.
	Durable bool
	// Containers run the server where no installed program does. Nil: Docker.
	Containers Containers
}

// Postgres is a running server, or one that was stopped for the moment.
type Postgres struct {
	server
	bin      string // folder of the programs; empty for a container
	password string
}

// Superuser of every server that this package starts.
const superuser = "postgres"

// StartPostgres makes a new database cluster and starts a server on it. When it
// fails nothing is left.
func StartPostgres(ctx context.Context, o PostgresOptions) (_ *Postgres, err error) {
	major := 0
	if o.Version != "" {
		if major, err = strconv.Atoi(o.Version); err != nil {
			return nil, fmt.Errorf("version %q of Postgres: want a major version, for example 16", o.Version)
		}
	}
	prog, missing := findPostgres(ctx, major)
	containers := cmp.Or[Containers](o.Containers, Docker{})
	inContainer, err := useContainer(ctx, missing, containers)
	if err != nil {
		return nil, err
	}

	p := &Postgres{password: rand.Text()}
	p.name = "postgres"
	// An immediate shutdown: it takes the backends along, which SIGKILL would not.
	p.deathSignal = syscall.SIGQUIT
	p.ping = p.pingPostgres
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if err := p.prepare(o.Dir, "postgres", "nobody"); err != nil {
		return nil, err
	}
	if inContainer && len(o.Files) > 0 {
		return nil, errors.New("start postgres: Files need an installed server (CDC_SERVERS=local)")
	}
	if inContainer {
		err = p.create(ctx, containers, o, major)
	} else {
		p.bin = filepath.Dir(prog.path)
		p.install(prog.version, func() *exec.Cmd { return p.command(prog.path, "-D", p.dataDir()) })
		err = p.initdb(o)
	}
	if err != nil {
		return nil, err
	}
	if err := p.Start(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Postgres) dataDir() string { return filepath.Join(p.path, "data") }

func (p *Postgres) initdb(o PostgresOptions) error {
	pwfile := filepath.Join(p.path, "password")
	if err := os.WriteFile(pwfile, []byte(p.password), 0o600); err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	if err := p.account.own(pwfile); err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	defer os.Remove(pwfile)
	initdb, err := start(p.command(filepath.Join(p.bin, "initdb"), "--pgdata", p.dataDir(), "--username", superuser,
		"--pwfile", pwfile, "--auth-local", "trust", "--auth-host", "scram-sha-256",
		"--encoding", "UTF8", "--locale", "C", "--no-sync"), p.logPath())
	if err != nil {
		return err
	}
	<-initdb.done
	if initdb.err != nil {
		return fmt.Errorf("initdb: %w; its log: %s", initdb.err, tail(p.logPath()))
	}
	for name, content := range o.Files {
		if err := p.writeFile(filepath.Join("data", name), content); err != nil {
			return err
		}
	}
	return p.appendSettings(baseSettings(o))
}

// appendSettings to postgresql.conf, with those that say where the server listens. Later
// lines win over earlier ones.
func (p *Postgres) appendSettings(given map[string]string) error {
	settings := map[string]string{}
	maps.Copy(settings, given)
	settings["listen_addresses"] = "127.0.0.1"
	settings["port"] = strconv.Itoa(p.port.number)
	settings["unix_socket_directories"] = p.path
	conf, err := os.OpenFile(filepath.Join(p.dataDir(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("write postgresql.conf: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(conf, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	if err := conf.Close(); err != nil {
		return fmt.Errorf("write postgresql.conf: %w", err)
	}
	return nil
}

// ReplaceFile gives one of PostgresOptions.Files another content. The server takes it
// with pg_reload_conf().
func (p *Postgres) ReplaceFile(name string, content []byte) error {
	return p.writeFile(filepath.Join("data", name), content)
}

// create prepares a container of the official image, which runs initdb itself.
func (p *Postgres) create(ctx context.Context, containers Containers, o PostgresOptions, major int) error {
	var args []string
	settings := baseSettings(o)
	if hostNetwork {
		settings["listen_addresses"] = "127.0.0.1"
		settings["port"] = strconv.Itoa(p.port.number)
	}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return p.createContainer(ctx, containers, postgresImage(major), 5432, []string{
		"POSTGRES_PASSWORD=" + p.password, "POSTGRES_INITDB_ARGS=--encoding=UTF8 --locale=C --no-sync",
	}, args)
}

func baseSettings(o PostgresOptions) map[string]string {
	s := map[string]string{
		"wal_level":                 "logical",
		"max_wal_senders":           "20",
		"max_replication_slots":     "20",
		"max_prepared_transactions": "10",
		"log_line_prefix":           "%m [%p] %b ",
	}
	if !o.Durable {
		s["fsync"] = "off"
		s["full_page_writes"] = "off"
	}
	maps.Copy(s, o.Settings)
	return s
}

// URL of the server on TCP, as superuser, with the password.
func (p *Postgres) URL() string { return p.DatabaseURL("postgres") }

// DatabaseURL is URL for another database.
func (p *Postgres) DatabaseURL(database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(superuser, p.password), Host: p.port.address(),
		Path: "/" + database, RawQuery: "sslmode=disable"}
	return u.String()
}

// SocketURL of the server on its Unix socket. A container has none that can be
// reached from outside; it gets the URL.
func (p *Postgres) SocketURL() string { return p.DatabaseSocketURL("postgres") }

// DatabaseSocketURL is SocketURL for another database.
func (p *Postgres) DatabaseSocketURL(database string) string {
	if p.container != nil {
		return p.DatabaseURL(database)
	}
	q := url.Values{"host": {p.path}, "port": {strconv.Itoa(p.port.number)}, "sslmode": {"disable"}}
	u := url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/" + database, RawQuery: q.Encode()}
	return u.String()
}

// Address is host:port, for a proxy in between.
func (p *Postgres) Address() string { return p.port.address() }

// Program is the path of one of the programs that came with the server, for example
// pg_recvlogical; a bare name when the server runs in a container.
func (p *Postgres) Program(name string) string { return filepath.Join(p.bin, name) }

func (p *Postgres) pingPostgres(ctx context.Context) error {
	conn, err := pgconn.Connect(ctx, p.SocketURL())
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// StopMode is how Postgres is asked to stop.
type StopMode syscall.Signal

// The shutdown modes of Postgres.
const (
	Smart     = StopMode(syscall.SIGTERM) // waits for all clients to leave
	Fast      = StopMode(syscall.SIGINT)  // ends sessions; waits for walsenders to be confirmed
	Immediate = StopMode(syscall.SIGQUIT) // as a crash: recovery at the next start
)

// Stop stops the server and waits for its end.
func (p *Postgres) Stop(ctx context.Context, mode StopMode) error {
	return p.stop(ctx, syscall.Signal(mode))
}

// CrashBackend kills one backend, by the pid that pg_backend_pid or
// pg_stat_activity shows. The server then ends all sessions and recovers, while its
// own process and its start time stay the same.
func (p *Postgres) CrashBackend(pid int) error {
	if err := p.signalBackend(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("crash backend %d: %w", pid, err)
	}
	return nil
}

// BackendAlive says whether the process of a backend is there.
func (p *Postgres) BackendAlive(pid int) bool { return p.signalBackend(pid, 0) == nil }

func (p *Postgres) signalBackend(pid int, sig syscall.Signal) error {
	if p.container != nil {
		return signalProcess(p.container, pid, sig)
	}
	return syscall.Kill(pid, sig)
}

// SaveData makes a copy of the files of a stopped server, for RestoreData.
func (p *Postgres) SaveData(ctx context.Context) error {
	return p.offline(ctx, "save the data", `cd "$PGDATA" && mkdir saved && for f in *; do [ "$f" = saved ] || cp -a "$f" saved/; done`)
}

// RestoreData replaces the files of a stopped server with the copy that SaveData made.
func (p *Postgres) RestoreData(ctx context.Context) error {
	return p.offline(ctx, "restore the data", `cd "$PGDATA" && for f in *; do [ "$f" = saved ] || rm -rf "$f"; done && mv saved/* . && rmdir saved`)
}

func (p *Postgres) offline(ctx context.Context, what, script string) error {
	if p.Running() {
		return fmt.Errorf("%s of postgres: it is running", what)
	}
	ctx, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	var err error
	if p.container != nil {
		err = p.container.Offline(ctx, "sh", "-ec", script)
	} else {
		cmd := exec.CommandContext(ctx, "sh", "-ec", script)
		cmd.Env = append(environment(), "PGDATA="+p.dataDir())
		err = cmd.Run()
	}
	if err != nil {
		return fmt.Errorf("%s of postgres: %w", what, err)
	}
	return nil
}

// busy: what a server logs when something of its predecessor is still there.
func busy(log string) bool {
	return strings.Contains(log, "pre-existing shared memory block") ||
		strings.Contains(log, "ddress already in use")
}
