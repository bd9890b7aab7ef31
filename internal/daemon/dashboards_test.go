package daemon

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

var metricName = regexp.MustCompile(`\bcdc_invalidator_[a-z0-9_]+`)

// A rule or a panel on a metric that is not there says nothing, silently.
func TestRulesAndDashboardsNameMetricsThatExist(t *testing.T) {
	known := metricNames(t)
	files := []string{"../../docker/prometheus/rules.yml"}
	dashboards, err := filepath.Glob("../../docker/grafana/dashboards/*.json")
	if err != nil || len(dashboards) == 0 {
		t.Fatalf("dashboards: %q, %v", dashboards, err)
	}
	for _, path := range append(files, dashboards...) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, ".json") && !json.Valid(data) {
			t.Errorf("%s is not JSON", path)
		}
		names := metricName.FindAllString(string(data), -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric", path)
		}
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				name = strings.TrimSuffix(name, suffix)
			}
			if !known[name] {
				t.Errorf("%s: there is no metric %s", path, name)
			}
		}
	}
}

var described = regexp.MustCompile(`fqName: "([^"]+)"`)

// metricNames are the names of a daemon's metrics, those without a value yet included.
func metricNames(t *testing.T) map[string]bool {
	t.Helper()
	file, err := mapping.Parse("mappings.yaml", []byte(`
version: 1
source: {url: "postgres://127.0.0.1:1/none", slot: {name: s}, publication: {name: p}}
redis: {url: "redis://127.0.0.1:1"}
classes: {critical: {staleness: 1s}}
keys: {item: {key: "item:{id}", class: critical}}
mappings: [{table: public.items, keys: [item]}]
`), mapping.Env{})
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	d, err := newDaemon(Options{File: file, Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	defer d.sink.Close()
	names := map[string]bool{"cdc_invalidator_build_info": true} // of the process: internal/cli
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		registry.Describe(descs)
		admin.DescribeConditions(descs)
	}()
	for desc := range descs {
		if m := described.FindStringSubmatch(desc.String()); m != nil {
			names[m[1]] = true
		}
	}
	return names
}
