package replication

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// identityChoice is what replica identity a mapped table can have so that the log
// carries what its mappings need and the server goes on taking the application's writes.
type identityChoice struct {
	tables   []*writtenTable // the mapped one and the partitions below it
	identity replicaIdentity
	possible bool
	refused  []string // why REPLICA IDENTITY FULL is not possible
	unfit    []string // why indexes that have the columns are not
	way      string   // what somebody could do instead, "" when nothing is known
}

// chooseIdentity is the one place that decides it. needed are columns whose old values
// mappings use; publication is ours, which has the tables or will have them.
//
// Where others read the table as well, it must have what the identity has now: a subscriber
// that is sent less stops.
func chooseIdentity(tables []*writtenTable, needed []string, publication string, version int) identityChoice {
	c := identityChoice{tables: tables}
	root := tables[0]
	var must []string
	for _, column := range needed {
		i := slices.IndexFunc(root.columns, func(c writtenColumn) bool { return c.Name == column })
		if i >= 0 && (root.columns[i].Generated == "" || root.columns[i].Generated == "s" && version >= generatedPublished) {
			must = append(must, column) // others are in no change, whatever the identity
		}
	}
	now := root.current()
	if slices.ContainsFunc(root.publications, func(p coveringPublication) bool { return p.Name != publication }) {
		for _, column := range now.columns {
			if !slices.Contains(must, column) {
				must = append(must, column)
			}
		}
	}
	for _, id := range root.candidates(must) {
		if id.full {
			c.refused = c.refusals(id, publication, version)
		}
		if c.everywhere(id) && len(c.refusals(id, publication, version)) == 0 {
			c.identity, c.possible = id, true
			return c
		}
	}
	for _, x := range root.indexes {
		covers := !slices.ContainsFunc(must, func(column string) bool { return !slices.Contains(x.Columns, column) })
		if why := root.unfit(x); covers && why != "" {
			c.unfit = append(c.unfit, "index "+sqlName(x.Name)+" "+why)
		}
	}
	c.way = c.indexToMake(must, publication, version)
	return c
}

// candidates are the identities that have the columns, the best first. An index comes last, for
// all that it logs less than FULL: the server lets it be dropped, and refuses every UPDATE and
// DELETE of the table from then on. Nobody drops a primary key so lightly.
func (t *writtenTable) candidates(must []string) (list []replicaIdentity) {
	if t.identity == "f" {
		return []replicaIdentity{{full: true}} // somebody reads that it is full; it is never narrowed
	}
	covers := func(columns []string) bool {
		return !slices.ContainsFunc(must, func(c string) bool { return !slices.Contains(columns, c) })
	}
	if now := t.current(); now.index != "" && covers(now.columns) {
		list = append(list, now) // somebody chose it
	}
	var last []replicaIdentity
	for _, x := range t.indexes { // by number of columns
		switch {
		case t.unfit(x) != "" || !covers(x.Columns):
		case x.Primary:
			list = append(list, replicaIdentity{columns: x.Columns})
		default:
			last = append(last, replicaIdentity{index: x.Name, columns: x.Columns})
		}
	}
	return append(append(list, replicaIdentity{full: true}), last...)
}

// on is the identity as a partition has it: by an index of its own over the same columns.
func (id replicaIdentity) on(t *writtenTable) (replicaIdentity, bool) {
	if id.full {
		return id, true
	}
	for _, x := range t.indexes {
		if t.unfit(x) == "" && slices.Equal(x.Columns, id.columns) && x.Primary == (id.index == "") {
			own := replicaIdentity{columns: x.Columns}
			if !x.Primary {
				own.index = x.Name
			}
			return own, true
		}
	}
	return replicaIdentity{}, false
}

func (c *identityChoice) everywhere(id replicaIdentity) bool {
	return !slices.ContainsFunc(c.tables, func(t *writtenTable) bool { _, ok := id.on(t); return !ok })
}

// refusals asks every table that holds rows, with our publication as it will be.
func (c *identityChoice) refusals(id replicaIdentity, publication string, version int) (reasons []string) {
	for _, t := range c.tables {
		own, ok := id.on(t)
		if !ok {
			continue
		}
		for _, r := range t.refusals(own, t.withOurs(publication), version) {
			if t != c.tables[0] {
				r = t.sql() + ": " + r
			}
			if !slices.Contains(reasons, r) {
				reasons = append(reasons, r)
			}
		}
	}
	return reasons
}

