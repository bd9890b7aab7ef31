package sink

import (
	"os"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// The account that docker/secrets.sh makes for the daemon has the rights that the
// example needs, and no others.
func TestComposeGrantsWhatTheExampleNeeds(t *testing.T) {
	data, err := os.ReadFile("../mappings.yaml")
	if err != nil {
		t.Fatal(err)
	}
	urls := map[string]string{"DATABASE_URL": "postgres://db/shop", "REDIS_URL": "redis://redis:6379/0"}
	file, err := mapping.Parse("mappings.yaml", data, mapping.Env{LookupEnv: func(name string) (string, bool) { v, ok := urls[name]; return v, ok }})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := mapping.Compile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rights, _ := strings.Cut(ACLRule("invalidator", file.Redis, plan.Families()), ">PASSWORD ")
	script, err := os.ReadFile("../docker/secrets.sh")
	if err != nil {
		t.Fatal(err)
	}
	if want := "user invalidator reset on >$(stored redis_invalidator_password) " + rights + "\""; !strings.Contains(string(script), want) {
		t.Errorf("docker/secrets.sh does not have the line\n%s", want)
	}
}
