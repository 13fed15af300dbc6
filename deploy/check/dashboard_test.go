package check

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
)

// panel holds the fields of a Grafana panel that the tests check.
type panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ X, Y, W, H int }
	Targets                  []struct{ RefID, Expr, LegendFormat string }
}

// overlaps reports whether two panels overlap.
func (p panel) overlaps(q panel) bool {
	a, b := p.GridPos, q.GridPos
	return a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H
}

func dashboard(t *testing.T) (panels []panel) {
	t.Helper()
	var all struct{ Panels []panel }
	if err := json.Unmarshal([]byte(read(t, "grafana/dashboard.json")), &all); err != nil {
		t.Fatal(err)
	}
	if len(all.Panels) == 0 {
		t.Fatal("no panels")
	}
	return all.Panels
}

func TestDashboard(t *testing.T) {
	alerts := regexp.MustCompile(`Postbridge[A-Z]\w+`)
	known := alerts.FindAllString(read(t, "prometheus/rules.yaml"), -1)
	panels := dashboard(t)
	for i, p := range panels {
		for _, q := range panels[:i] {
			if p.ID == q.ID || p.overlaps(q) {
				t.Errorf("%q and %q have the same id or place", p.Title, q.Title)
			}
		}
		if g := p.GridPos; g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
			t.Errorf("%q is not on the grid", p.Title)
		}
		if p.Type != "row" && (p.Description == "" || len(p.Targets) == 0) {
			t.Errorf("%q has no description, or no query", p.Title)
		}
		for _, alert := range alerts.FindAllString(p.Description, -1) {
			if !slices.Contains(known, alert) {
				t.Errorf("%q names the alert %s, which there is not", p.Title, alert)
			}
		}
	}
}

// TestDashboardQueries checks that Prometheus parses each query, that each query selects the chosen replicas, and that
// its metrics have the prefixes that the story "alerts" of cmd/postbridge checks in a running program.
func TestDashboardQueries(t *testing.T) {
	variables := strings.NewReplacer("$__rate_interval", "40s", "$job", ".*", "$instance", ".*")
	ours := regexp.MustCompile(`\b(postbridge|process|go)_[a-z_]+\{job=~"\$job",instance=~"\$instance"[,}]`)
	promql := parser.NewParser(parser.Options{})
	for _, p := range dashboard(t) {
		for _, q := range p.Targets {
			expr, err := promql.ParseExpr(variables.Replace(q.Expr))
			if err != nil {
				t.Errorf("%q: %s: %v", p.Title, q.Expr, err)
				continue
			}
			selectors := parser.ExtractSelectors(expr)
			if n := len(ours.FindAllString(q.Expr, -1)); n != len(selectors) || n == 0 {
				t.Errorf("%q: %d of %d selectors in %s are of the chosen replicas", p.Title, n, len(selectors), q.Expr)
			}
			if len(p.Targets) > 1 && q.LegendFormat == "" {
				t.Errorf("%q: a query of several has no legend", p.Title)
			}
		}
	}
}

// read returns a file under deploy.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(top, "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
