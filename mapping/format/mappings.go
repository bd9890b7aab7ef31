// Package format is the form of the files that people write: which fields there
// are, what they mean and of what kind they are. The parser of package mapping
// takes the names of the fields from here, and the JSON schemas that editors use
// are made of these types and of the comments on their fields. Nothing is decoded
// into them: the parser reads YAML nodes, so that each fault has its place.
package format

// Text that a reference such as ${NAME} may stand for, and that has to be of a
// certain form otherwise. A Duration is a number with a unit.
type (
	Duration string // 300ms, 30s, 10m
	Rate     string // 2000/s
	Bool     bool
	Int      int
	Name     string // of a class, a family or a variable: letters, digits and _
	Table    string // schema.table
	Action   string // insert, update, delete, truncate
)

// Mappings is mappings.yaml.
type Mappings struct {
	// Version of the format.
	Version int `yaml:"version" jsonschema:"required"`
	// Where changes come from: the Postgres database.
	Source Source `yaml:"source" jsonschema:"required"`
	// Where invalidations go: the Redis or Valkey that holds the cache.
	Redis Redis `yaml:"redis" jsonschema:"required"`
	// Consistency budgets by name. Each family is of one of them.
	Classes map[Name]Class `yaml:"classes" jsonschema:"required"`
	// Families of cached values by name: what is cached, and under which key.
	Keys map[Name]Family `yaml:"keys" jsonschema:"required"`
	// Which changes make which families' keys stale.
	Mappings []Mapping `yaml:"mappings" jsonschema:"required"`
}

// Source is where changes come from.
type Source struct {
	// postgres://user:password@host:5432/database?sslmode=..., best as ${DATABASE_URL} or ${file:/run/secrets/database_url}.
	URL string `yaml:"url" jsonschema:"required"`
	// A name for this region, for metrics and for readers.
	Region string `yaml:"region"`
	// The logical replication slot.
	Slot Slot `yaml:"slot"`
	// The publication that the slot is read through.
	Publication Publication `yaml:"publication"`
	// How often a logical message is sent through the slot, so that an idle source is known to be idle. 0 sends none. The default is a third of the strictest staleness that a family uses.
	Heartbeat Duration `yaml:"heartbeat"`
}

// Slot is the logical replication slot.
type Slot struct {
	// Name of the slot: a-z, 0-9 and _, at most 63. The default is cdc_invalidator.
	Name string `yaml:"name"`
	// Create the slot when it is not there. The default is false.
	CreateIfNotExists Bool `yaml:"create_if_not_exists"`
}

// Publication is the publication that the slot is read through.
type Publication struct {
	// Name of the publication: letters, digits and _, at most 63. The default is cdc_invalidator.
	Name string `yaml:"name"`
	// Create the publication when it is not there, for which the role must own the mapped tables. The default is false.
	CreateIfNotExists Bool `yaml:"create_if_not_exists"`
}

// Redis is where invalidations go.
type Redis struct {
	// redis://[user:password@]host:6379/0, rediss:// (TLS), unix:///path?db=0, redis+sentinel://host,host/master/0 or redis+cluster://host,host (rediss+... with TLS).
	URL string `yaml:"url" jsonschema:"required"`
	// Beginning of the daemon's own keys; cached keys are what their templates say. The default is "inv:".
	Prefix string `yaml:"prefix"`
	// Nothing but cached values lies in this database, so that it may be flushed after a gap instead of scanned. The default is false.
	Dedicated Bool `yaml:"dedicated"`
	// How much is sent again after the server may have lost what it had acknowledged. The default is 30s.
	ReplayWindow Duration `yaml:"replay_window"`
	// Keys a second that the removal of a whole family may look at. The default is 20000.
	ScanRate Int `yaml:"scan_rate"`
	// Messages that are kept in the invalidation stream, from which readers keep a cache in their own memory right. The default is 0: no stream.
	StreamMaxLength Int `yaml:"stream_max_length"`
}

