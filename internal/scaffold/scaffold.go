// Package scaffold writes a first mappings file from an existing schema: a family
// for each table by its primary key, and suggestions, commented out, for what
// foreign keys connect. It reads the catalogs and never a row.
//
// What it writes is valid as it stands, and everything that it comments out is
// valid when the one # in front of its lines is taken away. It says of each table
// what `run` would say of it, since it asks the same checks.
package scaffold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/keytype"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// Options says which tables are written about.
type Options struct {
	Schemas      []string // empty for all but the system's
	Exclude      []string // patterns of path.Match, of table or schema.table
	TenantColumn string   // tables that have it get templates with a tenant; "" for none
}

// Result is a mappings file, and what there is to say about it.
type Result struct {
	YAML     []byte
	Families int
	LeftOut  []LeftOut // tables that stand in the file, commented out
	Wide     []string  // tables of which the log has too little for now
}

// LeftOut is a table that cannot be mapped as it is.
type LeftOut struct{ Table, Reason string }

// ErrNothing means that no table can be mapped, so that there is no file to write.
var ErrNothing = errors.New("no table can be mapped")

// Generate writes a mappings file for the database that conn is connected to.
func Generate(ctx context.Context, conn *pgx.Conn, o Options) (Result, error) {
	server, err := replication.ReadServer(ctx, conn)
	if err != nil {
		return Result{}, err
	}
	db, err := readDatabase(ctx, conn, o)
	if err != nil {
		return Result{}, err
	}
	p := newPlan(db, o.TenantColumn)
	if err := p.checkCatalog(ctx, conn); err != nil {
		return Result{}, err
	}
	r := Result{Families: len(p.families)}
	for _, t := range db.tables {
		if reason, out := p.leftOut[t]; out {
			r.LeftOut = append(r.LeftOut, LeftOut{t.String(), reason.problem})
		}
		if len(p.wide[t]) > 0 {
			r.Wide = append(r.Wide, t.String())
		}
	}
	if len(p.families) == 0 {
		return r, nothing(r, o, db.excluded)
	}
	plan, err := compile(writeFile(p, server))
	if err != nil {
		return r, err
	}
	if err := p.chooseForms(ctx, conn, plan); err != nil {
		return r, err
	}
	r.YAML = writeFile(p, server)
	// It is for a person to read and to change. It must not begin with a fault.
	_, err = compile(r.YAML)
	return r, err
}

func compile(yaml []byte) (*mapping.Plan, error) {
	file, err := mapping.Parse("mappings.yaml", yaml, mapping.Env{AllowUnset: true})
	var plan *mapping.Plan
	if err == nil {
		plan, err = mapping.Compile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("the file that was made of this schema is not valid, which is a fault of this program; --exclude leaves a table out:\n%w", err)
	}
	return plan, nil
}

// chooseForms gives variables the normal form that their column's type asks for. Where no form helps, a note
// says so.
func (p *plan) chooseForms(ctx context.Context, conn *pgx.Conn, compiled *mapping.Plan) error {
	types, err := keytype.Read(ctx, conn, compiled)
	if err != nil {
		return err
	}
	for _, f := range p.families {
		family, _ := compiled.Family(f.name)
		for _, v := range types.Family(family) {
			i := slices.IndexFunc(f.vars, func(own variable) bool { return own.name == v.Name })
			form, why, fix := v.Suggest()
			f.vars[i].normal = form
			if why != "" {
				f.notes = append(f.notes, fmt.Sprintf("Column %s %s. Readers are refused all but the row's own text: %s.", f.vars[i].column, why, fix))
			}
		}
	}
	return nil
}

func nothing(r Result, o Options, excluded int) error {
	var why []string
	switch {
	case len(r.LeftOut) > 0:
		for _, l := range r.LeftOut {
			why = append(why, l.Table+": "+l.Reason)
		}
	case excluded > 0:
		why = []string{"every table is excluded"}
	case len(o.Schemas) > 0:
		why = []string{"there is no table in the schemas " + strings.Join(o.Schemas, ", ")}
	default:
		why = []string{"the database has no tables"}
	}
	return fmt.Errorf("%w: %s", ErrNothing, strings.Join(why, "\n  "))
}

// reason is why a table is left out, and what would mend it.
type reason struct{ problem, fix string }

// checkCatalog asks what `run` would say about the tables. Leaving one out can be
// what makes another wrong (a child by inheritance), so it asks until nothing
// changes.
func (p *plan) checkCatalog(ctx context.Context, conn *pgx.Conn) error {
	for {
		var uses []mapping.TableUse
		for _, f := range p.families {
			columns := p.rowColumns(f)
			uses = append(uses, mapping.TableUse{Schema: f.table.schema, Table: f.table.name, Columns: columns, OldColumns: columns, Truncate: true})
		}
		findings, err := replication.CheckCatalog(ctx, conn, publicationName, uses)
		if err != nil {
			return err
		}
		left := len(p.families)
		p.wide = map[*table][]replication.Finding{}
		for _, f := range findings {
			i := slices.IndexFunc(p.db.tables, func(t *table) bool { return t.schema == f.Schema && t.name == f.Table })
			if i < 0 || p.family(p.db.tables[i]) == nil {
				continue // it has more than one
			}
			t := p.db.tables[i]
			switch f.Severity() {
			case replication.SeverityFatal:
				p.leaveOut(t, reason{f.Problem, f.Fix})
			case replication.SeverityWidens:
				p.wide[t] = append(p.wide[t], f)
			}
		}
		if len(p.families) == left {
			return p.chooseIdentities(ctx, conn)
		}
	}
}

// publicationName is what the file calls its publication.
const publicationName = "cdc_invalidator"

// askSource stands for a fix that only the source can tell, until it has.
const askSource = "?"

// chooseIdentities asks what replica identity each table can have, of those that need another
// one, or would with a suggestion.
func (p *plan) chooseIdentities(ctx context.Context, conn *pgx.Conn) error {
	var uses []mapping.TableUse
	for _, t := range p.db.tables {
		u := mapping.TableUse{Schema: t.schema, Table: t.name}
		if f := p.family(t); f != nil {
			u.OldColumns = p.rowColumns(f)
			for _, s := range p.suggestions(f) {
				u.OldColumns = append(u.OldColumns, s.missing...)
			}
		} else if f := familyOf(p.disabled, t); f != nil {
			u.OldColumns = f.columns()
		}
		uses = append(uses, u)
	}
	list, err := replication.ChooseIdentities(ctx, conn, publicationName, uses)
	if err != nil {
		return err
	}
	p.identities = map[*table]replication.Identity{}
	for i, t := range p.db.tables {
		p.identities[t] = list[i]
		if why, out := p.leftOut[t]; out && why.fix == askSource {
			why.fix = list[i].SQL
			if list[i].Refused != "" {
				why.problem += "; REPLICA IDENTITY FULL is not possible: " + list[i].Refused
			}
			p.leftOut[t] = why
		}
	}
	return nil
}
