package localserver

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// RedisOptions describe a server to start. The zero value is a Redis (or Valkey)
// that keeps nothing on disk.
type RedisOptions struct {
	// Dir is an existing folder to put the server's files into. Empty: one of its own,
	// removed by Close.
	Dir string
	// Args are further arguments of the server, after the defaults and over them, for
	// example "--appendonly", "yes".
	Args []string
	// Password that clients must give; empty for none.
	Password string
	// TLS makes the server listen with TLS on a second port (TLSPort). A container
	// cannot.
	TLS *RedisTLS
	// Containers run the server where no installed program does. Nil: Docker.
	Containers Containers
}

// RedisTLS is a certificate in PEM, and what is asked of clients.
type RedisTLS struct {
	Cert, Key []byte
	// ClientCA is whose certificates clients must have one of; empty when they need none.
	ClientCA []byte
}

// Redis is a running server, or one that was stopped for the moment. Unless it was
// told to write to disk it is empty after each start.
type Redis struct {
	server
	password string
	tlsPort  *port // nil without TLS
}

// StartRedis starts a server. When it fails nothing is left.
func StartRedis(ctx context.Context, o RedisOptions) (_ *Redis, err error) {
	prog, missing := findRedis(ctx)
	containers := cmp.Or[Containers](o.Containers, Docker{})
	inContainer, err := useContainer(ctx, missing, containers)
	if err != nil {
		return nil, err
	}
	r := &Redis{password: o.Password}
	r.name = "redis"
	r.deathSignal = syscall.SIGKILL
	r.ping = r.pingRedis
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if err := r.prepare(o.Dir, "redis", "valkey", "nobody"); err != nil {
		return nil, err
	}
	args := []string{"--databases", "1024", "--save", "", "--appendonly", "no"}
	if o.Password != "" {
		args = append(args, "--requirepass", o.Password, "--masterauth", o.Password)
	}
	port := strconv.Itoa(r.port.number)
	if o.TLS != nil {
		if inContainer {
			return nil, errors.New("start redis: TLS needs an installed server (CDC_SERVERS=local)")
		}
		more, err := r.prepareTLS(o.TLS)
		if err != nil {
			return nil, err
		}
		args = append(args, more...)
	}
	if inContainer {
		// The docker client passes SIGTERM on, but cannot catch SIGKILL.
		r.deathSignal = syscall.SIGTERM
		if hostNetwork {
			args = append([]string{"--port", port, "--bind", "127.0.0.1"}, args...)
		}
		// Without the program's name: that is the image's own, redis or valkey.
		args = append(append([]string{"--protected-mode", "no"}, args...), o.Args...)
		if err := r.createContainer(ctx, containers, redisImage(), 6379, nil, args); err != nil {
			return nil, err
		}
	} else {
		args = append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", r.path,
			"--unixsocket", r.socketPath(), "--unixsocketperm", "700", "--daemonize", "no"}, args...)
		args = append(args, o.Args...)
		r.install(redisVersion(prog), func() *exec.Cmd { return r.command(prog.path, args...) })
	}
	if err := r.Start(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// prepareTLS writes the files and returns the arguments that name them.
func (r *Redis) prepareTLS(o *RedisTLS) (args []string, err error) {
	if r.tlsPort, err = claimPort(); err != nil {
		return nil, err
	}
	args = []string{"--tls-port", strconv.Itoa(r.tlsPort.number), "--tls-auth-clients", "no"}
	if len(o.ClientCA) > 0 {
		args[3] = "yes"
	}
	for _, f := range []struct {
		setting, name string
		content       []byte
	}{{"--tls-cert-file", "server.crt", o.Cert}, {"--tls-key-file", "server.key", o.Key}, {"--tls-ca-cert-file", "clients.crt", o.ClientCA}} {
		if len(f.content) == 0 {
			continue
		}
		if err := r.writeFile(f.name, f.content); err != nil {
			return nil, err
		}
		args = append(args, f.setting, filepath.Join(r.path, f.name))
	}
	return args, nil
}

// TLSPort on 127.0.0.1, of a server that was started with TLS.
func (r *Redis) TLSPort() int { return r.tlsPort.number }

// Close ends the server if it runs and removes everything that it left.
func (r *Redis) Close() error {
	if r.tlsPort != nil {
		defer r.tlsPort.release()
	}
	return r.server.Close()
}

func (r *Redis) socketPath() string { return filepath.Join(r.path, "redis.sock") }

// Address is host:port.
func (r *Redis) Address() string { return r.port.address() }

// URL of the server's first database, with the password.
func (r *Redis) URL() string { return r.DatabaseURL(0) }

// DatabaseURL is URL for another database; there are 1024, and one in a cluster.
func (r *Redis) DatabaseURL(n int) string {
	u := url.URL{Scheme: "redis", User: r.userinfo(), Host: r.Address(), Path: "/" + strconv.Itoa(n)}
	return u.String()
}

// SocketURL of the server's Unix socket. A container has none that can be reached
// from outside; it gets the URL.
func (r *Redis) SocketURL() string {
	if r.container != nil {
		return r.URL()
	}
	u := url.URL{Scheme: "unix", User: r.userinfo(), Path: r.socketPath()}
	return u.String()
}

func (r *Redis) userinfo() *url.Userinfo {
	if r.password == "" {
		return nil
	}
	return url.UserPassword("", r.password)
}

// Stop asks the server to end, and waits for that.
func (r *Redis) Stop(ctx context.Context) error { return r.stop(ctx, syscall.SIGTERM) }

// RemoveSaved removes what a running server has saved with SAVE, so that it is empty
// after its next start.
func (r *Redis) RemoveSaved(ctx context.Context) error {
	if r.container != nil {
		return r.container.Exec(ctx, "rm", "-f", "dump.rdb")
	}
	if err := os.Remove(filepath.Join(r.path, "dump.rdb")); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// pingRedis speaks the few bytes that are needed itself, so that this package has no
// client whose pool and retries would be in the way. A server that loads its data
// answers -LOADING, and is not there yet.
func (r *Redis) pingRedis(ctx context.Context) error {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", r.Address())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if r.password != "" {
		fmt.Fprintf(conn, "*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n", len(r.password), r.password)
	}
	fmt.Fprint(conn, "*1\r\n$4\r\nPING\r\n")
	answers := bufio.NewScanner(conn)
	for answers.Scan() {
		switch line := answers.Text(); line {
		case "+OK": // of AUTH
		case "+PONG":
			return nil
		default:
			return errors.New(line)
		}
	}
	if err := answers.Err(); err != nil {
		return err
	}
	return errors.New("the connection was closed")
}
