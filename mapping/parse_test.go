package mapping

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite testdata/bad/*.want")

// environment is a made-up environment; "file:PATH" is the content of a file.
func environment(vars map[string]string) Env {
	return Env{
		LookupEnv: func(name string) (string, bool) { v, ok := vars[name]; return v, ok },
		ReadFile: func(path string) ([]byte, error) {
			if v, ok := vars["file:"+path]; ok {
				return []byte(v), nil
			}
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		},
	}
}

const secret = "hunter2"

func testEnv() Env {
	return environment(map[string]string{
		"DATABASE_URL": "postgres://app:" + secret + "@db/shop", "REDIS_URL": "redis://:" + secret + "@cache:6379",
		"CREATE": "false", "TEMPLATE": "{" + secret, "EMPTY": "", "file:/run/redis_url": "rediss://cache:6380\n",
	})
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func fixtures(t testing.TB, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %v, %v", pattern, paths, err)
	}
	return paths
}

// Every file in testdata/bad is named after what is wrong with it; beside it
// stands all that is to be said about it.
func TestBadFiles(t *testing.T) {
	for _, path := range fixtures(t, "testdata/bad/*.yaml") {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			_, err := Parse(name, readFile(t, path), testEnv())
			var faults Faults
			if !errors.As(err, &faults) || len(faults) == 0 {
				t.Fatalf("no faults, but %v", err)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("a secret is shown:\n%v", err)
			}
			for _, f := range faults {
				if f.Line < 1 || f.Col < 1 {
					t.Errorf("a fault without a place: %v", f)
				}
			}
			golden := strings.TrimSuffix(path, ".yaml") + ".want"
			if *update {
				if err := os.WriteFile(golden, []byte(err.Error()+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := string(readFile(t, golden)); err.Error()+"\n" != want {
				t.Errorf("faults:\n%v\nwant:\n%s", err, want)
			}
		})
	}
}

func TestGoodFilesParseAndCompile(t *testing.T) {
	for _, path := range fixtures(t, "testdata/good/*.yaml") {
		f, err := Parse(path, readFile(t, path), testEnv())
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		if _, err := Compile(f); err != nil {
			t.Errorf("%s: parsed, but not compiled: %v", path, err)
		}
	}
}

func TestEverythingIsRead(t *testing.T) {
	path := "testdata/good/everything.yaml"
	f, err := Parse(path, readFile(t, path), testEnv())
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, got, want any) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	s, r := f.Source, f.Redis
	check("source url", s.URL.Reveal(), "postgres://app:hunter2@db/shop")
	check("source", []any{s.Region, s.Slot, s.Publication, s.Heartbeat}, []any{"eu-west-1", Slot{"shop", true}, Publication{"shop_pub", false}, time.Duration(0)})
	check("redis url", r.URL.Reveal(), "rediss://cache:6380")
	check("redis", []any{r.Prefix, r.Dedicated, r.ReplayWindow, r.ScanRate, r.StreamMaxLength}, []any{"ci:", true, time.Minute, 500, 4096})
	var classes, keys, mappings []any
	for _, c := range f.Classes {
		classes = append(classes, *c)
	}
	check("classes", classes, []Class{
		{"critical", time.Second, 0, 0, 0, "bypass"}, {"important", 30 * time.Second, 200 * time.Millisecond, 0, 0, "bypass"},
		{"best_effort", 10 * time.Minute, 5 * time.Second, 10, time.Hour, "serve"}, {"other", time.Second, 0, 0, 0, "bypass"}})
	for _, k := range f.Keys {
		keys = append(keys, fmt.Sprint(k.Name, " ", k.Template, " ", k.Version, " ", k.Tenant, " ", k.Class.Name, " ", k.TTL, " ", k.OnInvalidate, " ", k.StaleFor, " ", k.NegativeTTL))
	}
	check("keys", keys, []string{
		"user t:{tenant_id}:user:{id} <nil> tenant_id critical 10m0s delete 0s 1m0s",
		"page page:{product_id} <nil>  important 0s soft 5s 0s",
		"search t:{tenant_id}:search:{version}:{query} t:{tenant_id}:search tenant_id best_effort 0s delete 0s 1m0s",
		"all all:{version} all  other 0s delete 0s 1m0s",
		"price price${id} <nil>  other 0s delete 0s 1m0s home home <nil>  other 0s delete 0s 1m0s"})
	for _, m := range f.Mappings {
		var uses []any
		for _, u := range m.Keys {
			uses = append(uses, fmt.Sprintf("%s %v %q %d", u.Family, u.Vars, u.ForEach, u.MaxRows))
		}
		mappings = append(mappings, fmt.Sprint(m.Schema, "/", m.Table, "/", m.Message, m.Insert, m.Update, m.Delete, m.Truncate, m.Columns, m.When, uses, m.Dependents, m.Line, "\n"))
	}
	check("mappings", mappings, []string{
		"public/users/true true true true [][user map[id:id tenant_id:tenant_id] \"\" 0 all map[] \"\" 0] [] 28\n",
		"shop/Products/true true false false [name]new.status == 'live'[page map[product_id:id] \"\" 0 search map[tenant_id:tenant_id] \"\" 0 all map[] \"\" 0] [] 30\n",
		"public/sellers/true true true true [][page map[product_id:product_id] \"SELECT id AS product_id\\nFROM products WHERE seller_id = {id}\\n\" 50] [seller:{id}] 35\n",
		"//cart.changedfalse false false false [][user map[id:user tenant_id:tenant] \"\" 0 price map[id:id] \"\" 0] [] 43\n"})
}

const head = "version: 1\nsource: {url: \"${DATABASE_URL}\"}\nredis: {url: \"${REDIS_URL}\"}\n"

func TestDefaults(t *testing.T) {
	for staleness, heartbeat := range map[string]time.Duration{
		"3s": time.Second, "150ms": 100 * time.Millisecond, "1h": 10 * time.Second, "1s": time.Second / 3} {
		// The strictest class is of no use to any family.
		f, err := Parse("f", []byte(head+"classes: {a: {staleness: "+staleness+"}, unused: {staleness: 100ms}, b: {staleness: 2h}}\n"+
			"keys: {user: {key: 'user:{id}', class: a}, u: {key: 'u:{id}', class: b}}\nmappings: [{table: public.users, keys: [user, u]}]\n"), testEnv())
		if err != nil {
			t.Fatal(err)
		}
		if f.Source.Heartbeat != heartbeat {
			t.Errorf("staleness %s: heartbeat %s, want %s", staleness, f.Source.Heartbeat, heartbeat)
		}
		f.Source.URL, f.Redis.URL, f.Source.Heartbeat = Secret{}, Secret{}, 0
		if want := (Redis{Prefix: "inv:", ReplayWindow: 30 * time.Second, ScanRate: 20_000}); f.Redis != want {
			t.Errorf("redis %+v", f.Redis)
		}
		if want := (Source{Slot: Slot{Name: "cdc_invalidator"}, Publication: Publication{Name: "cdc_invalidator"}, DefaultHeartbeat: true}); f.Source != want {
			t.Errorf("source %+v", f.Source)
		}
	}
}

func TestURLsOfSockets(t *testing.T) {
	for url, good := range map[string]bool{
		"unix:///run/redis.sock": true, "unix://:secret@/run/redis.sock?db=1": true, "unix://inv:s%40@/run/redis.sock": true,
		"unix://run/redis.sock": false, "unix://:secret@run/redis.sock": false, "unix://:secret@": false,
	} {
		if problem := redisURLProblem(url); (problem == "") != good {
			t.Errorf("%s: %q", url, problem)
		}
	}
}

// A file is checked where it was written, which is not where its variables are.
func TestAllowUnsetIsForTheURLsOnly(t *testing.T) {
	data := []byte("version: 1\nsource: {url: \"${DATABASE_URL}\", region: \"${REGION}\"}\nredis: {url: \"${file:/run/secrets/redis}\"}\n" +
		"classes: {a: {staleness: 1s}}\nkeys: {user: {key: 'user:{id}', class: a}}\nmappings: [{table: public.users, keys: [user]}]\n")
	env := environment(nil)
	_, err := Parse("f", data, env)
	var faults Faults
	if !errors.As(err, &faults) || len(faults) != 3 {
		t.Errorf("want three faults: %v", err)
	}
	env.AllowUnset = true
	_, err = Parse("f", data, env)
	if !errors.As(err, &faults) || len(faults) != 1 || faults[0].Field != "source.region" {
		t.Errorf("want a fault in source.region: %v", err)
	}
	if _, err := Parse("f", data, Env{}); !errors.As(err, &faults) || len(faults) != 3 {
		t.Errorf("without an environment: %v", err)
	}
}

// What a variable holds is a value, whatever it looks like.
func TestVariablesCannotBecomeStructure(t *testing.T) {
	env := testEnv()
	env.LookupEnv = func(string) (string, bool) { return "redis://h/0\nprefix: 'x:' # {a: b}", true }
	data := []byte("version: 1\nsource: {url: postgres://db/shop, region: $NAME $$ ${R}}\nredis:\n  url: redis://h\nclasses: {a: {staleness: 1s}}\n" +
		"keys: {user: {key: 'user:{id}', class: a}}\nmappings: [{table: public.users, keys: [user]}]\n")
	if _, err := Parse("f", data, env); err == nil {
		t.Fatal("a } in a plain scalar of a flow mapping ends the mapping")
	}
	data = []byte(strings.Replace(string(data), "$NAME $$ ${R}", "'$NAME $$ ${R}'", 1))
	f, err := Parse("f", data, env)
	if err != nil {
		t.Fatal(err)
	}
	if want := "$NAME $ redis://h/0\nprefix: 'x:' # {a: b}"; f.Source.Region != want || f.Redis.Prefix != "inv:" {
		t.Errorf("region %q, prefix %q", f.Source.Region, f.Redis.Prefix)
	}
}

func TestExpand(t *testing.T) {
	env := environment(map[string]string{"A": "1", "EMPTY": "", "file:/f": "x\ny\r\n\n", "F_FILE": "/f", "A_FILE": "/f", "EMPTY_FILE": "", "G_FILE": "/none", "D": "$$ ${A}"})
	for in, want := range map[string]string{
		"": "", "plain": "plain", "${A}": "1", "a${A}b${A}c": "a1b1c", "${B:-x}": "x", "${EMPTY:-x}": "x", "${EMPTY}": "", "${B:-}": "",
		"${A:-x}": "1", "$$": "$", "$${A}": "${A}", "$A $": "$A $", "$1": "$1", "${file:/f}": "x\ny", "${F}": "x\ny", "${F:-d}": "x\ny", "${D}": "$$ ${A}", "${B:-a:-b}": "a:-b",
	} {
		if got, err := env.expand(in); err != nil || got != want {
			t.Errorf("%q is expanded to %q, %+v; want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"${B}": "variable B is not set", "${A": "without '}'", "${}": "not a reference", "${A-b}": "not a reference", "${file:}": "names no file",
		"${file:/none}": "read /none: file does not exist", "${G:-a secret file that is missing is no reason for a default}": "read /none: file does not exist",
	} {
		if got, err := env.expand(in); err == nil || !strings.Contains(err.problem, want) {
			t.Errorf("%q is expanded to %q, %+v; want an error with %q", in, got, err, want)
		}
	}
}

// Aliases make a short file stand for a long one.
func TestAliasesAreBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString(head + "classes: {a: {staleness: 1s}}\nkeys: {user: {key: 'user:{id}', class: a}}\nmappings:\n")
	b.WriteString("  - {table: public.users, columns: &c [" + strings.Repeat("c, ", 999) + "c]}\n")
	b.WriteString("  - &m {table: public.users, columns: *c, keys: [user]}\n")
	for range 20_000 {
		b.WriteString("  - *m\n")
	}
	_, err := Parse("f", []byte(b.String()), testEnv())
	var faults Faults
	if !errors.As(err, &faults) || len(faults) > maxFaults+1 || !strings.Contains(err.Error(), "more faults, which are not shown") {
		t.Errorf("%d faults", len(faults))
	}
	many := head + "classes: {a: {staleness: 1s}}\nkeys: {user: {key: 'user:{id}', class: a}}\nmappings:\n  - &m {table: public.users, keys: &k [" +
		strings.Repeat("{user: {id: id}, for_each: 'SELECT 1'}, ", 90) + "user]}\n" + strings.Repeat("  - *m\n", 5000)
	if _, err := Parse("f", []byte(many), testEnv()); err == nil {
		t.Error("no fault")
	}
	wide := head + "classes: {a: {staleness: 1s}}\nkeys: {user: {key: 'user:{id}', class: a}}\nmappings:\n  - &m {table: public.users, columns: [" + numbered(300) + "], keys: [user]}\n" + strings.Repeat("  - *m\n", 5000)
	if _, err := Parse("f", []byte(wide), testEnv()); err == nil || !strings.Contains(err.Error(), "stands for more than 100000 values") {
		t.Errorf("%v", err)
	}
	cycle := head + "classes: &c {a: *c}\nkeys: &k [*k]\nmappings: &m [*m]\n"
	if _, err := Parse("f", []byte(cycle), testEnv()); err == nil {
		t.Error("a mapping inside of itself is no fault")
	}
}

func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "c%d, ", i)
	}
	return b.String()
}

func TestLoad(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	t.Setenv("DATABASE_URL", "postgres://db/shop")
	t.Setenv("REDIS_URL", "redis://cache")
	if f, err := Load(exampleFile); err != nil || f.Source.URL.Reveal() != "postgres://db/shop" {
		t.Errorf("%v", err)
	}
	_, err := Load("testdata/bad/empty.yaml")
	if faults := (Faults{}); !errors.As(err, &faults) || faults[0].File != "testdata/bad/empty.yaml" {
		t.Errorf("%v", err)
	}
}

func TestMeet(t *testing.T) {
	for _, tc := range []struct {
		glob, key string
		want      bool
	}{
		{"a:{x}", "a:{x}", true}, {"a:{x}", "b:{x}", false}, {"a:{x}", "a:{x}:b", true}, {"a:{x}:c", "a:{x}:b", false},
		{"{x}", "anything", true}, {"t:{x}:user:{y}", "t:{x}:search", false}, {"t:{x}:s{y}", "t:{x}:search", true},
		{"a:{x}", "a", false}, {"a:{x}", "a:", true}, {"{x}:z", "a:{x}:{y}", true}, {"{x}:z", "a:{x}:{y}q", false}, {"{x}z", "a:{x}:{y}z", true},
		{"p:{x}:q", "p:q", false}, {"p:{x}q", "p:q", true},
	} {
		if got := meet(tokens(mustTemplate(t, tc.glob), nil, true), tokens(mustTemplate(t, tc.key), nil, false)); got != tc.want {
			t.Errorf("%s and %s: %v, want %v", tc.glob, tc.key, got, tc.want)
		}
	}
}

// Whatever is in a file: no panic, faults with a place, and what parses compiles.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml", exampleFile} {
		for _, path := range fixtures(f, pattern) {
			f.Add(readFile(f, path))
		}
	}
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("? {a: b}\n: c\n"))
	f.Add([]byte("\xff\xfev\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse("f", data, testEnv())
		if err != nil {
			var faults Faults
			if !errors.As(err, &faults) || len(faults) == 0 || file != nil {
				t.Fatalf("%T: %v", err, err)
			}
			lines := len(lineBreak.Split(string(data), -1))
			for _, fault := range faults {
				if fault.Line < 1 && len(data) < maxFileSize || fault.Line > lines || fault.Message == "" {
					t.Fatalf("%+v", fault)
				}
			}
			if !strings.Contains(string(data), secret) && strings.Contains(err.Error(), secret) {
				t.Fatalf("a secret is shown: %v", err)
			}
			return
		}
		if _, err := Compile(file); err != nil {
			t.Fatalf("parsed, but not compiled: %v", err)
		}
	})
}

func TestHold(t *testing.T) {
	for _, tc := range []struct {
		c    Class
		want time.Duration
	}{
		{Class{Staleness: time.Second}, 0},
		{Class{Staleness: time.Minute, Linger: 5 * time.Second}, 5 * time.Second},
		{Class{Staleness: time.Minute, MaxRate: 10}, 30 * time.Second},
		{Class{Staleness: time.Minute, Linger: 40 * time.Second, MaxRate: 10}, 40 * time.Second},
	} {
		if got := tc.c.Hold(); got != tc.want || tc.c.Held() != (tc.want > 0) {
			t.Errorf("%+v: held for %v, want %v", tc.c, got, tc.want)
		}
	}
}

func TestEntities(t *testing.T) {
	path := "testdata/good/everything.yaml"
	f, err := Parse(path, readFile(t, path), testEnv())
	if err != nil {
		t.Fatal(err)
	}
	plan, err := Compile(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := plan.Entity("buyer"); ok {
		t.Error("an entity that no mapping has")
	}
	seller, ok := plan.Entity("seller")
	if !ok {
		t.Fatal("no entity seller")
	}
	if seller.Kind != "seller" || seller.Vars != 1 {
		t.Errorf("the entity is %s with %d variables", seller.Kind, seller.Vars)
	}
	if got := DependentsKey("inv:", "seller:42"); got != "inv:dep:seller:42" {
		t.Errorf("key %s", got)
	}
}
