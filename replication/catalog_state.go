package replication

import (
	"context"
	_ "embed"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

//go:embed watcher_wide.sql
var wideSQL string

//go:embed watcher_short.sql
var shortSQL string

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

// ChangeKind is one thing about a table that changed in the catalogs.
type ChangeKind string

// The kinds of change. Several often come together.
const (
	TableVanished      ChangeKind = "vanished"
	TableReplaced      ChangeKind = "replaced"   // created, or dropped and created again, or another renamed into its place
	StorageChanged     ChangeKind = "storage"    // rewritten or truncated, itself or a partition
	PartitionsChanged  ChangeKind = "partitions" // attached, detached, created or dropped; or the table has become one
	ColumnsChanged     ChangeKind = "columns"
	IdentityChanged    ChangeKind = "identity"
	PublicationChanged ChangeKind = "publication" // membership, actions, filters, or the publication itself
	ReadingChanged     ChangeKind = "reading"     // an enum's names, a type's fields, a generated column's expression, row security, what the name stood for in between
	TableUnseen        ChangeKind = "unseen"      // its changes are not followed any more
	TableFollowed      ChangeKind = "followed"    // they are again, and what came meanwhile was missed
)

func changeKinds() []ChangeKind {
	return []ChangeKind{TableVanished, TableReplaced, StorageChanged, PartitionsChanged, ColumnsChanged, IdentityChanged, PublicationChanged, ReadingChanged, TableUnseen, TableFollowed}
}

// CatalogChange is one mapped table whose definition changed since the last look.
// Its rows may have changed without a word in the log, so everything that it maps
// to must count as stale, from a moment after this report.
type CatalogChange struct {
	Schema, Table string
	Kinds         []ChangeKind
	// Findings are what CheckCatalog and CheckPublication say about the table
	// now. While one of them is fatal the table's changes cannot be trusted: its
	// families must go at each change until it is mended.
	Findings []Finding
}

func (c CatalogChange) String() string {
	kinds := make([]string, len(c.Kinds))
	for i, k := range c.Kinds {
		kinds[i] = string(k)
	}
	return qualified(c.Schema, c.Table) + ": " + strings.Join(kinds, ", ") + " changed"
}

func tableKey(u mapping.TableUse) string { return qualified(u.Schema, u.Table) }

// fingerprint parts, in this order; see watcher_wide.sql.
var digestKinds = [...]ChangeKind{StorageChanged, PartitionsChanged, ColumnsChanged, IdentityChanged, PublicationChanged, ReadingChanged}

const digestLen = 16 // bytes kept of each SHA-256

// ReadCatalogState is what a watcher's look would find now, for a Baseline.
func ReadCatalogState(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse) (CatalogState, error) {
	look, err := readWide(ctx, conn, publication, tables)
	return look.state, err
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
