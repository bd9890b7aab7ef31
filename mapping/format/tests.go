package format

// Values that have a form of their own in test files.
type (
	// Row is a mapping of columns to values. Numbers, true, false and null are taken as
	// in JSON, other values as the text that Postgres prints.
	Row map[string]any
	// Identity is full, or the list of the columns that a table's replica identity is.
	Identity string
	// Content is a logical message's content: a mapping, which is sent as JSON, or text.
	Content string
	// Purge is the name of a family, or {family: tenant}.
	Purge string
	// Reason is why more than single keys is invalidated.
	Reason string
)

// Tests is a file of mapping tests, for `cdc-invalidator test`.
type Tests struct {
	// The mappings file that is tested, relative to this file.
	Mappings string `yaml:"mappings" jsonschema:"required"`
	// Replica identities by table: full, or the columns of the key or index. It decides how much of an old row the log carries. full for tables that are not listed.
	Identity map[Table]Identity `yaml:"identity"`
	// The cases, each with one change and exactly what it makes stale.
	Cases []Case `yaml:"cases" jsonschema:"required,minItems=1"`
}

// Case is one change and what it makes stale.
type Case struct {
	// What the case shows, in a few words; different for each case.
	Name string `yaml:"name" jsonschema:"required"`
	// The table that is changed: schema.table.
	Table Table `yaml:"table" jsonschema:"oneof_required=table"`
	// Or the prefix of a logical message.
	Message string `yaml:"message" jsonschema:"oneof_required=message"`
	// What happens to the table's row, or to the table.
	Action Action `yaml:"action"`
	// Replica identity of the table in this case: full, or the columns of the key or index.
	Identity Identity `yaml:"identity"`
	// The row before, for update and delete.
	Old Row `yaml:"old"`
	// The row after, for insert and update. A column that an update leaves out stands for a large value that it did not change.
	New Row `yaml:"new"`
	// The message's content.
	Content Content `yaml:"content"`
	// The keys that are deleted, or marked as stale, all of them. [] for none.
	Keys []string `yaml:"keys" jsonschema:"uniqueItems=true"`
	// The version keys that are moved forward, all of them.
	Versions []string `yaml:"versions" jsonschema:"uniqueItems=true"`
	// The entities whose dependents become stale, all of them.
	Dependents []string `yaml:"dependents" jsonschema:"uniqueItems=true"`
	// The families that are removed as a whole, all of them: family, or {family: tenant} where only one tenant's part is, or "dependents of seller" where all sellers' dependents are.
	Purges []Purge `yaml:"purges"`
	// Why more than single keys is invalidated, all reasons; the reference lists them.
	Widened []Reason `yaml:"widened" jsonschema:"uniqueItems=true"`
	// The for_each queries that are asked, all of them, and their answers: no server is asked.
	Lookups []Lookup `yaml:"lookups" jsonschema:"minItems=1"`
}

// Lookup is a for_each query that a case expects, with its answer.
type Lookup struct {
	// The family whose keys the query finds.
	Family Name `yaml:"family" jsonschema:"required"`
	// Values of the columns that stand in braces in the query. Left out, any query for the family is meant.
	With Row `yaml:"with"`
	// The rows that the query returns. [] for none.
	Rows []Row `yaml:"rows"`
	// The source refuses the query, as when a table or a right is missing.
	Refused bool `yaml:"refused"`
}
