package main

import (
	"fmt"
	"net/http"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// metric is one of the daemon's.
func (p *process) metric(name string) (*dto.MetricFamily, error) {
	resp, err := http.Get("http://" + p.http + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, err
	}
	family := families[name]
	if family == nil {
		return nil, fmt.Errorf("no metric %s", name)
	}
	return family, nil
}

// gated says within what time of their commit q of the keys were removed for the
// second time, after the visibility gate, in ms: the upper bound of a bucket of the
// daemon's own histogram.
func (p *process) gated(q float64) (string, error) {
	family, err := p.metric("cdc_invalidator_commit_to_applied_seconds")
	if err != nil {
		return "", err
	}
	h := family.GetMetric()[0].GetHistogram() // of the one class that there is
	for _, b := range h.GetBucket() {
		if float64(b.GetCumulativeCount()) >= q*float64(h.GetSampleCount()) {
			return fmt.Sprintf("<= %g", b.GetUpperBound()*1e3), nil
		}
	}
	return "?", nil
}

// looks are how often it has looked at the catalogs, by kind.
func (p *process) looks() (map[string]float64, error) {
	family, err := p.metric("cdc_invalidator_catalog_looks_total")
	if err != nil {
		return nil, err
	}
	n := map[string]float64{}
	for _, m := range family.GetMetric() {
		n[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
	}
	return n, nil
}
