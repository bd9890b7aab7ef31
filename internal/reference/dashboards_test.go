package reference

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var metricName = regexp.MustCompile(`\bcdc_invalidator_[a-z0-9_]+`)

// A rule or a panel on a metric that is not there says nothing, silently.
func TestRulesAndDashboardsNameMetricsThatExist(t *testing.T) {
	page, err := metricsPage()
	if err != nil {
		t.Fatal(err)
	}
	known := metricName.FindAllString(string(page), -1)
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
			// The series of a histogram.
			base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
			if !slices.Contains(known, name) && !slices.Contains(known, base) {
				t.Errorf("%s: there is no metric %s", path, name)
			}
		}
	}
}