// withOurs are the table's publications once ours has it and sends what an identity needs.
func (t *writtenTable) withOurs(publication string) []coveringPublication {
	list := slices.Clone(t.publications)
	i := slices.IndexFunc(list, func(p coveringPublication) bool { return p.Name == publication })
	if i < 0 {
		list, i = append(list, coveringPublication{Name: publication}), len(list)
	}
	list[i].Update, list[i].Delete, list[i].Stored = true, true, true
	return list
}

// indexToMake is the statements for an index that would serve, where one could.
func (c *identityChoice) indexToMake(must []string, publication string, version int) string {
	root := c.tables[0]
	columns := slices.Clone(must)
	for _, x := range root.indexes {
		if x.Primary && x.Immediate {
			for _, k := range x.Columns {
				if !slices.Contains(columns, k) {
					columns = append(columns, k)
				}
			}
		}
	}
	if len(columns) == len(must) || root.kind == "p" {
		return "" // nothing makes it unique, or it would be an index for each partition
	}
	if len(root.refusals(replicaIdentity{index: "new", columns: columns}, root.withOurs(publication), version)) > 0 {
		return ""
	}
	var names, lines []string
	for _, column := range columns {
		names = append(names, sqlName(column))
		if !root.column(column).NotNull {
			lines = append(lines, "ALTER TABLE "+root.sql()+" ALTER COLUMN "+sqlName(column)+" SET NOT NULL;")
		}
	}
	index := sqlName(root.name + "_identity")
	return strings.Join(append(lines, "CREATE UNIQUE INDEX CONCURRENTLY "+index+" ON "+root.sql()+" ("+strings.Join(names, ", ")+");",
		"ALTER TABLE "+root.sql()+" REPLICA IDENTITY USING INDEX "+index+";", keepIndex), "\n")
}

// statements bring the table and everything below it to the identity.
func (c *identityChoice) statements() (sql []string) {
	for _, t := range c.tables {
		own, ok := c.identity.on(t)
		now := t.current()
		if !ok || now.full == own.full && now.index == own.index && slices.Equal(now.columns, own.columns) {
			continue
		}
		how := "USING INDEX " + sqlName(own.index)
		switch {
		case own.full:
			how = "FULL"
		case own.index == "":
			how = "DEFAULT"
		}
		sql = append(sql, "ALTER TABLE "+t.sql()+" REPLICA IDENTITY "+how+";")
	}
	return sql
}

// fix is statements for people: beyond a few partitions, psql makes them.
func (c *identityChoice) fix() string {
	const most = 9
	sql := c.statements()
	if c.identity.full && len(sql) > most {
		return "SELECT format('ALTER TABLE %s REPLICA IDENTITY FULL', relid) FROM pg_partition_tree(" + quoteLiteral(c.tables[0].sql()) + ") \\gexec"
	}
	if c.identity.index != "" && len(sql) > 0 {
		sql = append(sql, keepIndex)
	}
	return strings.Join(sql, "\n")
}

// keepIndex is said wherever an index is proposed.
const keepIndex = "-- never drop that index before the identity is another one: the server refuses every UPDATE and DELETE of the table then"

// settle completes a finding that asks for another replica identity: with the statements
// for the one that the table can have, or with why it can have none.
func (c *identityChoice) settle(f *Finding) {
	if c.possible {
		f.Fix, f.SQL = c.fix(), c.statements()
		if c.identity.index != "" && len(f.SQL) > 0 {
			f.Problem += fmt.Sprintf("; an index serves, and FULL does not (%s). Once that index is dropped, the server refuses every UPDATE and DELETE of the table", strings.Join(c.refused, "; "))
		}
		return
	}
	f.SQL = nil
	f.Problem += fmt.Sprintf("; REPLICA IDENTITY FULL would make the application's UPDATE and DELETE fail: %s", strings.Join(c.refused, "; "))
	if len(c.unfit) > 0 {
		f.Problem += "; " + strings.Join(c.unfit, "; ")
	}
	f.Fix = "change the publications that are in the way, or use columns of the primary key in the keys"
	if c.way != "" {
		f.Fix = "an index that serves, made when the table is quiet:\n" + c.way + "\nor: " + f.Fix
	}
}

// settleIdentities has every finding about a replica identity say what the table can have.
// publication is ours; it need not exist.
func settleIdentities(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse, findings []Finding) error {
	if !slices.ContainsFunc(findings, asksForIdentity) {
		return nil
	}
	server, err := ReadServer(ctx, conn)
	if err != nil {
		return err
	}
	written, err := readWritten(ctx, conn, tables)
	if err != nil {
		return err
	}
	for i, u := range tables {
		for k := range findings {
			f := &findings[k]
			if len(written[i]) == 0 || f.Schema != u.Schema || f.Table != u.Table || !asksForIdentity(*f) {
				continue
			}
			c := chooseIdentity(written[i], u.OldColumns, publication, server.Version)
			c.settle(f)
		}
	}
	return nil
}

