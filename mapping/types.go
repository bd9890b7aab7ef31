package mapping

import "time"

// File is a parsed and validated mappings file, with defaults applied and
// references between its parts resolved by name.
type File struct {
	Name     string // as it was opened, for messages
	Version  int
	Source   Source
	Redis    Redis
	Classes  []*Class
	Keys     []*KeySpec
	Mappings []*MappingSpec
}

// Source is where changes come from.
type Source struct {
	URL         Secret
	Region      string
	Slot        Slot
	Publication Publication
	Heartbeat   time.Duration // 0 for none
	// DefaultHeartbeat says that the file leaves Heartbeat to the classes.
	DefaultHeartbeat bool
}

// Slot is the logical replication slot.
type Slot struct {
	Name              string
	CreateIfNotExists bool
}

// Publication is the publication that the slot is read through.
type Publication struct {
	Name              string
	CreateIfNotExists bool
}

// Redis is where invalidations go.
type Redis struct {
	URL          Secret
	Prefix       string // of control keys only
	Dedicated    bool   // nothing but cached values lies in the database: a gap may flush it
	ReplayWindow time.Duration
	ScanRate     int // keys a second that a whole-family purge may look at
	// StreamMaxLength is how many messages the invalidation stream keeps; 0 for no stream.
	StreamMaxLength int
}

// Class is a consistency budget.
type Class struct {
	Name      string
	Staleness time.Duration
	Linger    time.Duration
	MaxRate   float64 // invalidations a second, 0 for no limit
	// FailSafe is how much longer values are kept for when the source is down.
	FailSafe time.Duration
	OnDoubt  string // "bypass" or "serve"
}

// Hold is how long after its commit an invalidation of the class may be held back on
// purpose: 0 for classes whose invalidations are sent at once.
func (c *Class) Hold() time.Duration {
	if c.MaxRate > 0 {
		return max(c.Linger, c.Staleness/2)
	}
	return c.Linger
}

// Held says whether invalidations of the class are held back at all.
func (c *Class) Held() bool { return c.Hold() > 0 }

// KeySpec is one family as the file describes it.
type KeySpec struct {
	Name         string
	Template     *Template // of the data key
	Version      *Template // of the version key; nil unless the family is versioned
	Tenant       string    // variable, or ""
	Class        *Class
	TTL          time.Duration
	OnInvalidate string // "delete" or "soft"
	StaleFor     time.Duration
	NegativeTTL  time.Duration // 0: that there is no row is not remembered
}

// MappingSpec is one entry of mappings: the changes of a table, or the logical
// messages with a prefix, and what they make stale.
type MappingSpec struct {
	Schema, Table string // of a table
	Message       string // or the prefix of a message
	Insert        bool
	Update        bool
	Delete        bool
	Truncate      bool
	Columns       []string // an update counts only when one of these changed; nil for any
	When          string   // CEL, or ""
	Keys          []*KeyUse
	Dependents    []*Template

	Line, Col int // where it stands, for messages
}

// KeyUse is one family that a mapping makes stale, and where its variables come
// from.
type KeyUse struct {
	Family  string
	Vars    map[string]string // template variable -> column of the row, of the message, or of the query's result
	ForEach string            // SQL, or ""
	MaxRows int               // of ForEach

	Line, Col int
}
