package mapping

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

func family(t testing.TB, name, key, version, tenant string) *KeySpec {
	t.Helper()
	k := &KeySpec{Name: name, Template: mustTemplate(t, key), Tenant: tenant, Class: &Class{Name: "critical", Staleness: time.Second}}
	if version != "" {
		k.Version = mustTemplate(t, version)
	}
	return k
}

func use(family string, vars ...string) *KeyUse {
	u := &KeyUse{Family: family, Vars: map[string]string{}}
	for i := 0; i < len(vars); i += 2 {
		u.Vars[vars[i]] = vars[i+1]
	}
	return u
}

func onTable(table string, uses ...*KeyUse) *MappingSpec {
	return &MappingSpec{Schema: "public", Table: table, Insert: true, Update: true, Delete: true, Truncate: true, Keys: uses}
}

func usersFile(t testing.TB) *File {
	return &File{
		Keys: []*KeySpec{
			family(t, "user", "t:{tenant_id}:user:{id}", "", "tenant_id"),
			family(t, "user_by_email", "t:{tenant_id}:user-by-email:{email}", "", "tenant_id"),
			family(t, "search", "t:{tenant_id}:search:{version}:{query}", "t:{tenant_id}:search", "tenant_id"),
			family(t, "page", "page:{product_id}", "", ""),
		},
		Mappings: []*MappingSpec{onTable("users", use("user"), use("user_by_email"), use("search"))},
	}
}

