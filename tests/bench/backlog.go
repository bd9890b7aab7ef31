package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	goredis "github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

const (
	rowCount    = 200_000
	publication = "bench"
)

// bench holds the servers of one run.
type bench struct {
	settings
	pg    *localserver.Postgres
	redis *localserver.Redis
	conn  *pgx.Conn
	rdb   *goredis.Client
	slots int
}

// workload is a backlog that is written once and read by every client.
type workload struct {
	name         string
	rows         int
	transactions int
	sql          string
}

func workloads(scale float64) []workload {
	n := func(full int) int { return max(1, int(float64(full)*scale)) }
	one, many, huge := n(200_000), n(4_000), n(2_000_000)
	return []workload{
		{"one-row transactions", one, one, fmt.Sprintf(
			`DO $$ BEGIN FOR i IN 1..%d LOOP UPDATE users SET balance = balance + 1 WHERE id = i; COMMIT; END LOOP; END $$`, one)},
		{"500-row transactions", many * 500, many, fmt.Sprintf(
			`DO $$ BEGIN FOR i IN 0..%d LOOP UPDATE users SET balance = balance + 1 WHERE id BETWEEN (i %% 400) * 500 + 1 AND (i %% 400) * 500 + 500; COMMIT; END LOOP; END $$`, many-1)},
		{"one huge transaction", huge, 1, fmt.Sprintf(`UPDATE big SET balance = balance + 1 WHERE id <= %d`, huge)},
	}
}

func (b *bench) connect(ctx context.Context) (err error) {
	if b.conn, err = pgx.Connect(ctx, b.pg.SocketURL()); err != nil {
		return err
	}
	o, err := goredis.ParseURL(b.redis.URL())
	if err != nil {
		return err
	}
	b.rdb = goredis.NewClient(o)
	for _, sql := range []string{
		`CREATE TABLE users (id bigint PRIMARY KEY, tenant_id int NOT NULL, name text, email text, balance bigint NOT NULL DEFAULT 0)`,
		fmt.Sprintf(`INSERT INTO users SELECT i, i %% 100, 'name ' || i, 'user' || i || '@example.com' FROM generate_series(1, %d) i`, rowCount),
		`CREATE TABLE big (id bigint PRIMARY KEY, tenant_id int NOT NULL, name text, balance bigint NOT NULL DEFAULT 0)`,
		`INSERT INTO big SELECT i, i % 100, 'name ' || i FROM generate_series(1, 2000000) i`,
		`CREATE PUBLICATION ` + publication + ` FOR TABLE users, big`,
		`CHECKPOINT`,
	} {
		if _, err := b.conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) close() {
	_ = b.conn.Close(context.Background())
	_ = b.rdb.Close()
}

// config writes a mappings file for one slot and returns its path.
func (b *bench) config(slot, url string) (string, error) {
	path := filepath.Join(b.dir, slot+".yaml")
	return path, os.WriteFile(path, []byte(fmt.Sprintf(`version: 1
source:
  url: %q
  slot: {name: %s, create_if_not_exists: true}
  publication: {name: %s, create_if_not_exists: true}
redis:
  url: %q
classes:
  critical: {staleness: 1s}
keys:
  user: {key: "user:{id}", class: critical, ttl: 10m}
  big:  {key: "big:{id}", class: critical, ttl: 10m}
mappings:
  - table: public.users
    keys: [user]
  - table: public.big
    keys: [big]
`, url, slot, publication, b.redis.URL())), 0o600)
}

// usage is what one run of a client cost.
type usage struct {
	wall, cpu, walsender time.Duration
	peakMiB              float64
}

// client is a way to read the backlog: prepare makes its slot before the
// workload is written, run reads it to the end.
type client struct {
	name string
	url  string
	run  func(ctx context.Context, slot, url string, end lsn.LSN) (usage, error)
	own  bool // the daemon makes its slot itself, so that it has a checkpoint
}

func (b *bench) backlog(ctx context.Context, w workload) error {
	clients := []client{
		{"pg_recvlogical, TCP", b.pg.URL(), b.recvlogical, false},
		{"cdc-invalidator, TCP", b.pg.URL(), b.daemon, true},
		{"pg_recvlogical, Unix", b.pg.SocketURL(), b.recvlogical, false},
		{"cdc-invalidator, Unix", b.pg.SocketURL(), b.daemon, true},
	}
	slots := make([][]string, len(clients))
	for i, c := range clients {
		for range b.runs {
			b.slots++
			slot := fmt.Sprintf("bench_%d", b.slots)
			slots[i] = append(slots[i], slot)
			if err := b.makeSlot(ctx, slot, c); err != nil {
				return err
			}
		}
	}
	if _, err := b.conn.Exec(ctx, w.sql); err != nil {
		return err
	}
	var text string
	if err := b.conn.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&text); err != nil {
		return err
	}
	end, err := lsn.Parse(text)
	if err != nil {
		return err
	}
	results := make([][]usage, len(clients))
	for run := range b.runs {
		for i, c := range clients { // in turn, so that a drift of the machine hits all
			if err := b.fill(ctx, w); err != nil {
				return err
			}
			u, err := c.run(ctx, slots[i][run], c.url, end)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if c.own {
				if err := b.gone(ctx, w); err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
			}
			results[i] = append(results[i], u)
			b.dropSlot(slots[i][run])
		}
	}
	printBacklog(w, clients, results)
	return nil
}

