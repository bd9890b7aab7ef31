package main

import (
	"fmt"
	"net"
	"net/http"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// gated says within what time of their commit q of the keys were removed for the
// second time, after the visibility gate, in ms: the upper bound of a bucket of the
// daemon's own histogram.
func gated(address string, q float64) (string, error) {
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return "", err
	}
	const name = "cdc_invalidator_commit_to_applied_seconds"
	family := families[name]
	if family == nil {
		return "", fmt.Errorf("no metric %s", name)
	}
	h := family.GetMetric()[0].GetHistogram() // of the one class that there is
	for _, b := range h.GetBucket() {
		if float64(b.GetCumulativeCount()) >= q*float64(h.GetSampleCount()) {
			return fmt.Sprintf("<= %g", b.GetUpperBound()*1e3), nil
		}
	}
	return "?", nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
