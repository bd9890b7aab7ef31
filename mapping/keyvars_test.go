package mapping

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestKeyVarsComeFromEveryMapping(t *testing.T) {
	f, err := Parse("m.yaml", []byte(`version: 1
source: {url: "postgres://x/y"}
redis: {url: "redis://x"}
classes: {c: {staleness: 1s}}
keys:
  user: {key: "u:{tenant}:{id}", tenant: tenant, class: c}
  list: {key: "l:{shop}:{version}:{q}", version: "l:{shop}", class: c}
  page: {key: "p:{id}", class: c}
mappings:
  - table: public.users
    keys: [user, {list: {shop: shop_id}}]
    dependents: ["seller:{id}"]
  - table: public.orders
    keys:
      - {user: {tenant: org, id: user_id}, for_each: "SELECT user_id FROM x WHERE o = {id}"}
    dependents: ["seller:{seller_id}"]
  - message: user.changed
    keys: [user]
`), Env{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		family string
		want   []string
	}{
		{"user", []string{
			"tenant: field tenant of message user.changed, column public.orders.org, column public.users.tenant",
			"id: field id of message user.changed, column user_id of the for_each query for public.orders, column public.users.id"}},
		{"list", []string{"shop: column public.users.shop_id", "q: "}},
		{"page", []string{"id: "}},
	} {
		family, _ := p.Family(tt.family)
		if got := describeVars(p.KeyVars(family)); !slices.Equal(got, tt.want) {
			t.Errorf("%s comes from\n%s\nwant\n%s", tt.family, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
		}
	}
	for _, e := range p.Entities() {
		if got, want := describeVars(e.KeyVars()), []string{"id: column public.orders.seller_id, column public.users.id"}; !slices.Equal(got, want) {
			t.Errorf("%s comes from %q, want %q", e.Kind, got, want)
		}
	}
}

func describeVars(vars []KeyVar) []string {
	var list []string
	for _, v := range vars {
		var sources []string
		for _, s := range v.Sources {
			sources = append(sources, s.String())
		}
		list = append(list, fmt.Sprintf("%s: %s", v.Name, strings.Join(sources, ", ")))
	}
	return list
}
