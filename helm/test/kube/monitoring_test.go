//go:build linux

package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"

	"github.com/rogpeppe/go-internal/testscript"
)

// Listen addresses in the sandbox.
const (
	prometheusAddress   = "127.0.0.1:9091"
	stateMetricsAddress = "127.0.0.1:9092"
)

// startMonitoring starts a Prometheus that scrapes all replicas and kube-state-metrics, and has the alerts of the
// project. It evaluates them every second, without their "for" durations, to keep the story short.
func (s *suite) startMonitoring(dir, binaries, rules string) error {
	text, err := os.ReadFile(rules)
	if err != nil {
		return err
	}
	impatient := regexp.MustCompile(`(?m)^ +for: .*\n`).ReplaceAll(text, nil)
	config := fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [rules.yaml]
scrape_configs:
  - job_name: kube-state-metrics
    static_configs: [{targets: [%q]}]
  - job_name: postbridge
    kubernetes_sd_configs: [{role: pod, kubeconfig_file: %q}]
    relabel_configs:
      - {source_labels: [__meta_kubernetes_pod_container_port_name], regex: admin, action: keep}
      - {source_labels: [__meta_kubernetes_namespace], target_label: namespace}
      - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}
`, stateMetricsAddress, s.Kubeconfig)
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "rules.yaml"), impatient, 0o644),
		os.WriteFile(filepath.Join(dir, "prometheus.yaml"), []byte(config), 0o600),
	); err != nil {
		return err
	}
	return errors.Join(
		s.Run(filepath.Join(binaries, "kube-state-metrics"), "--kubeconfig", s.Kubeconfig, "--host=127.0.0.1",
			"--port=9092",
			"--telemetry-host=127.0.0.1", "--telemetry-port=9093",
			"--resources=persistentvolumeclaims,pods,jobs,statefulsets"),
		s.Run(filepath.Join(binaries, "prometheus"), "--config.file", dir+"/prometheus.yaml", "--storage.tsdb.path",
			dir+"/tsdb",
			"--web.listen-address", prometheusAddress),
	)
}

// firing returns how many alerts of that name fire in the namespace.
func firing(name, namespace string) (n int, err error) {
	resp, err := http.Get("http://" + prometheusAddress + "/api/v1/alerts")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer struct {
		Data struct {
			Alerts []struct {
				Labels map[string]string
				State  string
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return 0, err
	}
	for _, a := range answer.Data.Alerts {
		if a.Labels["alertname"] == name && a.Labels["namespace"] == namespace && a.State == "firing" {
			n++
		}
	}
	return n, nil
}

// seen reports whether Prometheus has scraped a claim of the namespace. Until then, no alert can fire.
func seen(namespace string) (bool, error) {
	query := url.Values{"query": {fmt.Sprintf("kube_persistentvolumeclaim_info{namespace=%q}", namespace)}}
	resp, err := http.Get("http://" + prometheusAddress + "/api/v1/query?" + query.Encode())
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	var answer struct{ Data struct{ Result []any } }
	err = json.NewDecoder(resp.Body).Decode(&answer)
	return len(answer.Data.Result) > 0, err
}

// cmdAlert waits until an alert fires for the story, or with ! until it does not: `alert NAME`, `! alert NAME`.
func (s *suite) cmdAlert(ts *testscript.TestScript, neg bool, args []string) {
	eventually(ts, "a look at the claims", func() error {
		ok, err := seen(ts.Getenv("NAMESPACE"))
		if err == nil && !ok {
			err = errors.New("Prometheus has seen none")
		}
		return err
	})
	eventually(ts, "alert "+args[0], func() error {
		n, err := firing(args[0], ts.Getenv("NAMESPACE"))
		if err == nil && (n > 0) == neg {
			err = fmt.Errorf("%d of it fire", n)
		}
		return err
	})
}
