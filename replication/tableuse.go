package replication

// TEMPORARY until package mapping exists.
type tableUse struct {
	Schema, Table       string
	Columns, OldColumns []string
	Truncate            bool
}
