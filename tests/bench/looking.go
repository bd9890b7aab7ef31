package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// A large schema: so many mapped tables, of which the last ones are partitioned.
const (
	lookedTables      = 1250
	lookedPartitioned = 20
	lookedPartitions  = 10 // of each of those
)

// looking measures what an idle daemon costs the source on a large schema, where a class has a
// budget of one second: the CPU time of each of its connections' processes over the time that
// passed, with the event trigger and without. docs/operations.md has figures.
func (b *bench) looking(ctx context.Context) error {
	fmt.Printf("\nlooking: %d mapped tables, %d partitions below %d of them, staleness 1s, nothing happens; CPU of the source's processes, %% of a core\n\n",
		lookedTables, lookedPartitions*lookedPartitioned, lookedPartitioned)
	fmt.Println("| event trigger | run | all | catalog looks | walsender | heartbeat | rest | short looks | wide looks | ms CPU per look |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|")
	for _, trigger := range []bool{true, false} {
		if err := b.lookingAt(ctx, trigger); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) lookingAt(ctx context.Context, trigger bool) (err error) {
	name := "looking_without"
	if trigger {
		name = "looking_with"
	}
	if _, err := b.conn.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return err
	}
	url := b.pg.DatabaseURL(name)
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, sql := range lookedSchema(trigger) {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%.80s: %w", sql, err)
		}
	}
	path := filepath.Join(b.dir, name+".yaml")
	if err := os.WriteFile(path, []byte(lookedConfig(url, name, b.redis.URL())), 0o600); err != nil {
		return err
	}
	p, err := b.startDaemonWith(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()); b.dropSlot(name) }()
	if err := b.waitApplied(ctx, p, name, lsn.LSN(0)); err != nil {
		return err
	}
	for run := range b.runs {
		if err := b.lookingFor(ctx, p, name, trigger, run); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) lookingFor(ctx context.Context, p *process, database string, trigger bool, run int) error {
	before, err := b.backends(ctx, database)
	if err != nil {
		return err
	}
	looksBefore, err := p.looks()
	if err != nil {
		return err
	}
	began := time.Now()
	select {
	case <-time.After(max(b.duration, lookedFor)):
	case <-ctx.Done():
		return ctx.Err()
	}
	passed := time.Since(began)
	after, err := b.backends(ctx, database)
	if err != nil {
		return err
	}
	looks, err := p.looks()
	if err != nil {
		return err
	}
	spent := map[string]time.Duration{}
	for pid, a := range after {
		was, ok := before[pid]
		if !ok {
			return fmt.Errorf("the daemon has made another connection (%s) meanwhile: measure again", a.name)
		}
		d := a.cpu - was.cpu
		spent["all"] += d
		switch a.name {
		case "walsender", "cdc-invalidator catalog", "cdc-invalidator heartbeat":
			spent[a.name] += d
		default:
			spent["rest"] += d
		}
	}
	short, wide := looks["short"]-looksBefore["short"], looks["wide"]-looksBefore["wide"]
	share := func(name string) float64 { return 100 * spent[name].Seconds() / passed.Seconds() }
	fmt.Printf("| %v | %d | %.2f | %.2f | %.2f | %.2f | %.2f | %.0f | %.0f | %.2f |\n", trigger, run+1, share("all"), share("cdc-invalidator catalog"),
		share("walsender"), share("cdc-invalidator heartbeat"), share("rest"), short, wide, 1e3*spent["cdc-invalidator catalog"].Seconds()/(short+wide))
	return nil
}

// lookedFor is long enough for wide looks to be in it where the event trigger is installed.
const lookedFor = time.Minute

// backend is a process of the server that works for the daemon.
type backend struct {
	name string
	cpu  time.Duration
}

// backends are those of the daemon in one database.
func (b *bench) backends(ctx context.Context, database string) (map[int]backend, error) {
	rows, err := b.conn.Query(ctx, `
		SELECT pid, CASE backend_type WHEN 'walsender' THEN 'walsender' ELSE application_name END
		FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'cdc-invalidator%'`, database)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := map[int]backend{}
	for rows.Next() {
		var pid int
		var name string
		if err := rows.Scan(&pid, &name); err != nil {
			return nil, err
		}
		found[pid] = backend{name, cpuOf(pid)}
	}
	return found, rows.Err()
}

// lookedSchema makes the tables. The trigger comes last, or it would announce them.
func lookedSchema(trigger bool) []string {
	sql := []string{
		fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP EXECUTE format('CREATE TABLE t%%s (id bigint PRIMARY KEY, tenant_id int NOT NULL, name text, email text, balance bigint NOT NULL DEFAULT 0)', i); END LOOP; END $$`,
			lookedTables-lookedPartitioned),
		fmt.Sprintf(`DO $$ BEGIN FOR i IN %d..%d LOOP
			EXECUTE format('CREATE TABLE t%%s (id bigint PRIMARY KEY, tenant_id int NOT NULL, name text) PARTITION BY RANGE (id)', i);
			FOR j IN 0..%d LOOP EXECUTE format('CREATE TABLE t%%s_%%s PARTITION OF t%%s FOR VALUES FROM (%%s) TO (%%s)', i, j, i, j * 1000, (j + 1) * 1000); END LOOP;
		END LOOP; END $$`, lookedTables-lookedPartitioned+1, lookedTables, lookedPartitions-1),
		`VACUUM ANALYZE`,
	}
	if trigger {
		sql = append(sql, replication.DDLFunctionSQL()...)
		for _, t := range replication.DDLTriggers() {
			sql = append(sql, t.CreateSQL()...)
		}
	}
	return sql
}

func lookedConfig(url, slot, redis string) string {
	var keys, mappings strings.Builder
	for i := 1; i <= lookedTables; i++ {
		fmt.Fprintf(&keys, "  k%d: {key: \"k%d:{id}\", class: critical}\n", i, i)
		fmt.Fprintf(&mappings, "  - {table: public.t%d, keys: [k%d]}\n", i, i)
	}
	return fmt.Sprintf(`version: 1
source:
  url: %q
  slot: {name: %s, create_if_not_exists: true}
  publication: {name: %s, create_if_not_exists: true}
redis: {url: %q}
classes:
  critical: {staleness: 1s}
keys:
%smappings:
%s`, url, slot, slot, redis, keys.String(), mappings.String())
}