func (b *bench) makeSlot(ctx context.Context, slot string, c client) error {
	if !c.own {
		_, err := b.conn.Exec(ctx, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
		return err
	}
	// A start and a stop: the daemon makes the slot and its checkpoint.
	p, err := b.startDaemon(ctx, slot, c.url)
	if err != nil {
		return err
	}
	if err := b.waitApplied(ctx, p, slot, 0); err != nil {
		return err
	}
	return p.stop()
}

// fill puts a value for each row into Redis, since removing nothing is cheaper
// than removing something.
func (b *bench) fill(ctx context.Context, w workload) error {
	if err := b.rdb.Del(ctx, "nothing").Err(); err != nil {
		return err
	}
	prefix, n := "user:", min(w.rows, rowCount)
	if w.transactions == 1 {
		prefix, n = "big:", w.rows
	}
	for from := 1; from <= n; from += 10_000 {
		p := b.rdb.Pipeline()
		for id := from; id < from+10_000 && id <= n; id++ {
			p.Set(ctx, prefix+strconv.Itoa(id), "a value of some length for this row", 0)
		}
		if _, err := p.Exec(ctx); err != nil {
			return err
		}
	}
	return nil
}

// gone checks that the daemon did the work that it is measured for.
func (b *bench) gone(ctx context.Context, w workload) error {
	size, err := b.rdb.Keys(ctx, "*:1*").Result()
	if err != nil {
		return err
	}
	for _, k := range size {
		if strings.HasPrefix(k, "user:") || strings.HasPrefix(k, "big:") {
			return fmt.Errorf("%s is still there", k)
		}
	}
	return nil
}

// recvlogical is the baseline: it receives and throws away.
func (b *bench) recvlogical(ctx context.Context, slot, url string, end lsn.LSN) (usage, error) {
	cmd := exec.CommandContext(ctx, b.pg.Program("pg_recvlogical"), "-d", url, "-S", slot, "--start", "-f", "/dev/null",
		"-o", "proto_version=1", "-o", "publication_names="+publication, "--endpos="+end.String(), "--no-loop")
	cmd.Stderr = os.Stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return usage{}, err
	}
	sender := b.walsenderClock(ctx, slot)
	peak := make(chan float64)
	done := make(chan struct{})
	go func() {
		high := 0.0
		for {
			high = max(high, peakMiB(cmd.Process.Pid))
			select {
			case <-done:
				peak <- high
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	err := cmd.Wait()
	wall := time.Since(began)
	close(done)
	high := <-peak
	if err != nil {
		return usage{}, err
	}
	u := processUsage(cmd.ProcessState)
	u.wall, u.walsender, u.peakMiB = wall, sender(), high
	return u, nil
}

func (b *bench) daemon(ctx context.Context, slot, url string, end lsn.LSN) (usage, error) {
	began := time.Now()
	p, err := b.startDaemon(ctx, slot, url)
	if err != nil {
		return usage{}, err
	}
	sender := b.walsenderClock(ctx, slot)
	if err := b.waitApplied(ctx, p, slot, end); err != nil {
		return usage{}, err
	}
	wall, spent, peak := time.Since(began), sender(), peakMiB(p.cmd.Process.Pid)
	if err := p.stop(); err != nil {
		return usage{}, err
	}
	u := processUsage(p.cmd.ProcessState)
	u.wall, u.walsender, u.peakMiB = wall, spent, peak
	return u, nil
}

// peakMiB is the largest resident size so far. The figure that wait4 gives is of
// no use: it starts with the size of the process that forked.
func peakMiB(pid int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, ok := strings.Cut(string(data), "VmHWM:")
	if !ok {
		return 0 // it has ended
	}
	kib, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	return kib / 1024
}

type process struct {
	cmd  *exec.Cmd
	http string // address of the admin API
	done chan error
}

func (b *bench) startDaemon(ctx context.Context, slot, url string) (*process, error) {
	path, err := b.config(slot, url)
	if err != nil {
		return nil, err
	}
	return b.startDaemonWith(ctx, path)
}

func (b *bench) startDaemonWith(ctx context.Context, path string) (*process, error) {
	http, err := freeAddress()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, b.binary, "run", "--config", path, "--http", http, "--log-level", "error")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, http: http, done: make(chan error, 1)}
	go func() { p.done <- cmd.Wait() }()
	return p, nil
}

func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return <-p.done
}

