package keytype

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

//go:embed types.sql
var typesSQL string

// Types are the types of all that a plan's keys are made of, as they were when they were
// read.
type Types struct {
	families map[string][]Var
	entities map[string][]Var
	terms    mapping.KeyTypes
}

// Var is a variable, with the types of all that it comes from.
type Var struct {
	Name    string
	Normal  mapping.Normal
	Columns []Column // none: no mapping tells it

	types []Type // that print values in different ways; empty while all are unknown
}

// Column is one place that a variable's values come from.
type Column struct {
	Source mapping.KeySource
	Type   Type  // not known of a message's field, and after a Problem
	Err    error // why the type cannot be known: it is not there, or the role may not ask
}

// Family are the variables of the family, in the order of its Vars.
func (t *Types) Family(f *mapping.Family) []Var { return t.families[f.Name] }

// Entity are the variables of the entity, in their order.
func (t *Types) Entity(kind string) []Var { return t.entities[kind] }

// KeyTypes are all of them, for the stamps.
func (t *Types) KeyTypes() mapping.KeyTypes { return t.terms }

// keyType says of the variables, sorted by name, of what types the columns are that they come
// from: each type once, also sorted.
func keyType(vars []Var, name func(int) string) mapping.KeyType {
	order := make([]int, len(vars))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(name(a), name(b)) })
	var k mapping.KeyType
	for n, i := range order {
		var prints []string
		for _, c := range vars[i].Columns {
			switch {
			case c.Source.Message != "":
				continue
			case c.Err != nil:
				prints = append(prints, "unknown")
			default:
				prints = append(prints, c.Type.Print)
			}
			if c.Type.Labels != "" {
				k.Labels += c.Type.Print + ": " + c.Type.Labels + "\n"
			}
		}
		slices.Sort(prints)
		if n > 0 {
			k.Types += "; "
		}
		k.Types += name(i) + ": " + strings.Join(slices.Compact(prints), ", ")
	}
	return k
}

