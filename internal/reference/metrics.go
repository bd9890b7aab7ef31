package reference

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/cdc-invalidator/cdc-invalidator/internal/cli"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// metric is one row of the page.
type metric struct {
	name, kind, help string
	labels           []string
}

// anyFile is a mappings file: which one it is makes no difference to the metrics.
const anyFile = `{version: 1, source: {url: "postgres://localhost/db"}, redis: {url: "redis://localhost"}, classes: {c: {staleness: 1s}},
  keys: {k: {key: "k:{id}", class: c}}, mappings: [{table: public.t, keys: [k]}]}`

// metricsPage describes what /metrics of the daemon shows, by asking the daemon's
// own constructors.
func metricsPage() ([]byte, error) {
	file, err := mapping.Parse("mappings.yaml", []byte(anyFile), mapping.Env{})
	if err != nil {
		return nil, err
	}
	r := &recorder{Registry: prometheus.NewRegistry()}
	if err := cli.RegisterMetrics(r, file); err != nil {
		return nil, err
	}
	metrics, err := r.describe()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(generated + `
# Metrics

What ` + "`/metrics`" + ` of ` + "`cdc-invalidator run`" + ` shows. [operations.md](../operations.md#metrics-and-alerts) says which of them to alert on. The Go runtime's
` + "`go_*`" + ` and the process's ` + "`process_*`" + ` are there as well, as every Go program has them.

| metric | type | labels | |
|---|---|---|---|
`)
	for _, m := range metrics {
		labels := make([]string, len(m.labels))
		for i, l := range m.labels {
			labels[i] = "`" + l + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, m.kind, strings.Join(labels, ", "), cell(m.help))
	}
	return b.Bytes(), nil
}

// recorder is a registry that remembers the collectors: once it has registered
// them, a registry knows nothing of vectors without children.
type recorder struct {
	*prometheus.Registry
	collectors []prometheus.Collector
}

func (r *recorder) Register(c prometheus.Collector) error {
	r.collectors = append(r.collectors, c)
	return r.Registry.Register(c)
}

func (r *recorder) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		if err := r.Register(c); err != nil {
			panic(err) // what MustRegister promises
		}
	}
}

func (r *recorder) describe() ([]metric, error) {
	var list []metric
	for _, c := range r.collectors {
		kind := kindOf(c)
		for _, d := range descs(c) {
			m, err := parseDesc(d)
			if err != nil {
				return nil, err
			}
			if strings.HasPrefix(m.name, "go_") || strings.HasPrefix(m.name, "process_") {
				continue
			}
			if m.kind = kind; kind == "" {
				return nil, fmt.Errorf("%s: of what type it is cannot be told", m.name)
			}
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b metric) int { return cmp.Compare(a.name, b.name) })
	return list, nil
}

func descs(c prometheus.Collector) (list []*prometheus.Desc) {
	ch := make(chan *prometheus.Desc)
	go func() {
		defer close(ch)
		c.Describe(ch)
	}()
	for d := range ch {
		list = append(list, d)
	}
	return list
}

// kindOf is the type of a collector's metrics; those of a vector without children
// show only in its Go type.
func kindOf(c prometheus.Collector) string {
	switch c.(type) {
	case *prometheus.CounterVec:
		return "counter"
	case *prometheus.GaugeVec:
		return "gauge"
	case *prometheus.HistogramVec:
		return "histogram"
	case *prometheus.SummaryVec:
		return "summary"
	}
	ch := make(chan prometheus.Metric)
	go func() {
		defer close(ch)
		c.Collect(ch)
	}()
	kind := ""
	for m := range ch {
		var d dto.Metric
		if err := m.Write(&d); err != nil {
			continue
		}
		switch {
		case d.Counter != nil:
			kind = "counter"
		case d.Gauge != nil:
			kind = "gauge"
		case d.Histogram != nil:
			kind = "histogram"
		case d.Summary != nil:
			kind = "summary"
		}
	}
	return kind
}

// A Desc tells what it is in its text only.
var descText = regexp.MustCompile(`^Desc\{fqName: ("(?:[^"\\]|\\.)*"), help: ("(?:[^"\\]|\\.)*"),(?: unit: "[^"]*",)? constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

var constLabel = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="`)

func parseDesc(d *prometheus.Desc) (metric, error) {
	parts := descText.FindStringSubmatch(d.String())
	if parts == nil {
		return metric{}, fmt.Errorf("the library describes a metric in a form that is not known here: %s", d)
	}
	var m metric
	var err error
	if m.name, err = strconv.Unquote(parts[1]); err != nil {
		return m, err
	}
	if m.help, err = strconv.Unquote(parts[2]); err != nil {
		return m, err
	}
	for _, c := range constLabel.FindAllStringSubmatch(parts[3], -1) {
		m.labels = append(m.labels, c[1])
	}
	if parts[4] != "" {
		m.labels = append(m.labels, strings.Split(parts[4], ",")...)
	}
	return m, nil
}