// waitApplied waits until the control hash says that everything up to end is
// applied; for end 0, until it is there and ok.
func (b *bench) waitApplied(ctx context.Context, p *process, slot string, end lsn.LSN) error {
	key := "inv:source:{" + slot + "}"
	for {
		m, err := b.rdb.HMGet(ctx, key, "state", "end").Result()
		if err != nil {
			return err
		}
		// After a backlog the state is ok only with the next heartbeat.
		if m[1] != nil && (m[0] == "ok" || end > 0 && m[0] == "catching_up") {
			at, err := lsn.ParseHex(m[1].(string))
			if err != nil {
				return err
			}
			if at >= end && at > 0 {
				return nil
			}
		}
		select {
		case err := <-p.done:
			return fmt.Errorf("the daemon ended early: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func processUsage(s *os.ProcessState) usage {
	return usage{cpu: s.UserTime() + s.SystemTime()}
}

// walsenderClock returns a function that tells the CPU time that the slot's
// walsender has used. The walsender is gone once its client is, so the clock keeps
// the last reading.
func (b *bench) walsenderClock(ctx context.Context, slot string) func() time.Duration {
	stop, read := make(chan struct{}), make(chan time.Duration)
	go func() {
		var pid int
		var last time.Duration
		for {
			if pid == 0 {
				_ = b.conn.QueryRow(ctx, `SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = $1`, slot).Scan(&pid)
			} else if spent := cpuOf(pid); spent > last {
				last = spent
			}
			select {
			case <-stop:
				read <- last
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() time.Duration { close(stop); return <-read }
}

// cpuOf reads user and system time from /proc; a tick is 10 ms on Linux.
func cpuOf(pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

func printBacklog(w workload, clients []client, results [][]usage) {
	fmt.Printf("\n%s: %d transactions, %d rows\n\n", w.name, w.transactions, w.rows)
	fmt.Println("| client | rows/s | x pg_recvlogical, same transport | x pg_recvlogical, TCP | in each run | client CPU s per 1M rows | walsender CPU s per 1M rows | peak MiB |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	perMillion := func(d time.Duration) float64 { return d.Seconds() * 1e6 / float64(w.rows) }
	for i, c := range clients {
		base := results[i-i%2]
		var each []string
		for run, u := range results[i] {
			each = append(each, fmt.Sprintf("%.1f", base[run].wall.Seconds()/u.wall.Seconds()))
		}
		wall := median(results[i], func(u usage) time.Duration { return u.wall })
		peak := 0.0
		for _, u := range results[i] {
			peak = max(peak, u.peakMiB)
		}
		fmt.Printf("| %s | %.0fk | %.2f | %.2f | %s | %.1f | %.1f | %.0f |\n", c.name, float64(w.rows)/wall.Seconds()/1e3,
			median(base, func(u usage) time.Duration { return u.wall }).Seconds()/wall.Seconds(),
			median(results[0], func(u usage) time.Duration { return u.wall }).Seconds()/wall.Seconds(),
			strings.Join(each, " "),
			perMillion(median(results[i], func(u usage) time.Duration { return u.cpu })),
			perMillion(median(results[i], func(u usage) time.Duration { return u.walsender })), peak)
	}
}

func median(us []usage, f func(usage) time.Duration) time.Duration {
	ds := make([]time.Duration, len(us))
	for i, u := range us {
		ds[i] = f(u)
	}
	slices.Sort(ds)
	return ds[len(ds)/2]
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
