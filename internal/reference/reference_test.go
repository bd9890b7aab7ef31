package reference

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/cdc-invalidator/cdc-invalidator/internal/cli"
)

const root = "../.."

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDerivedFilesAreCurrent(t *testing.T) {
	files, err := Files(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		have, err := os.ReadFile(filepath.Join(root, f.Path))
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(have, f.Content) {
			t.Errorf("%s is not what the code says; run: go generate ./...", f.Path)
		}
	}
}

func TestCommandsPageHasEveryCommandAndFlag(t *testing.T) {
	page := string(cliPage(cli.Commands()))
	for _, c := range cli.Commands().Commands() {
		if c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		if !strings.Contains(page, "\n## cdc-invalidator "+c.Name()+"\n") {
			t.Errorf("there is no section for %s", c.Name())
		}
	}
	for _, want := range []string{"| `-c, --config string` |  | the mappings file |", "| `--identity strings` | `[full]` |", "| `--json` |  | print JSON"} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is not on the page", want)
		}
	}
	if strings.Contains(page, "--help`") {
		t.Error("--help is on the page")
	}
}

// Vectors without children, collectors of our own and functions are metrics too.
func TestEveryKindOfMetricIsDescribed(t *testing.T) {
	r := &recorder{Registry: prometheus.NewRegistry()}
	r.MustRegister(
		prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "a_seconds", Help: `with "quotes", {braces} and | bars`}, []string{"x", "y"}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "b", Help: "b", ConstLabels: prometheus.Labels{"c": "d"}}, func() float64 { return 1 }),
		prometheus.NewSummaryVec(prometheus.SummaryOpts{Name: "e", Help: "e"}, []string{"f"}),
		prometheus.NewCounter(prometheus.CounterOpts{Name: "go_left_out", Help: "x"}),
	)
	metrics, err := r.describe()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range metrics {
		got = append(got, m.name+" "+m.kind+" "+strings.Join(m.labels, "+")+" "+m.help)
	}
	want := `a_seconds histogram x+y with "quotes", {braces} and | bars; b gauge c b; e summary f e`
	if strings.Join(got, "; ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "; "), want)
	}
}

func TestMetricsPage(t *testing.T) {
	page, err := metricsPage()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| `cdc_invalidator_widened_total` | counter | `reason` |", "| `cdc_invalidator_condition` | gauge | `condition` |",
		"| `cdc_invalidator_redis_apply_seconds` | histogram |  |", "| `cdc_invalidator_heartbeats_sent_total` | counter |  |",
		"| `cdc_invalidator_lag_seconds` | gauge |", "| `cdc_invalidator_build_info` | gauge | `commit`, `go`, `version` |",
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("%q is not on the page", want)
		}
	}
}