// Class is a consistency budget.
type Class struct {
	// How old a value may be after its row has changed.
	Staleness Duration `yaml:"staleness" jsonschema:"required"`
	// How long an invalidation waits for others of the same key; less than staleness.
	Linger Duration `yaml:"linger"`
	// Most invalidations a second, such as 2000/s, 600/m or 1000/h. What would have to wait for longer than half of staleness is sent all the same.
	MaxRate Rate `yaml:"max_rate"`
	// How much longer readers keep a value for when the source cannot be asked. The default is 0: never.
	FailSafe Duration `yaml:"fail_safe"`
	// What readers do while it is not proved that the cache is within staleness: bypass, the default, reads the source; serve reads the cache all the same.
	OnDoubt string `yaml:"on_doubt" jsonschema:"enum=bypass,enum=serve"`
}

// Family is a set of cached values with one template.
type Family struct {
	// Template of the key, with variables in braces, such as "user:{id}". {email|lower}, {code|rtrim} and {amount|number} give the value a normal form. Two variables need one of : * ? [ ] { } \ between them; {{ and }} are literal braces.
	Key string `yaml:"key" jsonschema:"required"`
	// The family's consistency budget: one of classes.
	Class string `yaml:"class" jsonschema:"required"`
	// The variable of the key that is the tenant. No invalidation reaches into another tenant's keys then.
	Tenant Name `yaml:"tenant"`
	// How long readers keep a value.
	TTL Duration `yaml:"ttl"`
	// Template of the version key. It makes the family a versioned one: {version} is a part of its key, and a change moves the version forward instead of removing keys one by one.
	Version string `yaml:"version"`
	// What is done with a key: delete, the default, or soft, which marks the value as stale, so that readers are given it for stale_for longer while one of them loads the new one.
	OnInvalidate string `yaml:"on_invalidate" jsonschema:"enum=delete,enum=soft"`
	// How long after its row's change a softly invalidated value may still be served; more than the class's linger, less than its staleness.
	StaleFor Duration `yaml:"stale_for"`
	// How long readers remember that there is no such row. 0 does not. The default is ttl, at most 1m.
	NegativeTTL Duration `yaml:"negative_ttl"`
}

// Mapping is the changes of a table, or the logical messages with a prefix, and
// what they make stale.
type Mapping struct {
	// Schema and table as the catalog has them, without SQL's quotes: public.users. A partitioned table is named by its root.
	Table Table `yaml:"table" jsonschema:"oneof_required=table"`
	// Prefix of a logical message: the first text argument of pg_logical_emit_message(true, prefix, content). Its content is a JSON object with a field for each variable.
	Message string `yaml:"message" jsonschema:"oneof_required=message"`
	// The actions that count. The default is all of them.
	Actions []Action `yaml:"actions" jsonschema:"minItems=1,uniqueItems=true"`
	// An update counts only when one of these columns changed, or one that keys are made of. The default is any change.
	Columns []string `yaml:"columns" jsonschema:"minItems=1,uniqueItems=true"`
	// A CEL expression over old and new: the change counts when it is true or cannot be decided. For example new.status == 'live' || old.status == 'live'.
	When string `yaml:"when"`
	// The families whose keys become stale: a name (each variable is then the column of the same name), or {family: {variable: column}}, with for_each where one row makes many keys stale.
	Keys []KeyUse `yaml:"keys" jsonschema:"minItems=1"`
	// Entities that readers may declare to depend on, such as "seller:{id}": a name, then variables, with colons between. What declared it becomes stale with the row.
	Dependents []string `yaml:"dependents" jsonschema:"minItems=1"`
}

// KeyUse is the name of a family, or a mapping with the family's name as a key of
// its own beside these fields.
type KeyUse struct {
	// A query on the source that says which keys: its columns are the variables. {column} is a column of the changed row, bound as a parameter. For example SELECT id AS product_id FROM products WHERE seller_id = {id}.
	ForEach string `yaml:"for_each"`
	// Rows beyond which the family is invalidated as a whole. The default is 10000.
	MaxRows Int `yaml:"max_rows"`
}