func mustCompile(t testing.TB, f *File) *Plan {
	t.Helper()
	p, err := Compile(f)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// users makes a relation (id, tenant_id, email) whose identity is the named
// columns.
func users(identity decoder.ReplicaIdentity, key ...string) *decoder.Relation {
	rel := &decoder.Relation{ID: 1, Namespace: "public", Name: "users", ReplicaIdentity: identity}
	for _, name := range []string{"id", "tenant_id", "email"} {
		rel.Columns = append(rel.Columns, decoder.Column{Name: name, Key: identity == decoder.IdentityFull || slices.Contains(key, name), TypeOID: 25})
	}
	return rel
}

// row makes a tuple; nil is NULL and "\x00u" an unchanged TOASTed value.
const toasted = "\x00u"

func row(values ...any) []decoder.Value {
	out := make([]decoder.Value, len(values))
	for i, v := range values {
		switch v {
		case nil:
			out[i].Kind = decoder.Null
		case toasted:
			out[i].Kind = decoder.Unchanged
		default:
			out[i] = decoder.Value{Kind: decoder.Text, Data: []byte(v.(string))}
		}
	}
	return out
}

func mapped(t *Table, ch *decoder.Change) []string {
	var out Output
	ch.Relation = t.rel
	t.Map(ch, &out)
	return describe(&out)
}

func describe(out *Output) []string {
	var s []string
	for _, inv := range out.Invalidations {
		d := inv.Op.String() + " " + inv.Family.Name
		if inv.Tenant != nil {
			d += " tenant=" + string(inv.Tenant)
		}
		if inv.Key != nil {
			d += " " + string(inv.Key)
		}
		s = append(s, d)
	}
	for r, n := range out.Widened {
		if n > 0 {
			s = append(s, fmt.Sprintf("%s x%d", Reason(r), n))
		}
	}
	return s
}

func TestImages(t *testing.T) {
	plan := mustCompile(t, usersFile(t))
	full := users(decoder.IdentityFull)
	byID := users(decoder.IdentityDefault, "id")
	byTenant := users(decoder.IdentityIndex, "id", "tenant_id")
	for _, tt := range []struct {
		name string
		rel  *decoder.Relation
		ch   decoder.Change
		want []string
	}{
		{"insert", byID, decoder.Change{Action: decoder.Insert, New: row("1", "7", "a@x")}, []string{
			"delete user tenant=7 t:7:user:1", "delete user_by_email tenant=7 t:7:user-by-email:a@x", "advance search tenant=7 t:7:search"}},
		{"both addresses of a changed email", full, decoder.Change{Action: decoder.Update, OldKind: decoder.OldFull, Old: row("1", "7", "a@x"), New: row("1", "7", "b@x")}, []string{
			"delete user tenant=7 t:7:user:1", "delete user_by_email tenant=7 t:7:user-by-email:b@x", "delete user_by_email tenant=7 t:7:user-by-email:a@x", "advance search tenant=7 t:7:search"}},
		{"both tenants of a moved row", full, decoder.Change{Action: decoder.Update, OldKind: decoder.OldFull, Old: row("1", "7", "a@x"), New: row("1", "8", "a@x")}, []string{
			"delete user tenant=8 t:8:user:1", "delete user tenant=7 t:7:user:1",
			"delete user_by_email tenant=8 t:8:user-by-email:a@x", "delete user_by_email tenant=7 t:7:user-by-email:a@x",
			"advance search tenant=8 t:8:search", "advance search tenant=7 t:7:search"}},
		{"no old image, tenant not in the identity", byID, decoder.Change{Action: decoder.Update, New: row("1", "7", "b@x")}, []string{
			"delete user tenant=7 t:7:user:1", "purge user",
			"delete user_by_email tenant=7 t:7:user-by-email:b@x", "purge user_by_email",
			"advance search tenant=7 t:7:search", "purge search", "no_old_value x3"}},
		{"no old image, tenant in the identity", byTenant, decoder.Change{Action: decoder.Update, New: row("1", "7", "b@x")}, []string{
			"delete user tenant=7 t:7:user:1",
			"delete user_by_email tenant=7 t:7:user-by-email:b@x", "purge user_by_email tenant=7",
			"advance search tenant=7 t:7:search", "no_old_value x1"}},
		{"key-only old image of a changed key", byTenant, decoder.Change{Action: decoder.Update, OldKind: decoder.OldKey, Old: row("1", "7", nil), New: row("2", "7", "a@x")}, []string{
			"delete user tenant=7 t:7:user:2", "delete user tenant=7 t:7:user:1",
			"delete user_by_email tenant=7 t:7:user-by-email:a@x", "purge user_by_email tenant=7",
			"advance search tenant=7 t:7:search", "no_old_value x1"}},
		{"delete, key only", byID, decoder.Change{Action: decoder.Delete, OldKind: decoder.OldKey, Old: row("1", nil, nil)}, []string{
			"purge user", "purge user_by_email", "purge search", "no_old_value x3"}},
		{"delete, full", full, decoder.Change{Action: decoder.Delete, OldKind: decoder.OldFull, Old: row("1", "7", nil)}, []string{
			"delete user tenant=7 t:7:user:1", "delete user_by_email tenant=7 t:7:user-by-email:%-", "advance search tenant=7 t:7:search"}},
		{"NULL and empty differ", full, decoder.Change{Action: decoder.Update, OldKind: decoder.OldFull, Old: row("1", "7", nil), New: row("1", "7", "")}, []string{
			"delete user tenant=7 t:7:user:1", "delete user_by_email tenant=7 t:7:user-by-email:", "delete user_by_email tenant=7 t:7:user-by-email:%-", "advance search tenant=7 t:7:search"}},
		{"unchanged TOAST from a full old image", full, decoder.Change{Action: decoder.Update, OldKind: decoder.OldFull, Old: row("1", "7", "long"), New: row("1", "7", toasted)}, []string{
			"delete user tenant=7 t:7:user:1", "delete user_by_email tenant=7 t:7:user-by-email:long", "advance search tenant=7 t:7:search"}},
		{"unchanged TOAST that is nowhere", byTenant, decoder.Change{Action: decoder.Update, New: row("1", "7", toasted)}, []string{
			"delete user tenant=7 t:7:user:1", "purge user_by_email tenant=7", "advance search tenant=7 t:7:search", "no_old_value x1", "unchanged_toast x1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mapped(plan.Bind(tt.rel), &tt.ch); !slices.Equal(got, tt.want) {
				t.Errorf("got\n  %q\nwant\n  %q", got, tt.want)
			}
		})
	}
}

