package integration

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

const bulkSchema = `
	CREATE TABLE a (id int PRIMARY KEY, v int);
	CREATE TABLE b (id int PRIMARY KEY, a_id int REFERENCES a);
	CREATE TABLE c (id int PRIMARY KEY, b_id int REFERENCES b);
	CREATE TABLE unmapped (id int PRIMARY KEY, b_id int REFERENCES b);
	CREATE TABLE quiet (id int PRIMARY KEY)`

const bulkMappings = `
classes:
  critical: {staleness: 1s}
keys:
  a: {key: "a:{id}", class: critical}
  b: {key: "b:{id}", class: critical}
  c: {key: "c:{id}", class: critical}
  q: {key: "q:{id}", class: critical}
  both: {key: "both:{id}", class: critical}
mappings:
  - table: public.a
    keys: [a, both]
  - table: public.b
    keys: [b]
  - table: public.c
    keys: [c]
  - table: public.quiet
    actions: [insert, update, delete]
    keys: [q]
`

func TestTruncate(t *testing.T) {
	w := newWorld(t, bulkSchema, bulkMappings)
	p := w.start()
	truncate := func(name string, tables int, gone, kept []string, sql string) {
		t.Helper()
		before := p.logged(definitionChanged)
		w.step(p, name, gone, kept, sql)
		w.looked(p, before, tables) // it sees the new files too, and must not do so in the next step
		w.want(kept...)
	}
	truncate("one table", 1, keys("c:1", "c:any"), keys("a:1", "b:1", "q:1", "both:1", "cc:1"), `TRUNCATE c`)
	truncate("CASCADE over three tables, one of them unmapped", 2, keys("b:1", "c:1"), keys("a:1", "both:1", "q:1"), `TRUNCATE b CASCADE`)
	truncate("several at once, restarting", 3, keys("a:1", "b:1", "c:1", "both:1"), keys("q:1"), `TRUNCATE a, b, c, unmapped RESTART IDENTITY`)
	truncate("rows in the same transaction", 1, keys("c:1", "c:2", "a:1", "both:1"), keys("b:7", "a:7"), `BEGIN; INSERT INTO a VALUES (1); TRUNCATE c; COMMIT`)
	w.step(p, "rolled back", nil, keys("c:1"), `BEGIN; TRUNCATE c; ROLLBACK`)
	w.step(p, "rolled back to a savepoint", keys("a:5", "both:5"), keys("c:1"), `BEGIN; SAVEPOINT s; TRUNCATE c; ROLLBACK TO s; INSERT INTO a VALUES (5); COMMIT`)
	p.stop()
}

// A table whose truncates do not count is truncated unseen in the log; the
// catalog watcher sees its file change, and a doubt invalidates.
func TestTruncateThatTheMappingLeavesOut(t *testing.T) {
	w := newWorld(t, bulkSchema, bulkMappings)
	p := w.start()
	w.put("a:1")
	w.silently(p, keys("q:1"), `TRUNCATE quiet`)
	w.want("a:1")
	p.stop()
}

func TestSavepoints(t *testing.T) {
	w := newWorld(t, bulkSchema, bulkMappings)
	p := w.start()
	w.step(p, "rows of rolled back subtransactions stay", keys("a:1", "a:3", "a:6", "both:6"), keys("a:2", "a:4", "a:5", "both:2"), `
		BEGIN; INSERT INTO a VALUES (1);
		SAVEPOINT x; INSERT INTO a VALUES (2); ROLLBACK TO x;
		INSERT INTO a VALUES (3);
		SAVEPOINT y; INSERT INTO a VALUES (4); SAVEPOINT z; INSERT INTO a VALUES (5); RELEASE z; ROLLBACK TO y;
		SAVEPOINT z; INSERT INTO a VALUES (6); RELEASE z; COMMIT`)
	w.step(p, "an exception block", keys("a:10", "a:12"), keys("a:11", "both:11"),
		`DO $$ BEGIN INSERT INTO a VALUES (10); BEGIN INSERT INTO a VALUES (11); RAISE 'no'; EXCEPTION WHEN OTHERS THEN NULL; END; INSERT INTO a VALUES (12); END $$`)
	// More than fit into the list of a backend, so that the snapshot names the top-level transaction only.
	var many strings.Builder
	var gone, kept []string
	for i := 1000; i < 1200; i++ {
		fmt.Fprintf(&many, "SAVEPOINT s; INSERT INTO a VALUES (%d); ", i)
		if i%2 == 0 {
			many.WriteString("RELEASE s; ")
			gone = append(gone, fmt.Sprint("a:", i))
		} else {
			many.WriteString("ROLLBACK TO s; ")
			kept = append(kept, fmt.Sprint("a:", i))
		}
	}
	w.step(p, "200 subtransactions", gone, kept, "BEGIN; "+many.String()+"COMMIT")
	p.stop()
}

