package sink

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

const testMappings = `
version: 1
source:
  url: postgres://127.0.0.1/shop
  region: eu-west-1
  slot: {name: shop}
  publication: {name: shop}
redis:
  url: %q
classes:
  critical: {staleness: 1s}
  slow: {staleness: 1m}
  kept: {staleness: 1m, fail_safe: 1h}
keys:
  user: {key: "t:{tenant_id}:user:{id}", tenant: tenant_id, class: critical}
  usher: {key: "t:{tenant_id}:usher:{id}", tenant: tenant_id, class: critical}
  search: {key: "t:{tenant_id}:search:{version}:{query}", tenant: tenant_id, class: critical, version: "t:{tenant_id}:search"}
  top: {key: "top:{version}:{query}", class: critical, version: "top"}
  page: {key: "page:{id}", class: slow, on_invalidate: soft, stale_for: 10s}
  kept: {key: "kept:{id}", class: kept, on_invalidate: soft, stale_for: 10s}
  shelf: {key: "t:{tenant_id}:shelf:{shelf}:{version}:{query}", tenant: tenant_id, class: critical, version: "t:{tenant_id}:shelf:{shelf}"}
mappings:
  - table: public.users
    keys: [user]
  - table: public.ushers
    keys: [usher]
  - table: public.products
    keys: [{search: {tenant_id: tenant_id}}, top, shelf, page, kept]
    dependents: ["product:{id}"]
`

func load(t testing.TB, url string) *mapping.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mappings.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, testMappings, url), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := mapping.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func family(t testing.TB, name string) *mapping.Family {
	t.Helper()
	plan, err := mapping.Compile(load(t, "redis://127.0.0.1:6379/0"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range plan.Families() {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no family %s", name)
	return nil
}

func plain(t testing.TB) *mapping.Family     { t.Helper(); return family(t, "user") }
func versioned(t testing.TB) *mapping.Family { t.Helper(); return family(t, "search") }
