package mapping

import (
	"slices"
	"testing"
)

// What inherits from a mapped table has to be mapped to all that the table is.
func TestWhatAChildsMappingsLeaveOut(t *testing.T) {
	const page = "SELECT product_id FROM pages WHERE user_id = {id}"
	with := func(table string, change func(*MappingSpec), uses ...*KeyUse) *MappingSpec {
		m := onTable(table, uses...)
		if change != nil {
			change(m)
		}
		return m
	}
	query := func(sql string) *KeyUse { return &KeyUse{Family: "page", ForEach: sql} }
	seller := func(template string) func(*MappingSpec) {
		return func(m *MappingSpec) { m.Dependents = []*Template{mustTemplate(t, template)} }
	}
	when := func(text string) func(*MappingSpec) { return func(m *MappingSpec) { m.When = text } }
	columns := func(names ...string) func(*MappingSpec) { return func(m *MappingSpec) { m.Columns = names } }
	insertsOnly := func(m *MappingSpec) { m.Update, m.Delete, m.Truncate = false, false, false }
	noInserts := func(m *MappingSpec) { m.Insert = false }
	const all = " at insert, update, delete, truncate"
	for _, tc := range []struct {
		name          string
		parent, child *MappingSpec
		more          []*MappingSpec // of the child
		want          []string
	}{
		{name: "the same", parent: with("p", nil, use("user"), query(page)), child: with("c", nil, use("user"), query(page))},
		{name: "more", parent: with("p", nil, use("user")), child: with("c", seller("seller:{id}"), use("page", "product_id", "id"), use("user"))},
		{name: "another family", parent: with("p", nil, use("user")), child: with("c", nil, use("user_by_email")), want: []string{"family user" + all}},
		{name: "from another column", parent: with("p", nil, use("user")), child: with("c", nil, use("user", "id", "other")), want: []string{"family user" + all}},
		{name: "another query", parent: with("p", nil, query(page)), child: with("c", nil, query(page+" AND hot")), want: []string{"family page" + all}},
		{name: "no query", parent: with("p", nil, query(page)), child: with("c", nil, use("page")), want: []string{"family page" + all}},
		{name: "fewer actions", parent: with("p", nil, use("user")), child: with("c", insertsOnly, use("user")), want: []string{"family user at update, delete, truncate"}},
		{name: "actions in two mappings", parent: with("p", nil, use("user")), child: with("c", insertsOnly, use("user")), more: []*MappingSpec{with("c", noInserts, use("user"))}},
		{name: "a predicate", parent: with("p", nil, use("user")), child: with("c", when("new.hot"), use("user")), want: []string{"family user at insert, update, delete"}},
		{name: "the same predicate", parent: with("p", when("new.hot"), use("user")), child: with("c", when("new.hot"), use("user"))},
		{name: "the parent's predicate only", parent: with("p", when("new.hot"), use("user")), child: with("c", nil, use("user"))},
		{name: "a list of columns", parent: with("p", nil, use("user")), child: with("c", columns("email"), use("user")), want: []string{"family user at update"}},
		{name: "a shorter list", parent: with("p", columns("email", "name"), use("user")), child: with("c", columns("email"), use("user")), want: []string{"family user at update"}},
		{name: "a longer list", parent: with("p", columns("email"), use("user")), child: with("c", columns("email", "name"), use("user"))},
		{name: "no dependents", parent: with("p", seller("seller:{id}"), use("user")), child: with("c", nil, use("user")), want: []string{"the dependents of seller" + all}},
		{name: "dependents by another column", parent: with("p", seller("seller:{id}")), child: with("c", seller("seller:{other}")), want: []string{"the dependents of seller" + all}},
		{name: "the same dependents", parent: with("p", seller("seller:{id}")), child: with("c", seller("seller:{id}"))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := usersFile(t)
			f.Mappings = append([]*MappingSpec{tc.parent, tc.child}, tc.more...)
			uses := mustCompile(t, f).Tables()
			child, parent := uses[0], uses[1]
			if got := parent.LeavesOut(child); !slices.Equal(got, tc.want) {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}
