package admin

import "github.com/prometheus/client_golang/prometheus"

// RegisterMetrics registers what /metrics shows beside the metrics of the daemon.
func RegisterMetrics(reg prometheus.Registerer, h Health) {
	reg.MustRegister(newConditionCollector(h))
}

// conditionCollector shows the conditions as a metric, so that one alert covers
// them all, those of later versions included.
type conditionCollector struct {
	health Health
	desc   *prometheus.Desc
}

func newConditionCollector(h Health) *conditionCollector {
	return &conditionCollector{health: h, desc: prometheus.NewDesc("cdc_invalidator_condition",
		"1 while the condition holds, 0 while it does not, -1 while it is not known; /healthz has the reason and the fix.", []string{"condition"}, nil)}
}

func (c *conditionCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c *conditionCollector) Collect(ch chan<- prometheus.Metric) {
	for _, cond := range c.health.Conditions() {
		v := 0.0
		switch {
		case cond.OK:
			v = 1
		case cond.State == StateUnknown:
			v = -1
		}
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, v, cond.Name)
	}
}

// DescribeConditions sends the description of the metric that shows the conditions.
func DescribeConditions(ch chan<- *prometheus.Desc) { newConditionCollector(nil).Describe(ch) }
