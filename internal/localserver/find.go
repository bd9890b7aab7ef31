package localserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// The environment settles which servers are used, so that the same tests run
// against each supported version.
const (
	envServers       = "CDC_SERVERS" // local, docker or auto
	envPostgresBin   = "CDC_POSTGRES_BIN"
	envPostgresImage = "CDC_POSTGRES_IMAGE"
	envRedisBin      = "CDC_REDIS_BIN"
	envRedisImage    = "CDC_REDIS_IMAGE"

	defaultPostgresImage = "docker.io/library/postgres:17"
	defaultRedisImage    = "docker.io/library/redis:7.4"
)

// OldestPostgres and the others bound what the project supports.
const (
	OldestPostgres = 15
	OldestRedis    = 6
)

// ErrMissing is what StartPostgres and StartRedis return when there is no server to
// start: the message says what to install.
var ErrMissing = errors.New("not found")

// missingError is an error with a text of its own that is an ErrMissing too.
type missingError struct{ error }

func (e missingError) Unwrap() []error { return []error{e.error, ErrMissing} }

// program is an installed server.
type program struct {
	path    string
	version string // as it says itself: 15.18, 7.0.15
	major   int
}

var versionPattern = regexp.MustCompile(`(?:\(PostgreSQL\) |v=)((\d+)[\w.~+-]*)`)

// inspect asks a server program for its version.
func inspect(ctx context.Context, path string) (program, error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return program{}, fmt.Errorf("%s --version: %w", path, err)
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return program{}, fmt.Errorf("%s --version: no version in its answer %q", path, out)
	}
	major, err := strconv.Atoi(string(m[2]))
	if err != nil {
		return program{}, fmt.Errorf("%s --version: %w", path, err)
	}
	return program{path: path, version: string(m[1]), major: major}, nil
}

// newest of the programs at the given paths that works and that accept takes.
func newest(ctx context.Context, paths []string, accept func(program) bool) (program, bool) {
	var found []program
	seen := make(map[string]bool)
	for _, path := range paths {
		real, err := filepath.EvalSymlinks(path)
		if err != nil || seen[real] {
			continue
		}
		seen[real] = true
		// Run by its own name: Debian's redis-server is a link to redis-check-rdb, which
		// is told by its name what to be.
		if p, err := inspect(ctx, path); err == nil && accept(p) {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return program{}, false
	}
	return slices.MaxFunc(found, func(a, b program) int { return cmp.Compare(a.major, b.major) }), true
}

// findPostgres returns the postgres program with initdb beside it.
func findPostgres(ctx context.Context, major int) (program, error) {
	hasInitdb := func(p program) bool {
		_, err := os.Stat(filepath.Join(filepath.Dir(p.path), "initdb"))
		return err == nil
	}
	if bin := os.Getenv(envPostgresBin); bin != "" {
		p, err := inspect(ctx, filepath.Join(bin, "postgres"))
		if err != nil {
			return program{}, fmt.Errorf("%s=%s: %w", envPostgresBin, bin, err)
		}
		if major != 0 && p.major != major {
			return program{}, fmt.Errorf("%s=%s has Postgres %s where %d is asked for", envPostgresBin, bin, p.version, major)
		}
		return p, nil
	}
	var paths []string
	for _, path := range onPath("postgres") {
		// Its initdb is beside the program, not beside a link to it.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			paths = append(paths, real)
		}
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin/postgres",          // Debian
		"/usr/pgsql-*/bin/postgres",                   // Red Hat, PGDG packages
		"/usr/libexec/postgresql*/postgres",           // Alpine
		"/opt/homebrew/opt/postgresql@*/bin/postgres", // macOS
		"/usr/local/opt/postgresql@*/bin/postgres",    // macOS on Intel
		"/usr/local/pgsql/bin/postgres",               // from source
	} {
		matches, _ := filepath.Glob(pattern)
		paths = append(paths, matches...)
	}
	p, ok := newest(ctx, paths, func(p program) bool {
		return hasInitdb(p) && p.major >= OldestPostgres && (major == 0 || p.major == major)
	})
	if !ok {
		want := fmt.Sprintf("Postgres %d or newer", OldestPostgres)
		if major != 0 {
			want = fmt.Sprintf("Postgres %d", major)
		}
		return program{}, fmt.Errorf("%s %w in PATH or /usr/lib/postgresql; install it (apt-get install postgresql) or name its folder in %s",
			want, ErrMissing, envPostgresBin)
	}
	return p, nil
}

// findRedis returns a redis-server or valkey-server.
func findRedis(ctx context.Context) (program, error) {
	if bin := os.Getenv(envRedisBin); bin != "" {
		p, err := inspect(ctx, bin)
		if err != nil {
			return program{}, fmt.Errorf("%s=%s: %w", envRedisBin, bin, err)
		}
		return p, nil
	}
	accept := func(p program) bool { return p.major >= OldestRedis }
	// Redis before Valkey: their version numbers cannot be compared.
	for _, name := range []string{"redis-server", "valkey-server"} {
		paths := append(onPath(name), "/usr/bin/"+name, "/usr/local/bin/"+name, "/opt/homebrew/bin/"+name)
		if p, ok := newest(ctx, paths, accept); ok {
			return p, nil
		}
	}
	return program{}, fmt.Errorf("Redis %d or newer, or Valkey, %w in PATH; install it (apt-get install redis-server) or name the program in %s",
		OldestRedis, ErrMissing, envRedisBin)
}

func onPath(name string) []string {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil
	}
	return []string{path}
}

// useContainer decides between an installed program and a container, given why there
// is no installed one (nil when there is).
func useContainer(ctx context.Context, missing error, containers Containers) (bool, error) {
	switch mode := os.Getenv(envServers); mode {
	case "local":
		return false, missing
	case "docker":
		return true, containers.Available(ctx)
	case "", "auto":
		if missing == nil || !errors.Is(missing, ErrMissing) {
			return false, missing
		}
		if err := containers.Available(ctx); err != nil {
			return false, fmt.Errorf("%w (or have Docker run it; %v)", missing, err)
		}
		return true, nil
	default:
		return false, fmt.Errorf("%s=%s: want local, docker or auto", envServers, mode)
	}
}

// DescribePostgres says which Postgres StartPostgres would use, or why there is none.
// It gets the container image when it comes to that.
func DescribePostgres(ctx context.Context) (string, error) {
	prog, missing := findPostgres(ctx, 0)
	return describe(ctx, "Postgres "+prog.version, prog.path, missing, postgresImage(0))
}

// DescribeRedis is DescribePostgres for Redis or Valkey.
func DescribeRedis(ctx context.Context) (string, error) {
	prog, missing := findRedis(ctx)
	return describe(ctx, redisVersion(prog), prog.path, missing, redisImage())
}

func describe(ctx context.Context, version, path string, missing error, image string) (string, error) {
	inContainer, err := useContainer(ctx, missing, Docker{})
	if err != nil {
		return "", err
	}
	if inContainer {
		return "container of " + image, getImage(ctx, image)
	}
	return fmt.Sprintf("%s (%s)", version, path), nil
}

func redisVersion(p program) string {
	if filepath.Base(p.path) == "valkey-server" {
		return "Valkey " + p.version
	}
	return "Redis " + p.version
}

func postgresImage(major int) string {
	image := os.Getenv(envPostgresImage)
	switch {
	case image != "":
		return image
	case major != 0:
		return "docker.io/library/postgres:" + strconv.Itoa(major)
	}
	return defaultPostgresImage
}

func redisImage() string {
	if image := os.Getenv(envRedisImage); image != "" {
		return image
	}
	return defaultRedisImage
}