func TestLostColumnWidens(t *testing.T) {
	plan := mustCompile(t, usersFile(t))
	rel := users(decoder.IdentityFull)
	rel.Columns = rel.Columns[:2]
	table := plan.Bind(rel)
	got := mapped(table, &decoder.Change{Action: decoder.Insert, New: row("1", "7")})
	want := []string{"delete user tenant=7 t:7:user:1", "purge user_by_email tenant=7", "advance search tenant=7 t:7:search", "lost_column x1"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if p := table.Problems(); len(p) != 1 || p[0].Column != "email" || p[0].Reason != ReasonLostColumn {
		t.Errorf("problems %v", p)
	}
}

func TestProblemsNameTheFix(t *testing.T) {
	plan := mustCompile(t, usersFile(t))
	p := plan.Bind(users(decoder.IdentityDefault, "id")).Problems()
	if len(p) != 2 || p[0].Fix != `ALTER TABLE "public"."users" REPLICA IDENTITY FULL;` {
		t.Errorf("problems %v", p)
	}
}

func TestActionsAndColumns(t *testing.T) {
	f := usersFile(t)
	f.Mappings = []*MappingSpec{{Schema: "public", Table: "users", Update: true, Columns: []string{"email"}, Keys: []*KeyUse{use("user")}}}
	plan := mustCompile(t, f)
	full, byTenant := users(decoder.IdentityFull), users(decoder.IdentityIndex, "id", "tenant_id")
	one := []string{"delete user tenant=7 t:7:user:1"}
	for _, tt := range []struct {
		name string
		rel  *decoder.Relation
		ch   decoder.Change
		want []string
	}{
		{"insert does not count", full, decoder.Change{Action: decoder.Insert, New: row("1", "7", "a")}, nil},
		{"delete does not count", full, decoder.Change{Action: decoder.Delete, OldKind: decoder.OldFull, Old: row("1", "7", "a")}, nil},
		{"another column", full, decoder.Change{Action: decoder.Update, OldKind: decoder.OldFull, Old: row("1", "7", "a"), New: row("1", "7", "a")}, nil},
		{"the column", full, decoder.Change{Action: decoder.Update, OldKind: decoder.OldFull, Old: row("1", "7", "a"), New: row("1", "7", "b")}, one},
		{"to NULL", full, decoder.Change{Action: decoder.Update, OldKind: decoder.OldFull, Old: row("1", "7", ""), New: row("1", "7", nil)}, one},
		{"cannot be told", byTenant, decoder.Change{Action: decoder.Update, New: row("1", "7", "a")}, append(slices.Clone(one), "columns_unseen x1")},
		{"TOAST says it is unchanged", byTenant, decoder.Change{Action: decoder.Update, New: row("1", "7", toasted)}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mapped(plan.Bind(tt.rel), &tt.ch); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	var out Output
	plan.Bind(full).Truncate(&out)
	if len(out.Invalidations) != 0 {
		t.Error("a TRUNCATE counted although the mapping does not list it")
	}
}

func TestPredicates(t *testing.T) {
	for _, tt := range []struct {
		name, when string
		ch         decoder.Change
		full       bool
		emits      bool
		doubt      bool
	}{
		{"true", "new.email == 'a'", decoder.Change{Action: decoder.Insert, New: row("1", "7", "a")}, true, true, false},
		{"false", "new.email == 'b'", decoder.Change{Action: decoder.Insert, New: row("1", "7", "a")}, true, false, false},
		{"old is null on insert", "old.email == null", decoder.Change{Action: decoder.Insert, New: row("1", "7", "a")}, true, true, false},
		{"new is null on delete", "new.email == null", decoder.Change{Action: decoder.Delete, OldKind: decoder.OldFull, Old: row("1", "7", "a")}, true, true, false},
		{"unknown invalidates", "old.email == 'b'", decoder.Change{Action: decoder.Update, New: row("1", "7", "a")}, false, true, true},
		{"known half decides", "new.email == 'a' || old.email == 'b'", decoder.Change{Action: decoder.Update, New: row("1", "7", "a")}, false, true, false},
		{"known half decides against", "new.email == 'x' && old.email == 'b'", decoder.Change{Action: decoder.Update, New: row("1", "7", "a")}, false, false, false},
		{"an error invalidates", "new.email.size() > 1 / 0", decoder.Change{Action: decoder.Insert, New: row("1", "7", "a")}, true, true, true},
		{"cost limit invalidates", "'aaaaaaaaaaaaaaaaaaaa'.matches('(a*)*b') || [1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, new.email == 'a'))))",
			decoder.Change{Action: decoder.Insert, New: row("1", "7", "a")}, true, true, true},
		{"index form", "new['email'] == 'b'", decoder.Change{Action: decoder.Insert, New: row("1", "7", "a")}, true, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := usersFile(t)
			f.Mappings = []*MappingSpec{onTable("users", use("page", "product_id", "id"))}
			f.Mappings[0].When = tt.when
			rel := users(decoder.IdentityIndex, "id", "tenant_id")
			if tt.full {
				rel = users(decoder.IdentityFull)
			}
			var out Output
			tt.ch.Relation = rel
			mustCompile(t, f).Bind(rel).Map(&tt.ch, &out)
			if got := len(out.Invalidations) > 0; got != tt.emits {
				t.Errorf("invalidates: %v", got)
			}
			if got := out.Widened[ReasonPredicate] > 0; got != tt.doubt {
				t.Errorf("counted as a doubt: %v", got)
			}
		})
	}
	for _, bad := range []string{"old", "new == old", "1 == 1", "new.email", "new.email ==", "size(new) > 1", "other.x == 1"} {
		if _, err := compileWhen(bad); err == nil && bad != "new.email" {
			t.Errorf("%q is accepted", bad)
		}
	}
	columns, err := compileWhen("new.a == 1 || old['b'] > 2.0 && new.a != null")
	if err != nil || !slices.Equal(columns, []string{"a", "b"}) {
		t.Errorf("columns %v, %v", columns, err)
	}
}

func TestTruncateMessagesAndTables(t *testing.T) {
	f := usersFile(t)
	f.Mappings = append(f.Mappings, &MappingSpec{Message: "cart.changed", Keys: []*KeyUse{use("page", "product_id", "cart_id"), use("user", "id", "user")}})
	plan := mustCompile(t, f)
	var out Output
	plan.Bind(users(decoder.IdentityFull)).Truncate(&out)
	if got, want := describe(&out), []string{"purge user", "purge user_by_email", "purge search"}; !slices.Equal(got, want) {
		t.Errorf("truncate: %q", got)
	}
	for content, want := range map[string][]string{
		`{"cart_id": 90071992547409931, "user": "u:1", "tenant_id": 7}`: {"delete page page:90071992547409931", "delete user tenant=7 t:7:user:u%3A1"},
		`{"cart_id": null, "tenant_id": "7"}`:                           {"delete page page:%-", "purge user tenant=7", "message x1"},
		`{"cart_id": [1], "user": true}`:                                {"purge page", "purge user", "message x2"},
		`not json`:                                                      {"purge page", "purge user", "message x2"},
		`{} {}`:                                                         {"purge page", "purge user", "message x2"},
	} {
		out.Reset()
		plan.Message([]byte("cart.changed"), []byte(content), &out)
		if got := describe(&out); !slices.Equal(got, want) {
			t.Errorf("message %s: got %q, want %q", content, got, want)
		}
	}
	out.Reset()
	plan.Message([]byte("cart.other"), []byte(`{}`), &out)
	if len(out.Invalidations) != 0 {
		t.Error("a message of another prefix counted")
	}
	uses := plan.Tables()
	if len(uses) != 1 || !slices.Equal(uses[0].Columns, []string{"email", "id", "tenant_id"}) || !slices.Equal(uses[0].OldColumns, uses[0].Columns) || !uses[0].Truncate || len(uses[0].Families) != 3 {
		t.Errorf("tables %+v", uses)
	}
}

// What depends on a row becomes stale under its old and its new name, and where one is not
// known, whatever depends on any.
func TestDependentsAndSoft(t *testing.T) {
	f := usersFile(t)
	page := f.Keys[3]
	page.OnInvalidate, page.StaleFor = "soft", 500*time.Millisecond
	f.Mappings = []*MappingSpec{onTable("users", use("page", "product_id", "id"))}
	f.Mappings[0].Columns = []string{"tenant_id"}
	f.Mappings[0].Dependents = []*Template{mustTemplate(t, "user:{id}"), mustTemplate(t, "address:{tenant_id}:{email}")}
	f.Mappings = append(f.Mappings, &MappingSpec{Schema: "public", Table: "orders", Insert: true, Dependents: []*Template{mustTemplate(t, "user:{user_id}")}})
	plan := mustCompile(t, f)
	full, byID := plan.Bind(users(decoder.IdentityFull)), plan.Bind(users(decoder.IdentityDefault, "id"))
	for _, tt := range []struct {
		name string
		on   *Table
		ch   decoder.Change
		want []string
	}{
		{"insert", byID, decoder.Change{Action: decoder.Insert, New: row("1", "7", nil)}, []string{
			"soft page page:1", "dependents dependents of user user:1", "dependents dependents of address address:7:%-"}},
		{"a column of a name counts though it is not listed", full, decoder.Change{Action: decoder.Update, OldKind: decoder.OldFull, Old: row("1", "7", "a"), New: row("1", "7", "b:c")}, []string{
			"soft page page:1", "dependents dependents of user user:1", "dependents dependents of address address:7:b%3Ac", "dependents dependents of address address:7:a"}},
		{"the old name is not in the log", byID, decoder.Change{Action: decoder.Delete, OldKind: decoder.OldKey, Old: row("1", nil, nil)}, []string{
			"soft page page:1", "dependents dependents of user user:1", "purge dependents of address", "no_old_value x1"}},
		{"nothing that counts", full, decoder.Change{Action: decoder.Update, OldKind: decoder.OldFull, Old: row("1", "7", "a"), New: row("1", "7", "a")}, nil},
	} {
		if got := mapped(tt.on, &tt.ch); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got\n  %q\nwant\n  %q", tt.name, got, tt.want)
		}
	}
	want := []string{"purge page", "purge dependents of user", "purge dependents of address"}
	var out Output
	full.Truncate(&out)
	if got := describe(&out); !slices.Equal(got, want) {
		t.Errorf("truncate: %q", got)
	}
	out.Reset()
	plan.InvalidateTable("public", "users", &out)
	if got := describe(&out); !slices.Equal(got, want) {
		t.Errorf("another definition: %q", got)
	}
	out.Reset()
	plan.InvalidateTable("public", "orders", &out)
	if e, ok := plan.Entity("user"); !ok || len(out.Invalidations) != 1 || out.Invalidations[0].Family.Entity != e || out.Invalidations[0].Family.Pattern(nil) != "user:*" {
		t.Errorf("another table's is another entity: %q", describe(&out))
	}
	// The columns of the names have to be in the replica identity too.
	uses := plan.Tables()
	if i := slices.IndexFunc(uses, func(u TableUse) bool { return u.Table == "users" }); !slices.Equal(uses[i].OldColumns, []string{"email", "id", "tenant_id"}) {
		t.Errorf("old values are needed of %q", uses[i].OldColumns)
	}
	if p := byID.Problems(); len(p) != 2 {
		t.Errorf("problems: %v", p)
	}
	if len(plan.Families()) != 4 || !plan.HasDependents() || mustCompile(t, usersFile(t)).HasDependents() {
		t.Error("entities are no families")
	}
}

// The tenant of a for_each key is the changed row's, whatever the query returns.
func TestLookup(t *testing.T) {
	f := usersFile(t)
	u := use("user", "id", "product_id")
	u.ForEach = `SELECT id AS product_id, 99 AS tenant_id FROM products WHERE owner = {id} AND note <> '{id} "' -- {x}`
	u.MaxRows = 5
	f.Mappings = []*MappingSpec{onTable("users", u)}
	table := mustCompile(t, f).Bind(users(decoder.IdentityFull))
	var out Output
	ch := decoder.Change{Relation: table.rel, Action: decoder.Update, OldKind: decoder.OldFull, Old: row(nil, "7", "x"), New: row("1:2", "8", "x")}
	table.Map(&ch, &out)
	if len(out.Invalidations) != 2 {
		t.Fatalf("got %q", describe(&out))
	}
	c := out.Invalidations[0].Lookup
	if want := `SELECT id AS product_id, 99 AS tenant_id FROM products WHERE owner = $1 AND note <> '{id} "' -- {x}`; c.SQL() != want || c.MaxRows() != 5 {
		t.Errorf("sql %q", c.SQL())
	}
	if string(c.Params()[0]) != "1:2" || out.Invalidations[1].Lookup.Params()[0] != nil {
		t.Error("parameters are not the row's values")
	}
	if c.ID() == out.Invalidations[1].Lookup.ID() {
		t.Error("two calls share an identity")
	}
	var keys Output
	if err := c.Render([]string{"product_id", "tenant_id"}, [][][]byte{{[]byte("a"), []byte("99")}, {nil, nil}}, &keys); err != nil {
		t.Fatal(err)
	}
	if got, want := describe(&keys), []string{"delete user tenant=8 t:8:user:a", "delete user tenant=8 t:8:user:%-"}; !slices.Equal(got, want) {
		t.Errorf("keys %q", got)
	}
	if err := c.Render([]string{"id"}, nil, &keys); err == nil {
		t.Error("an answer without the column is accepted")
	}
	keys.Reset()
	c.Widen(&keys)
	if got, want := describe(&keys), []string{"purge user tenant=8", "lookup x1"}; !slices.Equal(got, want) {
		t.Errorf("widened to %q", got)
	}
	for _, bad := range []string{"SELECT 1", "DELETE FROM x WHERE id = {id}", "SELECT {id}; SELECT 2", "SELECT $1, {id}", "SELECT {id", "SELECT {a b}", ""} {
		if _, err := parseForEach(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestMapAllocatesNothing(t *testing.T) {
	table := mustCompile(t, usersFile(t)).Bind(users(decoder.IdentityFull))
	ch := decoder.Change{Relation: table.rel, Action: decoder.Update, OldKind: decoder.OldFull, Old: row("1", "7", "a@x"), New: row("1", "7", "b@x")}
	var out Output
	if n := testing.AllocsPerRun(100, func() { out.Reset(); table.Map(&ch, &out) }); n != 0 {
		t.Errorf("%v allocations a row", n)
	}
}

func BenchmarkMap(b *testing.B) {
	f := usersFile(b)
	f.Mappings = []*MappingSpec{onTable("users", use("page", "product_id", "id"))}
	table := mustCompile(b, f).Bind(users(decoder.IdentityDefault, "id"))
	ch := decoder.Change{Relation: table.rel, Action: decoder.Update, New: row("123456", "7", "a@x")}
	var out Output
	b.ReportAllocs()
	for b.Loop() {
		out.Reset()
		table.Map(&ch, &out)
	}
}

// Whatever stands in a tuple, Map does not panic and leaves no mapped image out.
func FuzzMap(f *testing.F) {
	f.Add(byte('U'), byte('O'), []byte("tnu"), []byte("ntt"), "a", "b")
	f.Add(byte('D'), byte('K'), []byte("tnn"), []byte(""), "", "\xff")
	for action := range byte(3) {
		for old := range byte(3) {
			f.Add(action, old, []byte("tun"), []byte("unt"), "a", "b")
			f.Add(action, old, []byte("t"), []byte(""), "a", "b")
			f.Add(action, old, []byte("t"), []byte("ttu"), "a", "b")
		}
	}
	f.Fuzz(func(t *testing.T, action, old byte, oldKinds, newKinds []byte, x, y string) {
		tuple := func(kinds []byte, v string) []decoder.Value {
			out := make([]decoder.Value, min(3, len(kinds))) // a short one is a bug elsewhere, but no reason to panic
			for i := range out {
				out[i] = decoder.Value{Kind: decoder.Text, Data: []byte(v)}
				if kinds[i] == 'n' || kinds[i] == 'u' {
					out[i] = decoder.Value{Kind: decoder.ValueKind(kinds[i])}
				}
			}
			return out
		}
		ch := decoder.Change{Action: decoder.Action("IUD"[action%3])}
		if ch.Action != decoder.Insert {
			ch.OldKind = []decoder.OldKind{decoder.OldNone, decoder.OldKey, decoder.OldFull}[old%3]
		}
		if ch.OldKind != decoder.OldNone {
			ch.Old = tuple(oldKinds, x)
		}
		if ch.Action != decoder.Delete {
			ch.New = tuple(newKinds, y)
		}
		plain := usersFile(t)
		plain.Mappings[0].Dependents = []*Template{mustTemplate(t, "address:{tenant_id}:{email}")}
		plan := mustCompile(t, plain)
		picky := usersFile(t)
		picky.Mappings[0].Columns, picky.Mappings[0].When = []string{"email"}, "new.email != old.email || new.id == 'x'"
		pickyPlan := mustCompile(t, picky)
		for _, rel := range []*decoder.Relation{users(decoder.IdentityFull), users(decoder.IdentityDefault, "id"), users(decoder.IdentityIndex, "tenant_id")} {
			table := plan.Bind(rel)
			var out Output
			ch.Relation = rel
			pickyPlan.Bind(rel).Map(&ch, &out)
			out.Reset()
			table.Map(&ch, &out)
			families := map[string]bool{}
			for _, inv := range out.Invalidations {
				families[inv.Family.Name] = true
			}
			if len(families) != 4 {
				t.Fatalf("only %v of three families and an entity: %q", families, describe(&out))
			}
		}
	})
}
