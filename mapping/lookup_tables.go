package mapping

import (
	"slices"
	"strings"
)

// LookupUse is a for_each query as the source will see it.
type LookupUse struct {
	Schema, Table string // whose changes ask it
	SQL           string // with $1... for its parameters
	Params        int
	Tables        []string // what it reads, in the words of the query
}

// Lookups are all for_each queries, in the order of the file's tables.
func (p *Plan) Lookups() []LookupUse {
	var uses []LookupUse
	for _, u := range p.Tables() {
		for _, r := range p.tables[tableName{u.Schema, u.Table}] {
			for _, t := range r.targets {
				if t.lookup != nil {
					uses = append(uses, LookupUse{Schema: u.Schema, Table: u.Table, SQL: t.lookup.sql,
						Params: len(t.lookup.params), Tables: tablesOf(t.lookup.sql)})
				}
			}
		}
	}
	return uses
}

// LookupTables are the tables that any for_each query reads, sorted.
func (p *Plan) LookupTables() []string {
	var all []string
	for _, u := range p.Lookups() {
		all = append(all, u.Tables...)
	}
	return sortedSet(all)
}

// tablesOf lists the names that stand in the FROM clauses of a query that was
// parsed before. It is no parser: it knows what ends a FROM clause, and leaves out functions
// and the names of WITH. What it may miss is asked of the server by doctor.
func tablesOf(sql string) []string {
	tokens := sqlTokens(sql)
	ctes := cteNames(tokens)
	var tables []string
	type level struct {
		from   bool // in a FROM clause
		expect bool // a name comes next
		call   bool // inside of a call whose FROM is none: extract(year FROM x)
	}
	stack := []level{{}}
	for i := 0; i < len(tokens); i++ {
		top := &stack[len(stack)-1]
		token := tokens[i]
		switch word := keyword(token); {
		case token == "(":
			call := i > 0 && slices.Contains([]string{"extract", "substring", "trim", "overlay", "position"}, keyword(tokens[i-1]))
			inner := level{from: top.expect, expect: top.expect, call: call}
			top.expect = false
			stack = append(stack, inner)
		case token == ")":
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
		case token == ",":
			top.expect = top.from
		case top.call:
		case word == "from" && (i == 0 || keyword(tokens[i-1]) != "distinct"), word == "table" && i == 0:
			top.from, top.expect = true, true
		case word == "join":
			top.from, top.expect = true, true
		case word == "only" || word == "lateral":
		case slices.Contains([]string{"select", "values", "where", "group", "having", "window", "order", "limit", "offset", "fetch", "for", "union", "intersect", "except", "with"}, word):
			top.from, top.expect = false, false
		case top.expect && isSQLName(token):
			top.expect = false
			name := token
			for i+2 < len(tokens) && tokens[i+1] == "." && isSQLName(tokens[i+2]) {
				name += "." + tokens[i+2]
				i += 2
			}
			function := i+1 < len(tokens) && tokens[i+1] == "("
			if !function && !slices.Contains(ctes, fold(name)) {
				tables = append(tables, foldAll(name))
			}
		}
	}
	return sortedSet(tables)
}

// cteNames are the names in front of AS (, after WITH or a comma.
func cteNames(tokens []string) []string {
	var names []string
	for i, t := range tokens {
		if !isSQLName(t) {
			continue
		}
		k := i + 1
		if k < len(tokens) && tokens[k] == "(" { // the names of its columns
			for k < len(tokens) && tokens[k] != ")" {
				k++
			}
			k++
		}
		if k >= len(tokens) || keyword(tokens[k]) != "as" {
			continue
		}
		for k++; k < len(tokens) && (keyword(tokens[k]) == "not" || keyword(tokens[k]) == "materialized"); k++ {
		}
		if k < len(tokens) && tokens[k] == "(" {
			names = append(names, fold(t))
		}
	}
	return names
}

// sqlTokens are words, quoted names, literals and single characters, without white
// space and comments.
func sqlTokens(sql string) []string {
	var tokens []string
	for i := 0; i < len(sql); {
		n, blank, err := sqlToken(sql[i:])
		switch {
		case err != nil:
			return tokens // cannot be: it was read before
		case n > 0:
			if !blank {
				tokens = append(tokens, sql[i:i+n])
			}
			i += n
		default:
			if sql[i] > ' ' {
				tokens = append(tokens, sql[i:i+1])
			}
			i++
		}
	}
	return tokens
}

// keyword is a word in lower case, "" for anything that cannot be a keyword.
func keyword(token string) string {
	if token == "" || !wordByte(token[0]) || strings.HasSuffix(token, "'") {
		return ""
	}
	return strings.ToLower(token)
}

func isSQLName(token string) bool {
	return keyword(token) != "" && (token[0] < '0' || token[0] > '9') || strings.HasPrefix(token, `"`)
}

// fold is a name as the server reads it.
func fold(name string) string {
	if strings.HasPrefix(name, `"`) {
		return name
	}
	return strings.ToLower(name)
}

// foldAll folds each part of a qualified name.
func foldAll(name string) string {
	if strings.Contains(name, `"`) {
		return name
	}
	return strings.ToLower(name)
}
