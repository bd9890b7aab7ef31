package replication

import (
	"context"
	_ "embed"
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

//go:embed watcher.sql
var watcherText string

//go:embed watcher_short.sql
var watcherShortText string

//go:embed watcher_tree.sql
var watcherTreeText string

// The two looks, which have to digest what is below a table alike.
var (
	watcherSQL      = strings.Replace(watcherText, "{{tree}}", watcherTreeText, 1)
	watcherShortSQL = strings.Replace(watcherShortText, "{{tree}}", watcherTreeText, 1)
)

// CatalogState is what the catalogs said about each mapped table: its name to a
// fingerprint. It may be stored and given to a later watcher, which then reports
// what changed while nobody looked.
//
// A fingerprint is the table's oid and digests; "" for a table that is not there. The
// mark of unseen before it says that changes of the table were not followed: whoever
// finds it without a reason any more has them to make up for.
type CatalogState map[string]string

const unseenMark = "!"

func seenState(fingerprint string) (state string, unseen bool) {
	return strings.CutPrefix(fingerprint, unseenMark)
}

// OID is the one that the table had, 0 when that is not known.
func (s CatalogState) OID(schema, table string) uint32 {
	state, _ := seenState(s[qualified(schema, table)])
	oid, _, _ := strings.Cut(state, ".")
	n, err := strconv.ParseUint(oid, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

func tableKey(u mapping.TableUse) string { return qualified(u.Schema, u.Table) }

// fingerprint parts, in this order; see watcher.sql.
var digestKinds = [...]ChangeKind{StorageChanged, PartitionsChanged, ColumnsChanged, IdentityChanged, PublicationChanged}

const digestLen = 16 // bytes kept of each SHA-256

// wideLook is what watcher.sql has found.
type wideLook struct {
	state CatalogState
	oids  []uint32
	below belowTables
	took  time.Duration // by the server
}

// belowTables are the mapped tables that have others below them, by oid, with digests of those.
type belowTables map[uint32]string

// ReadCatalogState is what a watcher's look would find now, for a Baseline.
func ReadCatalogState(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse) (CatalogState, error) {
	look, err := readWide(ctx, conn, publication, tables)
	return look.state, err
}

func readWide(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse) (wideLook, error) {
	const op = "look at the catalogs"
	look := wideLook{state: make(CatalogState, len(tables)), below: belowTables{}}
	schemas, names := tableNames(tables)
	rows, err := conn.Query(ctx, watcherSQL, schemas, names, publication)
	if err != nil {
		return look, serverError(op, err, "")
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		var oid uint32
		var below bool
		var seconds float64
		var digests [len(digestKinds)]pgtype.DriverBytes // valid until the next row
		if err := rows.Scan(&n, &oid, &below, &digests[0], &digests[1], &digests[2], &digests[3], &digests[4], &seconds); err != nil {
			return look, serverError(op, err, "")
		}
		look.took = max(look.took, time.Duration(seconds*float64(time.Second)))
		if oid == 0 {
			look.state[tableKey(tables[n-1])] = ""
			continue
		}
		fp := strconv.AppendUint(make([]byte, 0, 12+len(digests)*(1+2*digestLen)), uint64(oid), 10)
		for _, d := range digests {
			fp = append(fp, '.')
			fp = hex.AppendEncode(fp, d[:min(digestLen, len(d))])
		}
		look.state[tableKey(tables[n-1])] = string(fp)
		look.oids = append(look.oids, oid)
		if below {
			look.below[oid] = string(digests[0]) + string(digests[1])
		}
	}
	return look, serverError(op, rows.Err(), "")
}

// shortLook is what watcher_short.sql has found.
type shortLook struct {
	at      time.Time // nothing that became visible later is in it; by the source's clock
	xmin    uint64    // all transactions below it have ended
	visible bool      // the DDL that was announced is
	trigger string    // differs after every change of an event trigger or of its function
	below   belowTables
}

func readShort(ctx context.Context, conn *pgx.Conn, oids []uint32, announced []int64) (shortLook, error) {
	const op = "look at the catalogs"
	look := shortLook{below: belowTables{}}
	rows, err := conn.Query(ctx, watcherShortSQL, oids, DDLFunction, DDLSchema, announced)
	if err != nil {
		return look, serverError(op, err, "")
	}
	defer rows.Close()
	for rows.Next() {
		var oid uint32
		var at *time.Time
		var xmin, trigger *string
		var visible *bool
		var storage, shape pgtype.DriverBytes
		if err := rows.Scan(&oid, &at, &xmin, &visible, &trigger, &storage, &shape); err != nil {
			return look, serverError(op, err, "")
		}
		if oid != 0 {
			look.below[oid] = string(storage) + string(shape)
			continue
		}
		look.at, look.visible, look.trigger = *at, *visible, *trigger
		if look.xmin, err = strconv.ParseUint(*xmin, 10, 64); err != nil {
			return look, serverError(op, err, "")
		}
	}
	return look, serverError(op, rows.Err(), "")
}

// runningBelow is a bound: every transaction that is open now and may have written has a
// lower id. none says that there are none.
func runningBelow(ctx context.Context, conn *pgx.Conn) (bound uint64, none bool, err error) {
	var low, high string
	err = conn.QueryRow(ctx, `SELECT pg_snapshot_xmin(s)::text, pg_snapshot_xmax(s)::text FROM pg_current_snapshot() s`).Scan(&low, &high)
	if err != nil {
		return 0, false, serverError("ask which transactions are open", err, "")
	}
	bound, err = strconv.ParseUint(high, 10, 64)
	return bound, low == high, err
}

// diffStates lists the tables that are known and differ. An unknown one is new
// to the watcher, not to the source.
func diffStates(tables []mapping.TableUse, known, now CatalogState) (changed []mapping.TableUse, kinds [][]ChangeKind) {
	for _, u := range tables {
		before, wasKnown := known[tableKey(u)]
		if after := now[tableKey(u)]; wasKnown && before != after {
			changed = append(changed, u)
			kinds = append(kinds, diffFingerprints(before, after))
		}
	}
	return changed, kinds
}

func diffFingerprints(before, after string) []ChangeKind {
	before, wasUnseen := seenState(before)
	after, unseen := seenState(after)
	var kinds []ChangeKind
	b, a := strings.Split(before, "."), strings.Split(after, ".")
	switch {
	case before == after:
	case len(a) == 1: // gone, or with its oid alone: it has another name
		kinds = append(kinds, TableVanished)
	case len(a) != len(b) || a[0] != b[0]:
		kinds = append(kinds, TableReplaced)
	default:
		for i, kind := range digestKinds {
			if a[i+1] != b[i+1] {
				kinds = append(kinds, kind)
			}
		}
	}
	switch {
	case wasUnseen && !unseen:
		kinds = append(kinds, TableFollowed)
	case unseen && !wasUnseen && len(kinds) == 0:
		kinds = append(kinds, TableUnseen)
	}
	return kinds
}
