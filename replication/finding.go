package replication

import (
	"errors"
	"maps"
	"slices"
)

// Severity says what follows from a Finding.
type Severity string

// SeverityFatal: invalidations would be missed, or the application's own writes
// would fail; nothing may start. SeverityWidens: correct, but whole families go
// where single keys could. SeverityNotice: worth knowing.
const (
	SeverityFatal  Severity = "fatal"
	SeverityWidens Severity = "widens"
	SeverityNotice Severity = "notice"
)

// FindingCode names a kind of finding. It is stable.
type FindingCode string

// What a check of the live source can find of a mapped table, or of the publication.
// findingKinds says what follows from each.
const (
	TableMissing        FindingCode = "table_missing"
	TableMoved          FindingCode = "table_moved" // it has another name or schema now
	TableIsView         FindingCode = "view"
	TableIsForeign      FindingCode = "foreign_table" // itself, or one below it
	NoTable             FindingCode = "no_table"
	TableUnlogged       FindingCode = "unlogged"  // itself, or one below it
	TableIsPartition    FindingCode = "partition" // of another table
	TableInherited      FindingCode = "inherits"  // a child that is not mapped to all that it is
	ColumnMissing       FindingCode = "column_missing"
	ColumnGenerated     FindingCode = "column_generated"
	NoReplicaIdentity   FindingCode = "no_replica_identity"
	PartitionIdentity   FindingCode = "partition_identity" // a partition logs less than the table says
	IdentityNarrow      FindingCode = "replica_identity"
	IdentityIndex       FindingCode = "identity_index"
	PublicationMissing  FindingCode = "publication_missing"
	PublicationActions  FindingCode = "publication_actions"
	PublicationAll      FindingCode = "publication_all_tables"
	PublicationSchemas  FindingCode = "publication_schema"
	PublicationViaRoot  FindingCode = "publication_via_root"
	PublicationMember   FindingCode = "publication_member" // it lacks the table
	PublicationFiltered FindingCode = "publication_row_filter"
	PublicationColumns  FindingCode = "publication_columns"
	// What the server takes of the application's own writes; see CheckWrites.
	PublicationGenerated FindingCode = "publication_generated"
	PublicationRefuses   FindingCode = "publication_refuses" // of a table that is not mapped
	WritesRefused        FindingCode = "writes_refused"
)

// findingKind is what follows from a finding.
type findingKind struct {
	severity Severity
	// unseen: changes that readers see, of the table's rows, do not come through the slot,
	// or not under its name. Nothing that is mapped from it can be proved while that is so.
	unseen bool
	// misleads: what comes is not all that changed, and does not show it, so each change
	// of the table has to count as one of all its rows.
	misleads bool
	// published: it is about the publication, and not about the table itself.
	published bool
	// writes: it is about the application's own writes. doctor and apply look for it; to a
	// daemon that runs it changes nothing.
	writes bool
}

// findingKinds is the one place that knows. What is fatal may be seen all the same: rows
// of a table that lacks a mapped column come, and widen.
var findingKinds = map[FindingCode]findingKind{
	TableMissing:         {severity: SeverityFatal}, // nobody reads it, and a table that is made in its place is noticed
	TableMoved:           {severity: SeverityFatal, unseen: true},
	TableIsView:          {severity: SeverityFatal, unseen: true},
	TableIsForeign:       {severity: SeverityFatal, unseen: true},
	NoTable:              {severity: SeverityFatal, unseen: true},
	TableUnlogged:        {severity: SeverityFatal, unseen: true},
	TableIsPartition:     {severity: SeverityFatal, unseen: true},
	TableInherited:       {severity: SeverityFatal, unseen: true},
	ColumnMissing:        {severity: SeverityFatal},
	ColumnGenerated:      {severity: SeverityFatal},
	NoReplicaIdentity:    {severity: SeverityFatal},
	PartitionIdentity:    {severity: SeverityFatal, misleads: true},
	IdentityNarrow:       {severity: SeverityWidens},
	IdentityIndex:        {severity: SeverityNotice},
	PublicationMissing:   {severity: SeverityFatal, unseen: true, published: true},
	PublicationActions:   {severity: SeverityFatal, unseen: true, published: true},
	PublicationAll:       {severity: SeverityNotice, published: true},
	PublicationSchemas:   {severity: SeverityNotice, published: true},
	PublicationViaRoot:   {severity: SeverityFatal, unseen: true, published: true},
	PublicationMember:    {severity: SeverityFatal, unseen: true, published: true},
	PublicationFiltered:  {severity: SeverityFatal, unseen: true, misleads: true, published: true},
	PublicationColumns:   {severity: SeverityFatal, published: true},
	PublicationGenerated: {severity: SeverityFatal, published: true, writes: true},
	PublicationRefuses:   {severity: SeverityFatal, published: true, writes: true},
	WritesRefused:        {severity: SeverityFatal, writes: true},
}

// FindingCodes are all that there are, sorted.
func FindingCodes() []FindingCode { return slices.Sorted(maps.Keys(findingKinds)) }

// kind is what follows from a code. One that is not listed counts as the worst.
func (c FindingCode) kind() findingKind {
	if k, known := findingKinds[c]; known {
		return k
	}
	return findingKind{severity: SeverityFatal, unseen: true, misleads: true}
}

// Severity is what follows from it.
func (c FindingCode) Severity() Severity { return c.kind().severity }

// Unseen says that changes of the table's rows are not followed while it stands, so
// nothing that is made of them is proved fresh.
func (c FindingCode) Unseen() bool { return c.kind().unseen }

// Misleads says that the log has less of the table's changes than it shows.
func (c FindingCode) Misleads() bool { return c.kind().misleads }

// OfWrites says whether it is about the application's own writes, which only doctor and
// apply look at.
func (c FindingCode) OfWrites() bool { return c.kind().writes }

// OfPublication says that the publication has to change, and not the table.
func (c FindingCode) OfPublication() bool { return c.kind().published }

// Finding is what a check of the live source has found about one mapped table,
// or about the publication when Table is empty.
type Finding struct {
	Code    FindingCode `json:"code"`
	Schema  string      `json:"schema,omitempty"`
	Table   string      `json:"table,omitempty"`
	Problem string      `json:"problem"`
	Fix     string      `json:"fix,omitempty"` // for people; the exact SQL where SQL mends it
	// SQL are the statements that mend it, for a program to run one by one. There are
	// none where somebody has to decide first: what to map, what to take away.
	SQL []string `json:"sql,omitempty"`
}

func (f Finding) subject() string {
	if f.Table == "" {
		return "publication"
	}
	return "table " + qualified(f.Schema, f.Table)
}

func (f Finding) String() string { return f.subject() + ": " + f.Problem }

// Severity is its code's.
func (f Finding) Severity() Severity { return f.Code.Severity() }

// FatalError is the fatal ones among the findings as one ConfigError, or nil.
func FatalError(findings []Finding) error {
	var errs []error
	for _, f := range findings {
		if f.Severity() == SeverityFatal {
			errs = append(errs, &ConfigError{Op: f.subject(), Problem: f.Problem, Fix: f.Fix})
		}
	}
	return errors.Join(errs...)
}
