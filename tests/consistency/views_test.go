package consistency

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// The table that is read through the cache. The column v holds the number of the row's
// state. REPLICA IDENTITY FULL carries the old name into the log.
const schema = `CREATE TABLE items (id bigint PRIMARY KEY, grp bigint NOT NULL, name text NOT NULL, v bigint NOT NULL);
	ALTER TABLE items REPLICA IDENTITY FULL;
	INSERT INTO items SELECT id, id %% %d, 'r' || id || '-0', 1 FROM generate_series(0, %d) id`

const groups = 4

func schemaOf(rows int) string { return fmt.Sprintf(schema, groups, rows-1) }

// What a state is follows from its number, so that a read can be judged without having
// stored what was written.

// present says whether the row is there in its n-th state. Every fourth row comes and goes.
func present(row, n int64) bool { return row%4 != 3 || n%3 != 0 }

// nameOf the row in its n-th state: each name is kept for two states, then the other
// one's turn comes.
func nameOf(row, n int64) string { return fmt.Sprintf("r%d-%d", row, n/2%2) }

// writeSQL brings a row into its n-th state, whatever it was in before: sent twice it does
// no harm, so whoever has lost an answer sends it again.
func writeSQL(row, n int64) (sql string, args []any) {
	if !present(row, n) {
		return "DELETE FROM items WHERE id = $1", []any{row}
	}
	return `INSERT INTO items VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE SET name = $3, v = $4`,
		[]any{row, row % groups, nameOf(row, n), n}
}

// view is a family of keys: one way of looking at rows.
type view struct {
	family string
	budget time.Duration // the class's staleness
	byName bool          // a key for each name of the row
	pair   bool          // a key shows its row and the next one
}

// The views. Their budgets are those of mappingsYAML.
const (
	item      = "item"
	byName    = "by_name"
	listed    = "listed"
	soft      = "soft"
	lingering = "lingering"
	page      = "page"
)

const mappingsYAML = `
classes:
  critical: {staleness: 1s}
  patient: {staleness: 3s}
  held: {staleness: 3s, linger: 200ms, max_rate: 1000/s}
keys:
  item: {key: "item:{id}", class: critical, ttl: 10m}
  by_name: {key: "name:{name}", class: critical, ttl: 10m}
  listed: {key: "list:{grp}:{version}:{id}", class: critical, version: "list:{grp}", ttl: 10m}
  soft: {key: "soft:{id}", class: patient, ttl: 10m, on_invalidate: soft, stale_for: 1s}
  lingering: {key: "linger:{id}", class: held, ttl: 10m}
  page: {key: "page:{id}", class: critical, ttl: 10m}
mappings:
  - table: public.items
    keys: [item, by_name, listed, soft, lingering, page]
    dependents: ["item:{id}"]
`

// viewsOf lists the named views.
func viewsOf(families ...string) []*view {
	var out []*view
	for _, f := range families {
		v := &view{family: f, budget: time.Second, byName: f == byName, pair: f == page}
		if f == soft || f == lingering {
			v.budget = 3 * time.Second
		}
		out = append(out, v)
	}
	return out
}

// cell is one key of a view.
type cell struct {
	view *view
	row  int64
	name int64 // which of the row's names, of a view by name
}

func (c cell) String() string {
	if c.view.byName {
		return fmt.Sprintf("%s(%s)", c.view.family, c.vars()["name"])
	}
	return fmt.Sprintf("%s(%d)", c.view.family, c.row)
}

// vars of its key.
func (c cell) vars() map[string]any {
	switch {
	case c.view.byName:
		return map[string]any{"name": fmt.Sprintf("r%d-%d", c.row, c.name)}
	case c.view.family == listed:
		return map[string]any{"id": c.row, "grp": c.row % groups}
	}
	return map[string]any{"id": c.row}
}

// part is one row as a cell shows it.
type part struct {
	row    int64
	byName bool
	name   int64
}

// shows is what the cell shows of the row in its n-th state: the number of that, and 0
// when it shows no row.
func (p part) shows(n int64) int64 {
	if !present(p.row, n) || p.byName && n/2%2 != p.name {
		return 0
	}
	return n
}

// parts are the rows that a cell shows.
func (c cell) parts(rows int64) []part {
	p := []part{{row: c.row, byName: c.view.byName, name: c.name}}
	if c.view.pair {
		p = append(p, part{row: (c.row + 1) % rows})
	}
	return p
}

// cells are all keys of a view.
func (v *view) cells(rows int64) []cell {
	var out []cell
	for row := range rows {
		out = append(out, v.cellsOf(row)...)
	}
	return out
}

// cellsOf a row.
func (v *view) cellsOf(row int64) []cell {
	if v.byName {
		return []cell{{view: v, row: row}, {view: v, row: row, name: 1}}
	}
	return []cell{{view: v, row: row}}
}

// querier is a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// query asks the source for what a cell shows: a state for each of its parts.
func (c cell) query(ctx context.Context, q querier, rows int64) ([]int64, error) {
	parts := c.parts(rows)
	shown := make([]int64, len(parts))
	where, arg := "id = ANY($1)", any([]int64{parts[0].row, parts[len(parts)-1].row})
	if c.view.byName {
		where, arg = "name = $1", c.vars()["name"]
	}
	found, err := q.Query(ctx, "SELECT id, v FROM items WHERE "+where, arg)
	if err != nil {
		return nil, err
	}
	var id, v int64
	_, err = pgx.ForEachRow(found, []any{&id, &v}, func() error {
		for i, p := range parts {
			if p.row == id {
				shown[i] = v
			}
		}
		return nil
	})
	return shown, err
}

// absent says that a cell shows no row at all.
func absent(shown []int64) bool { return len(shown) == 1 && shown[0] == 0 }

// plainKey is the data key of a cell, of a family without versions.
func plainKey(c cell) string {
	switch c.view.family {
	case item, soft, page:
		return fmt.Sprintf("%s:%d", c.view.family, c.row)
	case lingering:
		return fmt.Sprintf("linger:%d", c.row)
	}
	panic("plainKey of " + c.view.family)
}

// familyOf a data key; "" for keys of the daemon and for version keys.
func familyOf(key string) string {
	for prefix, family := range map[string]string{"item:": item, "name:": byName, "soft:": soft, "linger:": lingering, "page:": page} {
		if strings.HasPrefix(key, prefix) {
			return family
		}
	}
	if strings.HasPrefix(key, "list:") && strings.Count(key, ":") == 3 {
		return listed
	}
	return ""
}