// Missing are the columns whose type cannot be known, each once.
func (t *Types) Missing() []Column {
	var all []Column
	seen := map[mapping.KeySource]bool{}
	for _, vars := range []map[string][]Var{t.families, t.entities} {
		for _, list := range vars {
			for _, v := range list {
				for _, c := range v.Columns {
					if c.Err != nil && !seen[c.Source] {
						seen[c.Source] = true
						all = append(all, c)
					}
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b Column) int { return strings.Compare(a.Source.String(), b.Source.String()) })
	return all
}

// Locked says whether a for_each query could not be described within lock_timeout: DDL under way
// holds a table that it reads.
func (t *Types) Locked() bool {
	return slices.ContainsFunc(t.Missing(), func(c Column) bool {
		var pg *pgconn.PgError
		return errors.As(c.Err, &pg) && pg.Code == "55P03"
	})
}

// ErrNoColumn is of a column that the source does not have.
var ErrNoColumn = errors.New("there is no such column on the source")

// Read asks for the types: one query of the catalogs, and one description of each for_each
// query, which has to mean what it means to the daemon: with the search path of a role, and not
// that of a control connection. An error means that the source could not be asked.
func Read(ctx context.Context, conn *pgx.Conn, plan *mapping.Plan) (*Types, error) {
	r := reader{types: map[mapping.KeySource]*Column{}}
	t := &Types{families: map[string][]Var{}, entities: map[string][]Var{}}
	families := map[string][]mapping.KeyVar{}
	entities := map[string][]mapping.KeyVar{}
	for _, f := range plan.Families() {
		families[f.Name] = plan.KeyVars(f)
		r.want(families[f.Name])
	}
	for _, e := range plan.Entities() {
		entities[e.Kind] = e.KeyVars()
		r.want(entities[e.Kind])
	}
	if err := r.describe(ctx, conn); err != nil {
		return nil, err
	}
	if err := r.ask(ctx, conn); err != nil {
		return nil, err
	}
	for name, vars := range families {
		t.families[name] = r.vars(vars)
	}
	for kind, vars := range entities {
		t.entities[kind] = r.vars(vars)
	}
	t.terms = mapping.KeyTypes{Families: map[string]mapping.KeyType{}, Entities: map[string]mapping.KeyType{}}
	for name, vars := range t.families {
		t.terms.Families[name] = keyType(vars, func(i int) string { return vars[i].Name })
	}
	for kind, vars := range t.entities { // each mapping has names of its own for them
		t.terms.Entities[kind] = keyType(vars, func(i int) string { return strconv.Itoa(i + 1) })
	}
	return t, nil
}

// reader gathers what is to be asked, so that it is asked at once.
type reader struct {
	types  map[mapping.KeySource]*Column
	fields []field
}

// field is a column of a query's result, as the server describes it: of a domain it shows
// what that is a domain over.
type field struct {
	source mapping.KeySource
	pgconn.FieldDescription
}

func (r *reader) want(vars []mapping.KeyVar) {
	for _, v := range vars {
		for _, s := range v.Sources {
			if r.types[s] == nil {
				r.types[s] = &Column{Source: s}
				if s.Message == "" {
					r.types[s].Err = ErrNoColumn // until it is found
				}
			}
		}
	}
}

func (r *reader) vars(vars []mapping.KeyVar) []Var {
	list := make([]Var, len(vars))
	for i, v := range vars {
		list[i] = newVar(v, func(s mapping.KeySource) *Column { return r.types[s] })
	}
	return list
}

// describe asks what the queries return. One that the server refuses, to this role perhaps, has
// columns of unknown types.
func (r *reader) describe(ctx context.Context, conn *pgx.Conn) error {
	described := map[string]*pgconn.StatementDescription{}
	refused := map[string]error{}
	for _, s := range r.sources() {
		if s.Query == "" {
			continue
		}
		d, err := described[s.Query], refused[s.Query]
		if d == nil && err == nil {
			d, err = conn.PgConn().Prepare(ctx, "", s.Query, nil)
			var pg *pgconn.PgError
			if err != nil && !errors.As(err, &pg) {
				return fmt.Errorf("ask for the columns of a for_each query: %w", err)
			}
			described[s.Query], refused[s.Query] = d, err
		}
		if err != nil {
			r.types[s].Err = err
			continue
		}
		for _, f := range d.Fields {
			if f.Name == s.Column {
				r.fields = append(r.fields, field{s, f})
				break
			}
		}
	}
	return nil
}

// sources are what is asked for, in an order of their own.
func (r *reader) sources() []mapping.KeySource {
	list := make([]mapping.KeySource, 0, len(r.types))
	for s := range r.types {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b mapping.KeySource) int {
		return strings.Compare(a.String()+a.Query, b.String()+b.Query)
	})
	return list
}

func (r *reader) ask(ctx context.Context, conn *pgx.Conn) error {
	var asked []mapping.KeySource
	var schemas, tables, columns []string
	var types, relations []uint32
	var modifiers []int32
	var attributes []int16
	for _, s := range r.sources() {
		if s.Query == "" && s.Message == "" {
			asked = append(asked, s)
			schemas, tables, columns = append(schemas, s.Schema), append(tables, s.Table), append(columns, s.Column)
			types, modifiers = append(types, 0), append(modifiers, -1)
			relations, attributes = append(relations, 0), append(attributes, 0)
		}
	}
	for _, f := range r.fields {
		asked = append(asked, f.source)
		schemas, tables, columns = append(schemas, ""), append(tables, ""), append(columns, "")
		types, modifiers = append(types, f.DataTypeOID), append(modifiers, f.TypeModifier)
		relations, attributes = append(relations, f.TableOID), append(attributes, int16(f.TableAttributeNumber))
	}
	const op = "read the types of the columns that keys are made of"
	rows, err := conn.Query(ctx, typesSQL, schemas, tables, columns, types, modifiers, relations, attributes)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		var t Type
		var class, category string
		if err := rows.Scan(&n, &t.Name, &t.Schema, &t.Base, &t.OID, &t.Mod, &class, &category, &t.Domain, &t.Collation, &t.Nondeterministic, &t.Print, &t.Labels); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		t.Form = formOf(&t, class, category)
		c := r.types[asked[n-1]]
		c.Type, c.Err = t, nil
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}
