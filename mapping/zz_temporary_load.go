package mapping

// TEMPORARY: non-strict loader so that other packages run. Deleted when parse.go/load.go are there.

import (
	"fmt"
	"os"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

func Load(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	type obj struct {
		Name string `yaml:"name"`
	}
	var raw struct {
		Source struct {
			URL         string `yaml:"url"`
			Slot        obj
			Publication obj
			Heartbeat   string
		}
		Redis struct {
			URL          string
			ReplayWindow string `yaml:"replay_window"`
			Dedicated    bool
		}
		Classes  map[string]struct{ Staleness string }
		Keys     map[string]struct{ Key, Tenant, Class, Version, TTL string }
		Mappings []struct {
			Table, Message, When string
			Actions, Columns     []string
			Keys                 []any
		}
	}
	if err := yaml.Unmarshal(data, &raw); err != nil {
		return nil, err
	}
	dur := func(s string, d time.Duration) time.Duration {
		if v, err := time.ParseDuration(s); err == nil {
			return v
		}
		return d
	}
	f := &File{Name: path, Version: 1}
	f.Source.URL = NewSecret(os.ExpandEnv(raw.Source.URL))
	f.Source.Slot = Slot{raw.Source.Slot.Name, true}
	f.Source.Publication = Publication{raw.Source.Publication.Name, true}
	f.Source.Heartbeat = dur(raw.Source.Heartbeat, 300*time.Millisecond)
	f.Redis = Redis{URL: NewSecret(os.ExpandEnv(raw.Redis.URL)), Prefix: "inv:", ReplayWindow: dur(raw.Redis.ReplayWindow, 30*time.Second), ScanRate: 20000, Dedicated: raw.Redis.Dedicated}
	classes := map[string]*Class{}
	for n, c := range raw.Classes {
		classes[n] = &Class{Name: n, Staleness: dur(c.Staleness, time.Second)}
		f.Classes = append(f.Classes, classes[n])
	}
	for n, k := range raw.Keys {
		t, err := ParseTemplate(k.Key)
		if err != nil {
			return nil, err
		}
		spec := &KeySpec{Name: n, Template: t, Tenant: k.Tenant, Class: classes[k.Class]}
		if k.Version != "" {
			if spec.Version, err = ParseTemplate(k.Version); err != nil {
				return nil, err
			}
		}
		f.Keys = append(f.Keys, spec)
	}
	for _, m := range raw.Mappings {
		s := &MappingSpec{Message: m.Message, When: m.When, Columns: m.Columns}
		s.Schema, s.Table, _ = strings.Cut(m.Table, ".")
		all := len(m.Actions) == 0
		has := func(a string) bool { return all || strings.Contains(strings.Join(m.Actions, ","), a) }
		s.Insert, s.Update, s.Delete, s.Truncate = has("insert"), has("update"), has("delete"), has("truncate")
		for _, k := range m.Keys {
			switch k := k.(type) {
			case string:
				s.Keys = append(s.Keys, &KeyUse{Family: k})
			case map[string]any:
				u := &KeyUse{Vars: map[string]string{}}
				for n, v := range k {
					switch n {
					case "for_each":
						u.ForEach = v.(string)
					case "max_rows":
						u.MaxRows = v.(int)
					default:
						u.Family = n
						for a, b := range v.(map[string]any) {
							u.Vars[a] = fmt.Sprint(b)
						}
					}
				}
				s.Keys = append(s.Keys, u)
			}
		}
		f.Mappings = append(f.Mappings, s)
	}
	return f, nil
}
