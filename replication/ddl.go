package replication

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// DDLPrefix is the prefix of the logical messages in which the event trigger says
// what DDL has touched; see ddl.sql.
const DDLPrefix = "cdc_invalidator.ddl"

// ddlFunctionSQL makes the function; its body is what stands between the dollar quotes.
//
//go:embed ddl.sql
var ddlFunctionSQL string

// Names of what the event trigger consists of.
const (
	DDLSchema   = "cdc_invalidator"
	DDLFunction = "announce_ddl"
)

// DDLTrigger is one of the event triggers that call the function.
type DDLTrigger struct{ Name, Event string }

// DDLTriggers are the events that together see all DDL but TRUNCATE, VACUUM FULL
// and CLUSTER.
func DDLTriggers() []DDLTrigger {
	return []DDLTrigger{
		{"cdc_invalidator_ddl_command_end", "ddl_command_end"},
		{"cdc_invalidator_sql_drop", "sql_drop"},
		{"cdc_invalidator_table_rewrite", "table_rewrite"},
	}
}

// DDLFunctionSQL are the statements that make or replace the function. To replace one leaves
// it its owner, and whoever owns it decides what runs within everybody's DDL: any role that
// may create a schema could have made one of that name beforehand.
func DDLFunctionSQL() []string {
	return []string{
		"CREATE SCHEMA IF NOT EXISTS " + DDLSchema + ";",
		strings.TrimSpace(ddlFunctionSQL),
		"ALTER FUNCTION " + DDLSchema + "." + DDLFunction + "() OWNER TO CURRENT_USER;",
		"ALTER SCHEMA " + DDLSchema + " OWNER TO CURRENT_USER;",
	}
}

// DDLFunctionSource is pg_proc.prosrc of the function as this version makes it.
func DDLFunctionSource() string {
	_, rest, _ := strings.Cut(ddlFunctionSQL, "$announce$")
	source, _, _ := strings.Cut(rest, "$announce$")
	return source
}

// CreateSQL makes the trigger. ALWAYS, since a session with
// session_replication_role = replica changes what readers see like any other.
func (t DDLTrigger) CreateSQL() []string {
	return []string{
		"CREATE EVENT TRIGGER " + t.Name + " ON " + t.Event + " EXECUTE FUNCTION " + DDLSchema + "." + DDLFunction + "();",
		t.EnableSQL(),
	}
}

// EnableSQL turns a disabled trigger on again.
func (t DDLTrigger) EnableSQL() string { return "ALTER EVENT TRIGGER " + t.Name + " ENABLE ALWAYS;" }

// DropSQL removes the trigger.
func (t DDLTrigger) DropSQL() string { return "DROP EVENT TRIGGER " + sqlName(t.Name) + ";" }

// DDLChange is what DDL did to a relation.
type DDLChange string

// The kinds of DDLChange. After DDLAltered and DDLCreated what readers see of a table
// is as before, unless its name now means another one.
const (
	DDLRewritten  DDLChange = "rewritten"
	DDLDropped    DDLChange = "dropped"
	DDLColumns    DDLChange = "columns"    // dropped or renamed
	DDLPartitions DDLChange = "partitions" // a table with others below it was altered: attached, detached, ...
	DDLType       DDLChange = "type"       // the type of one of its columns was altered
	DDLPublished  DDLChange = "published"  // put into a publication, or taken out of one
	DDLCreated    DDLChange = "created"
	DDLAltered    DDLChange = "altered" // anything else, a new name among it
)

// DDLRelation is one relation that DDL has touched, with its name after it.
type DDLRelation struct {
	OID         uint32    `json:"oid"` // 0 where it is not known
	Schema      string    `json:"schema"`
	Name        string    `json:"name"`
	Change      DDLChange `json:"change"`
	Publication string    `json:"publication"` // of DDLPublished
}

// DDL is the content of a message. Any role may send one: it may make the daemon
// invalidate more, and must not make it believe anything.
type DDL struct {
	Relations    []DDLRelation `json:"relations"`
	Publications []string      `json:"publications"` // altered as a whole, dropped or made
}

// Touches says whether readers may see something else of a mapped table after it.
// isTable says whether an oid is the one by which the table was known before.
func (d *DDL) Touches(u mapping.TableUse, publication string, isTable func(oid uint32) bool) bool {
	if slices.Contains(d.Publications, publication) {
		return true
	}
	for _, rel := range d.Relations {
		// By oid too: a table that was renamed has its new name in the message.
		byName := rel.Schema == u.Schema && rel.Name == u.Table
		byOID := rel.OID != 0 && isTable(rel.OID)
		if !byName && !byOID {
			continue
		}
		switch rel.Change {
		case DDLPublished:
			if rel.Publication == publication {
				return true
			}
		case DDLAltered, DDLCreated:
			// Unless the name means another table now, a look at the catalogs says whether
			// this was of any consequence.
			if !byName || !byOID {
				return true
			}
		default:
			return true
		}
	}
	return false
}

// ParseDDL reads a message. An error means that it is not known what was touched.
func ParseDDL(content []byte) (DDL, error) {
	var m struct {
		Version int    `json:"version"`
		Failed  string `json:"failed"` // SQLSTATE: the event trigger's function met an error
		DDL
	}
	if !utf8.Valid(content) {
		return DDL{}, errors.New("ddl message: the text is not UTF-8")
	}
	if err := json.Unmarshal(content, &m); err != nil {
		return DDL{}, fmt.Errorf("ddl message: %w", err)
	}
	if m.Version != 1 {
		return DDL{}, fmt.Errorf("ddl message: version %d is not known here", m.Version)
	}
	if m.Failed != "" {
		return DDL{}, errors.New("ddl message: the event trigger could not tell what was touched; the session that ran the DDL has a warning that says why")
	}
	for _, r := range m.Relations {
		if r.Schema == "" || r.Name == "" {
			return DDL{}, errors.New("ddl message: a relation without a name")
		}
		switch r.Change {
		case DDLRewritten, DDLDropped, DDLColumns, DDLPartitions, DDLType, DDLPublished, DDLCreated, DDLAltered:
		default:
			return DDL{}, errors.New("ddl message: a change that is not known here")
		}
	}
	return m.DDL, nil
}