func asksForIdentity(f Finding) bool {
	return f.Code == NoReplicaIdentity || f.Code == PartitionIdentity || f.Code == IdentityNarrow
}

// CheckWrites says of which mapped tables the server refuses the application's UPDATE or
// DELETE now, or would once our publication has them as it is. The daemon can follow such
// a table all the same, so it is no reason not to start.
func CheckWrites(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse) ([]Finding, error) {
	server, err := ReadServer(ctx, conn)
	if err != nil {
		return nil, err
	}
	written, err := readWritten(ctx, conn, tables)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for i, u := range tables {
		for _, t := range written[i] {
			now, planned := t.current(), t.withOurs(publication)
			later := t.refusals(now, planned, server.Version)
			if now.none() || len(later) == 0 {
				continue // the first is no_replica_identity's to say
			}
			problem := "the server refuses the application's UPDATE and DELETE on " + t.sql()
			if len(t.refusals(now, t.publications, server.Version)) == 0 {
				problem = "once it is published, " + problem
			}
			findings = append(findings, Finding{Code: WritesRefused, Schema: u.Schema, Table: u.Table,
				Problem: problem + ": " + strings.Join(later, "; "), Fix: writableFix(t, u.OldColumns, planned, server.Version)})
			break
		}
	}
	return findings, nil
}

func notStored(list []coveringPublication, publication string) []coveringPublication {
	list = slices.Clone(list)
	for i := range list {
		if list[i].Name == publication {
			list[i].Stored = false
		}
	}
	return list
}

// writableFix is what lets the application write again. It is for people: whoever set the
// identity or the publication may need it.
func writableFix(t *writtenTable, needed []string, planned []coveringPublication, version int) string {
	fix := "take what is in the way out of the publication that is named"
	narrow := *t
	narrow.identity = "d"
	for _, id := range narrow.candidates(needed) {
		if id.full || len(t.refusals(id, planned, version)) > 0 {
			continue
		}
		how := "DEFAULT"
		if id.index != "" {
			how = "USING INDEX " + sqlName(id.index)
		}
		return "ALTER TABLE " + t.sql() + " REPLICA IDENTITY " + how + ";\n-- or " + fix
	}
	return fix
}

// needsGenerated says whether our publication has to send generated columns for the
// application's writes to go on, with the identities that the tables have or will have.
func needsGenerated(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse, findings []Finding) (bool, error) {
	server, err := ReadServer(ctx, conn)
	if err != nil || server.Version < generatedPublished {
		return false, err
	}
	written, err := readWritten(ctx, conn, tables)
	if err != nil {
		return false, err
	}
	for i, u := range tables {
		var c identityChoice // of a table that gets another identity
		if len(written[i]) > 0 && slices.ContainsFunc(findings, func(f Finding) bool { return f.Schema == u.Schema && f.Table == u.Table && asksForIdentity(f) }) {
			c = chooseIdentity(written[i], u.OldColumns, publication, server.Version)
		}
		for _, t := range written[i] {
			id := t.current()
			if own, ok := c.identity.on(t); c.possible && ok {
				id = own
			}
			ours := coveringPublication{Name: publication, Update: true}
			if !id.none() && len(t.refusals(id, []coveringPublication{ours}, server.Version)) > 0 {
				ours.Stored = true
				if len(t.refusals(id, []coveringPublication{ours}, server.Version)) == 0 {
					return true, nil
				}
			}
		}
	}
	return false, nil
}

// Identity is the replica identity that a table can have for what a mapping needs of it.
type Identity struct {
	SQL     string // statements for people
	Refused string // why there is none; SQL is then what to do before, if anything
}

// ChooseIdentities says it for each of the tables.
func ChooseIdentities(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse) ([]Identity, error) {
	server, err := ReadServer(ctx, conn)
	if err != nil {
		return nil, err
	}
	written, err := readWritten(ctx, conn, tables)
	if err != nil {
		return nil, err
	}
	list := make([]Identity, len(tables))
	for i, u := range tables {
		if len(written[i]) == 0 {
			continue
		}
		c := chooseIdentity(written[i], u.OldColumns, publication, server.Version)
		if c.possible {
			list[i].SQL = c.fix()
		} else {
			list[i] = Identity{SQL: c.way, Refused: strings.Join(c.refused, "; ")}
		}
	}
	return list, nil
}
