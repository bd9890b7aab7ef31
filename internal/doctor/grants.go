package doctor

import (
	"net/url"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

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

// NewGrants derives them from the file alone. role and redisUser may be empty: then
// the URLs name them, where they do.
func NewGrants(f *mapping.File, plan *mapping.Plan, role, redisUser string) Grants {
	g := Grants{Role: role, RedisUser: redisUser}
	database := anyDatabase
	if cfg, err := pgx.ParseConfig(f.Source.URL.Reveal()); err == nil && f.Source.URL.Reveal() != "" {
		if g.Role == "" {
			g.Role = cfg.User
		}
		if cfg.Database != "" {
			database = replication.Identifier(cfg.Database)
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
	g.Postgres = postgresGrants(f, plan, replication.Identifier(g.Role), database)
	g.Redis = sink.ACLRule(g.RedisUser, f.Redis, plan.Families())
	return g
}

func postgresGrants(f *mapping.File, plan *mapping.Plan, role, database string) string {
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
	o := replication.SetupOptions{Slot: f.Source.Slot.Name, Publication: f.Source.Publication.Name, Tables: plan.Tables()}
	if f.Source.Publication.CreateIfNotExists {
		lines = append(lines,
			"-- publication.create_if_not_exists is true: to create it the role must own the tables, which lets it do",
			"-- anything with them. With false, cdc-invalidator apply creates it as their owner, and none of this is needed.",
			"GRANT CREATE ON DATABASE "+database+" TO "+role+";")
		for _, u := range o.Tables {
			lines = append(lines, "ALTER TABLE "+replication.Qualified(u.Schema, u.Table)+" OWNER TO "+role+";")
		}
	} else {
		lines = append(lines,
			"-- The publication, made beforehand by the tables' owner. cdc-invalidator apply does it too, and first looks after",
			"-- tables without a replica identity: publishing those makes the application's own UPDATE and DELETE fail.",
			replication.CreatePublicationSQL(o))
	}
	if !f.Source.Slot.CreateIfNotExists {
		lines = append(lines, "-- The slot, after the publication.", replication.CreateSlotSQL(o.Slot))
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

func (x *examination) redisUser() string {
	if user := urlUser(x.File.Redis.URL); user != "" {
		return user
	}
	return "default"
}
