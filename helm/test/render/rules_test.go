package render

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestTradingHours evaluates PostbridgeNoPostbacks of a PrometheusRule for MCX, with a holiday: it fires on an evening,
// and neither after the close nor on the holiday.
func TestTradingHours(t *testing.T) {
	const cases = `
rule_files: [rules.yaml]
evaluation_interval: 2m
tests:
  - interval: 10m
    start_timestamp: 2026-11-09T00:00:00Z
    input_series:
      - {series: 'postbridge_received_total{job="edge"}', values: '5x500'}
    promql_expr_test:
      - {expr: 'ALERTS{alertname="PostbridgeNoPostbacks",alertstate="firing"}', eval_time: 3h30m}
      - expr: 'ALERTS{alertname="PostbridgeNoPostbacks",alertstate="firing"}'
        eval_time: 17h
        exp_samples:
          - labels: 'ALERTS{alertname="PostbridgeNoPostbacks",alertstate="firing",job="edge",severity="warning"}'
            value: 1
      - {expr: 'ALERTS{alertname="PostbridgeNoPostbacks",alertstate="firing"}', eval_time: 19h}
      - {expr: 'ALERTS{alertname="PostbridgeNoPostbacks",alertstate="firing"}', eval_time: 41h}
      - expr: 'ALERTS{alertname="PostbridgeNoPostbacks",alertstate="firing"}'
        eval_time: 65h
        exp_samples:
          - labels: 'ALERTS{alertname="PostbridgeNoPostbacks",alertstate="firing",job="edge",severity="warning"}'
            value: 1
`
	dir := t.TempDir()
	rendered := rendering{args: []string{"--values", chart + "/examples/nats.yaml",
		"--set", "prometheusRule.tradingHours=MCX,prometheusRule.holidays={2026-10-20,2026-11-10}"}}.render(t)
	for _, u := range objects(t, rendered) {
		if u.GetKind() != "PrometheusRule" {
			continue
		}
		rules, err := yaml.Marshal(u.Object["spec"])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "rules.yaml"), rules, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "cases.yaml")
	if err := os.WriteFile(file, []byte(cases), 0o600); err != nil {
		t.Fatal(err)
	}
	// See the Makefile.
	if output, err := exec.Command(os.Getenv("PROMTOOL"), "test", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, output)
	}
}