func TestTwoPhaseCommits(t *testing.T) {
	w := newWorld(t, bulkSchema, bulkMappings)
	p := w.start()
	gid := w.slot // global to the server
	w.step(p, "prepared is not committed", nil, keys("a:1", "a:2", "both:1"),
		`BEGIN; INSERT INTO a VALUES (1); PREPARE TRANSACTION '`+gid+`1'`, `BEGIN; INSERT INTO a VALUES (2); PREPARE TRANSACTION '`+gid+`2'`)
	w.step(p, "another commits meanwhile", keys("a:3", "both:3"), keys("a:1", "a:2"), `INSERT INTO a VALUES (3)`)
	w.step(p, "COMMIT PREPARED", keys("a:1", "both:1"), keys("a:2", "a:3"), `COMMIT PREPARED '`+gid+`1'`)
	w.step(p, "ROLLBACK PREPARED", nil, keys("a:1", "a:2"), `ROLLBACK PREPARED '`+gid+`2'`)
	w.exec(`BEGIN; INSERT INTO a VALUES (9); PREPARE TRANSACTION '` + gid + `3'`)
	w.settle(p)
	p.stop()
	w.forget()
	w.put("a:9", "a:1")
	w.exec(`COMMIT PREPARED '` + gid + `3'`)
	p = w.start()
	w.want("a:1")
	p.stop()
}

func TestCopyAndInsertSelect(t *testing.T) {
	w := newWorld(t, bulkSchema, bulkMappings)
	w.exec(`INSERT INTO a SELECT i FROM generate_series(1, 5) i`)
	p := w.start()
	var rows [][]any
	var gone []string
	for i := 100; i < 1100; i++ {
		rows = append(rows, []any{i, i})
		gone = append(gone, fmt.Sprint("a:", i))
	}
	w.put(gone...)
	w.put("a:99", "a:1100", "b:100")
	if _, err := w.conn.CopyFrom(t.Context(), pgx.Identifier{"a"}, []string{"id", "v"}, pgx.CopyFromRows(rows)); err != nil {
		t.Fatal(err)
	}
	w.settle(p)
	w.want("a:99", "a:1100", "b:100")

	// 100,000 rows in one transaction; every 50th is cached.
	w.fill("a", 10_000, 110_000, 50)
	w.put("a:9999", "b:10000")
	w.exec(`INSERT INTO a SELECT i, 0 FROM generate_series(10000, 109999) i`)
	w.settle(p)
	w.want("a:99", "a:1100", "b:100", "a:9999", "b:10000")
	p.stop()
}

// fill caches every n-th key of a family in one pipeline.
func (w *world) fill(prefix string, from, to, n int) {
	w.t.Helper()
	pipe := w.rdb.Pipeline()
	for i := from; i < to; i += n {
		pipe.Set(w.t.Context(), prefix+":"+strconv.Itoa(i), "cached", 0)
	}
	if _, err := pipe.Exec(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func TestTwoMillionRowsInOneTransactionStayInBoundedMemory(t *testing.T) {
	w := newWorld(t, bulkSchema, bulkMappings)
	p := w.launchBinary(plainBinary(t))
	w.settle(p)
	w.fill("a", 0, 2_000_000, 100)
	w.put("a:-1", "a:2000000", "b:1")
	w.exec(`INSERT INTO a SELECT i, 0 FROM generate_series(0, 1999999) i`)
	// In steps: a slow machine may take longer for all of it than for any one.
	for _, key := range keys("a:0", "a:700000", "a:1400000") {
		w.eventually(key+" is gone", func() bool { return !w.cachedNow(key) })
	}
	w.settle(p)
	w.want("a:-1", "a:2000000", "b:1")
	const limit = 48 << 10 // KiB
	if peak := p.peakKiB(); peak > limit {
		t.Errorf("the daemon took %d KiB at its peak, want at most %d", peak, limit)
	} else {
		t.Logf("peak memory: %d KiB", peak)
	}
	p.stop()
}

// peakKiB is the most memory that the process has had resident.
func (p *process) peakKiB() int {
	p.w.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.w.t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var peak int
		if n, _ := fmt.Sscanf(s.Text(), "VmHWM: %d kB", &peak); n == 1 {
			return peak
		}
	}
	p.w.t.Fatal("no VmHWM in /proc")
	return 0
}
