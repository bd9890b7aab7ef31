package consistency

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

// sourceNow is the source's clock, us since 1970.
func (w *world) sourceNow() int64 {
	w.t.Helper()
	return query[int64](w, "SELECT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint")
}

// freshAsOf as the daemon says it, us since 1970 by the source's clock; 0 when it does not.
func (w *world) freshAsOf() int64 {
	f, err := strconv.ParseInt(w.control()["fresh_as_of"], 16, 64)
	if err != nil {
		return 0
	}
	return f
}

// compareCached is check 2: every value that is cached must be its row. It scans Redis
// itself and knows the entries' form itself (docs/protocol.md); a lease holds no value,
// and what an invalidation has marked as stale is known to be.
func (s *stage) compareCached() {
	s.t.Helper()
	rows := s.table()
	ctx := context.Background()
	seen := map[string]bool{}
	it := s.rdb.Scan(ctx, 0, "*", 1000).Iterator()
	for it.Next(ctx) {
		seen[it.Val()] = true
	}
	if err := it.Err(); err != nil {
		s.t.Fatal(err)
	}
	for key := range seen {
		c, ok := s.cellOf(key)
		if !ok {
			continue
		}
		raw, err := s.rdb.Get(ctx, key).Result()
		if errors.Is(err, redis.Nil) {
			continue // it ran out
		}
		if err != nil {
			s.t.Fatal(err)
		}
		cached, ok := decode(s, key, raw, len(c.parts(s.rows)))
		if !ok {
			continue
		}
		var want []int64
		for _, p := range c.parts(s.rows) {
			r := rows[p.row]
			if p.byName && r.name != c.vars()["name"] {
				r.v = 0
			}
			want = append(want, r.v)
		}
		s.result.compare(key, cached, want)
	}
}

type tableRow struct {
	name string
	v    int64
}

// table is the rows as they are.
func (s *stage) table() map[int64]tableRow {
	s.t.Helper()
	rows, err := s.conn.Query(context.Background(), "SELECT id, name, v FROM items")
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[int64]tableRow{}
	var id int64
	var r tableRow
	if _, err := pgx.ForEachRow(rows, []any{&id, &r.name, &r.v}, func() error { out[id] = r; return nil }); err != nil {
		s.t.Fatal(err)
	}
	return out
}

// cellOf a data key. Keys under another version than the current one are nobody's.
func (s *stage) cellOf(key string) (cell, bool) {
	family := familyOf(key)
	if family == "" {
		return cell{}, false
	}
	c := cell{view: viewsOf(family)[0]}
	last := key[strings.LastIndexByte(key, ':')+1:]
	var err error
	if family == byName {
		_, err = fmt.Sscanf(last, "r%d-%d", &c.row, &c.name)
	} else {
		c.row, err = strconv.ParseInt(last, 10, 64)
	}
	if err != nil {
		s.t.Fatalf("key %q: %v", key, err)
	}
	if family == listed {
		p := strings.Split(key, ":")
		version, err := s.rdb.Get(context.Background(), p[0]+":"+p[1]).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			s.t.Fatal(err)
		}
		if version != p[2] {
			return cell{}, false
		}
	}
	return c, true
}

// decode reads what a key holds: an entry of the protocol, or what naive readers store.
func decode(s *stage, key, raw string, parts int) (shown []int64, ok bool) {
	s.t.Helper()
	if !strings.HasPrefix(raw, "cdc2") {
		if strings.HasPrefix(raw, "lease:") {
			return nil, false
		}
		if i := strings.IndexByte(raw, '|'); i >= 0 { // a naive reader may note its position before it
			raw = raw[i+1:]
		}
		if err := json.Unmarshal([]byte(raw), &shown); err != nil {
			s.t.Fatalf("%s holds %q: %v", key, raw, err)
		}
		return shown, true
	}
	fields, payload, _ := strings.Cut(raw, "\n")
	if len(fields) < 73 {
		s.t.Fatalf("%s holds an entry with a header of %d bytes", key, len(fields))
	}
	marked := fields[33:45] == "000000000000"
	switch kind := fields[4]; {
	case kind == 'L' || marked:
		return nil, false
	case kind == 'N':
		return make([]int64, parts), true
	case kind == 'V':
		if err := json.Unmarshal([]byte(payload), &shown); err != nil {
			s.t.Fatalf("%s holds %q: %v", key, payload, err)
		}
		return shown, true
	}
	s.t.Fatalf("%s holds an entry of kind %q", key, fields[4])
	return nil, false
}
