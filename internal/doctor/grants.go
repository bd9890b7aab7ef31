package doctor

import (
	"net/url"
	"slices"
	"strings"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// Grants is the least that the daemon needs.
type Grants struct {
	Role      string `json:"role"`
	RedisUser string `json:"redis_user"`
	// Postgres is SQL for psql, Redis a line for redis-cli; both hold PASSWORD where
	// one goes.
	Postgres string `json:"postgres"`
	Redis    string `json:"redis"`
}

const (
	defaultAccount = "cdc_invalidator"
	anyDatabase    = `:"DBNAME"` // psql puts the database that it is connected to
)

// GrantOptions names the accounts. Where a name is empty, the URLs have it, where they do.
type GrantOptions struct {
	Role, RedisUser string
	// Owner makes the role the owner of the mapped tables, which takes them from whoever
	// owns them now. Only for a role that is to create the publication itself.
	Owner bool
}

// NewGrants derives them from the file alone.
func NewGrants(f *mapping.File, plan *mapping.Plan, o GrantOptions) Grants {
	g := Grants{Role: o.Role, RedisUser: o.RedisUser}
	database := anyDatabase
	if user, name, err := replication.Account(f.Source.URL.Reveal()); err == nil && f.Source.URL.Reveal() != "" {
		if g.Role == "" {
			g.Role = user
		}
		if name != "" {
			database = replication.Identifier(name)
		}
	}
	if g.RedisUser == "" {
		g.RedisUser = urlUser(f.Redis.URL)
	}
	if g.Role == "" {
		g.Role = defaultAccount
	}
	if g.RedisUser == "" || g.RedisUser == "default" {
		g.RedisUser = defaultAccount
	}
	g.Postgres = postgresGrants(f, plan, replication.Identifier(g.Role), database, o.Owner)
	g.Redis = sink.ACLRule(g.RedisUser, f.Redis, plan.Families())
	return g
}

func postgresGrants(f *mapping.File, plan *mapping.Plan, role, database string, owner bool) string {
	lines := []string{
		"-- In psql, in the daemon's database, as a superuser.",
		"CREATE ROLE " + role + " LOGIN REPLICATION PASSWORD 'PASSWORD';",
		"GRANT CONNECT ON DATABASE " + database + " TO " + role + ";",
		"-- So that a crash of a single backend can be told from a lost connection.",
		"GRANT pg_read_all_stats TO " + role + ";",
	}
	if tables := plan.LookupTables(); len(tables) > 0 {
		lines = append(lines, "-- What for_each queries read.")
		var schemas []string
		for _, t := range tables {
			if schema, _, ok := strings.Cut(t, "."); ok && schema != "public" {
				schemas = append(schemas, schema)
			}
		}
		slices.Sort(schemas)
		for _, s := range slices.Compact(schemas) {
			lines = append(lines, "GRANT USAGE ON SCHEMA "+s+" TO "+role+";")
		}
		lines = append(lines, "GRANT SELECT ON "+strings.Join(tables, ", ")+" TO "+role+";")
	}
	// The tables are not published here: whether that would make the application's UPDATE
	// and DELETE fail, only the source can say, and apply asks it first.
	switch {
	case owner:
		lines = append(lines, "-- As their owner the role may publish the tables. Whoever owns them now, and has no other right on them, loses them.",
			"GRANT CREATE ON DATABASE "+database+" TO "+role+";")
		for _, u := range plan.Tables() {
			lines = append(lines, "ALTER TABLE "+replication.Qualified(u.Schema, u.Table)+" OWNER TO "+role+";")
		}
	case f.Source.Publication.CreateIfNotExists:
		lines = append(lines,
			"-- publication.create_if_not_exists is true, and to create it the role would have to own the tables, which takes them from",
			"-- their owner (--owner prints that). Set it to false, and have cdc-invalidator apply create it, as an administrator.")
	default:
		lines = append(lines, "-- The publication is created by cdc-invalidator apply, as the tables' owner or a superuser.")
	}
	return strings.Join(lines, "\n")
}

// urlUser is the user of a Redis URL, "" where it has none.
func urlUser(s mapping.Secret) string {
	_, rest, ok := strings.Cut(s.Reveal(), "://")
	if !ok {
		return ""
	}
	authority, _, _ := strings.Cut(rest, "/")
	i := strings.LastIndexByte(authority, '@')
	if i < 0 {
		return ""
	}
	user, _, _ := strings.Cut(authority[:i], ":")
	name, err := url.PathUnescape(user)
	if err != nil {
		return ""
	}
	return name
}
