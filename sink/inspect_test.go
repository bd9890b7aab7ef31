package sink

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// What the tests of rights grant is what the rule that is printed grants.
func TestACLRule(t *testing.T) {
	granted := func(rule string) []string {
		var names []string
		for _, w := range strings.Fields(rule) {
			if strings.HasPrefix(w, "+") {
				names = append(names, w)
			}
		}
		slices.Sort(names)
		return names
	}
	for url, want := range map[string]string{
		"redis://h/1":           neededRights,
		"redis://h":             strings.Replace(neededRights, "+select ", "", 1),
		"redis+cluster://h1,h2": strings.Replace(neededRights, "+select ", "", 1) + " " + clusterRights,
	} {
		file := load(t, url)
		file.Redis.Dedicated = true
		plan, err := mapping.Compile(file)
		if err != nil {
			t.Fatal(err)
		}
		rule := ACLRule("u", file.Redis, plan.Families())
		file.Redis.StreamMaxLength = 1
		if got := granted(ACLRule("u", file.Redis, plan.Families())); !slices.Equal(got, granted(want+streamRight)) {
			t.Errorf("%s with a stream: %q", url, got)
		}
		if got := granted(rule); !slices.Equal(got, granted(want)) {
			t.Errorf("%s: %q, want %q", url, got, granted(want))
		}
		if !strings.HasPrefix(rule, "ACL SETUSER u reset on >PASSWORD ~inv:* ~kept:* ~page:* ~t:*:search ~t:*:search:*:* ~t:*:shelf:* ~t:*:shelf:*:*:* ~t:*:user:* ~t:*:usher:* ~top ~top:*:* +") {
			t.Errorf("%s: %s", url, rule)
		}
	}
}

// Inspecting finds each right that is missing, on any server of a cluster, and leaves
// nothing behind.
func TestInspect(t *testing.T) {
	c := newCluster(t)
	s, single := server(t)
	for _, tc := range []struct {
		url     string
		rights  string
		clients []*redis.Client
	}{
		{"redis://cdc:hunter2@" + s.Address() + "/1", neededRights, []*redis.Client{single}},
		{strings.Replace(c.url(), "://", "://cdc:hunter2@", 1), strings.Replace(neededRights, "+select ", "", 1) + " " + clusterRights, c.nodes},
	} {
		file := load(t, tc.url)
		file.Redis.Dedicated = true
		plan, err := mapping.Compile(file)
		if err != nil {
			t.Fatal(err)
		}
		setUser := func(clients []*redis.Client, rights ...string) {
			t.Helper()
			for _, n := range clients {
				args := []any{"acl", "setuser", "cdc", "on", ">hunter2"}
				for _, r := range rights {
					args = append(args, r)
				}
				if err := n.Do(t.Context(), args...).Err(); err != nil {
					t.Fatal(err)
				}
			}
		}
		expect := func(name string, commands, keys []string) {
			t.Helper()
			in, err := Inspect(t.Context(), file.Redis, plan.Families())
			if err != nil || !slices.Equal(in.MissingCommands, commands) || !slices.Equal(in.MissingKeys, keys) {
				t.Errorf("%s: %v; commands %q, keys %q", name, err, in.MissingCommands, in.MissingKeys)
			}
			for _, n := range in.Nodes {
				if n.Version == "" || n.Role != "master" || n.Policy == "" || n.Time.Sub(n.AskedAt).Abs() > time.Minute {
					t.Errorf("%+v", n)
				}
			}
		}
		rights := strings.Fields(tc.rights)
		setUser(tc.clients, rights...)
		expect("all", nil, nil)
		one := tc.clients[:1]
		for _, r := range rights {
			if name, ok := strings.CutPrefix(r, "+"); ok {
				setUser(one, "-"+name)
				expect(r, []string{name}, nil)
				setUser(one, rights...)
			}
		}
		setUser(one, "resetkeys", "~t:*:user:*", "~inv:*", "~t:*:search", "~t:*:search:*:*", "~t:*:shelf:*")
		expect("one family", nil, []string{"kept:*", "page:*", "t:*:usher:*", "top", "top:*:*"})
		setUser(one, rights...)
		for _, n := range tc.clients {
			if keys, err := n.DBSize(t.Context()).Result(); err != nil || keys != 0 {
				t.Errorf("%d keys, %v", keys, err)
			}
		}
	}
}
