package mapping

import (
	"os"
	"slices"
	"testing"
	"time"
)

const exampleFile = "../mappings.yaml"

// The example is what users copy: it has to be right as it stands.
func TestExampleFile(t *testing.T) {
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse("mappings.yaml", data, environment(map[string]string{
		"DATABASE_URL": "postgres://shop:secret@db/shop", "REDIS_URL": "redis://cache:6379/0"}))
	if err != nil {
		t.Fatal(err)
	}
	if f.Source.Region != "local" || f.Source.Heartbeat != 300*time.Millisecond || f.Source.URL.Reveal() != "postgres://shop:secret@db/shop" {
		t.Errorf("source %+v", f.Source)
	}
	plan, err := Compile(f)
	if err != nil {
		t.Fatal(err)
	}
	var families, tables []string
	for _, fam := range plan.Families() {
		families = append(families, fam.Name)
	}
	for _, u := range plan.Tables() {
		tables = append(tables, u.Schema+"."+u.Table)
	}
	if want := []string{"user", "user_by_email", "product_page", "stock", "cart", "search"}; !slices.Equal(families, want) {
		t.Errorf("families %v, want %v", families, want)
	}
	if want := []string{"public.products", "public.sellers", "public.stock", "public.users"}; !slices.Equal(tables, want) {
		t.Errorf("tables %v, want %v", tables, want)
	}
	out := &Output{}
	plan.Message([]byte("cart.changed"), []byte(`{"cart_id": 7}`), out)
	if len(out.Invalidations) != 1 || string(out.Invalidations[0].Key) != "cart:7" {
		t.Errorf("the message makes %v stale", out.Invalidations)
	}
}
