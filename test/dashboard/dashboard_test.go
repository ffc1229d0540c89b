// SPDX-License-Identifier: Apache-2.0

// Package dashboard holds no code: its tests keep the Grafana dashboard and the scrape configuration in docs/ to what a
// cluster shows.
//
// docs/dashboards/metrics.txt stands between the two: here it has to be what the dashboard's expressions name, and an
// end-to-end test (test/e2e, "scraped") finds each of its lines in a running cluster. `go test ./test/dashboard
// -update` writes it.
package dashboard

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	dashboardFile = "../../docs/dashboards/coracle.json"
	metricsFile   = "../../docs/dashboards/metrics.txt"
	pageFile      = "../../docs/metrics.md"
)

var update = flag.Bool("update", false, "write docs/dashboards/metrics.txt from the dashboard")

// scrapersOwn are labels that Prometheus or its configuration gives.
var scrapersOwn = []string{"job", "instance", "node"}

// needed is by job and metric which labels an expression goes by.
type needed map[string]map[string]bool

// target is what one line of a panel shows.
type target struct{ RefID, Expr, LegendFormat string }

// targets are those of the dashboard's panels, by the panel's title.
func targets(t *testing.T) map[string][]target {
	t.Helper()
	data := testenv.Must(os.ReadFile(dashboardFile))(t)
	var d struct {
		UID    string
		Panels []struct {
			ID          int
			Title, Type string
			GridPos     struct{ X, Y, W, H int }
			Targets     []target
		}
	}
	testenv.NoError(t, json.Unmarshal(data, &d))
	testenv.False(t, d.UID != "coracle" || len(d.Panels) < 20, "the dashboard %q has %d panels", d.UID, len(d.Panels))
	ids, out := map[int]bool{}, map[string][]target{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W == 0 || p.GridPos.H == 0 {
			t.Errorf("the panel %q has number %d, as another one has, or no place: %+v", p.Title, p.ID, p.GridPos)
		}
		ids[p.ID] = true
		testenv.False(t, p.Type != "row" && len(p.Targets) == 0, "the panel %q shows nothing", p.Title)
		out[p.Title] = append(out[p.Title], p.Targets...)
	}
	return out
}

// TestDashboardsExpressionsAreValid: each expression is one of Prometheus', says of which job it is, and names what a
// cluster shows.
func TestDashboardsExpressionsAreValid(t *testing.T) {
	promql := parser.NewParser(parser.Options{})
	all := needed{}
	for title, of := range targets(t) {
		for _, target := range of {
			expr, err := promql.ParseExpr(strings.ReplaceAll(target.Expr, "$__rate_interval", "1m"))
			if err != nil {
				t.Errorf("%s: %s: %v", title, target.Expr, err)
				continue
			}
			testenv.Check(t, all.add(expr, target.LegendFormat), "%s: %s", title, target.Expr)
		}
	}
	var lines []string
	for metric, of := range all {
		lines = append(lines, strings.Join(append([]string{metric}, slices.Sorted(maps.Keys(of))...), " "))
	}
	slices.Sort(lines)
	want := []byte(strings.Join(lines, "\n") + "\n")
	if *update {
		testenv.NoError(t, os.WriteFile(metricsFile, want, 0o644))
	}
	if got, err := os.ReadFile(metricsFile); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what the dashboard names (%v): go test ./test/dashboard -update", metricsFile, err)
	}
}

var legendLabel = regexp.MustCompile(`{{(\w+)}}`)

// add notes what an expression needs. Labels that an aggregation keeps have to be on all that it aggregates, and those
// that the legend names have to be there in the end.
func (all needed) add(expr parser.Expr, legend string) error {
	var errs []error
	var named []string
	for _, m := range legendLabel.FindAllStringSubmatch(legend, -1) {
		named = append(named, m[1])
	}
	parser.Inspect(expr, func(n parser.Node, path []parser.Node) error {
		s, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		job, kept, wanted := "", named, slices.Clone(named)
		for _, m := range s.LabelMatchers {
			if m.Name == "job" && m.Type == labels.MatchEqual {
				job = m.Value
			} else if m.Name != model.MetricNameLabel {
				wanted = append(wanted, m.Name)
			}
		}
		for _, above := range path {
			if a, ok := above.(*parser.AggregateExpr); ok && a.Op != parser.TOPK {
				kept = a.Grouping
				wanted = append(wanted, a.Grouping...)
			}
		}
		for _, l := range named {
			if !slices.Contains(kept, l) {
				errs = append(errs, fmt.Errorf("the legend names %s, which is gone by then", l))
			}
		}
		if job == "" {
			errs = append(errs, fmt.Errorf("%s is of no job", s.Name))
		}
		if s.Name == "up" { // Prometheus' own
			return nil
		}
		key := job + " " + s.Name
		if all[key] == nil {
			all[key] = map[string]bool{}
		}
		for _, l := range wanted {
			if !slices.Contains(scrapersOwn, l) {
				all[key][l] = true
			}
		}
		return nil
	})
	return errors.Join(errs...)
}

// scrapeConfig is what docs/metrics.md uses of Prometheus' configuration. Decoding is strict.
type scrapeConfig struct {
	JobName     string `yaml:"job_name"`
	MetricsPath string `yaml:"metrics_path"`
	Scheme      string `yaml:"scheme"`
	Discovery   []struct {
		Role       string `yaml:"role"`
		Namespaces struct {
			Names []string `yaml:"names"`
		} `yaml:"namespaces"`
	} `yaml:"kubernetes_sd_configs"`
	Authorization struct {
		CredentialsFile string `yaml:"credentials_file"`
	} `yaml:"authorization"`
	TLS struct {
		CAFile             string `yaml:"ca_file"`
		InsecureSkipVerify bool   `yaml:"insecure_skip_verify"`
	} `yaml:"tls_config"`
	Relabel       []*relabel.Config `yaml:"relabel_configs"`
	MetricRelabel []*relabel.Config `yaml:"metric_relabel_configs"`
}

// scrapeConfigs are those of the page.
func scrapeConfigs(t *testing.T) []scrapeConfig {
	t.Helper()
	page := testenv.Must(os.ReadFile(pageFile))(t)
	block := regexp.MustCompile("(?s)```yaml\nscrape_configs:.*?```").Find(page)
	block = bytes.TrimSuffix(bytes.TrimPrefix(block, []byte("```yaml\n")), []byte("```"))
	var c struct {
		ScrapeConfigs []scrapeConfig `yaml:"scrape_configs"`
	}
	d := yaml.NewDecoder(bytes.NewReader(block))
	d.KnownFields(true)
	testenv.NoError(t, d.Decode(&c), "in:\n%s", block)
	for _, s := range c.ScrapeConfigs {
		for _, r := range slices.Concat(s.Relabel, s.MetricRelabel) {
			testenv.Check(t, r.Validate(model.UTF8Validation), "%s", s.JobName)
		}
	}
	return c.ScrapeConfigs
}

// relabelled is what Prometheus makes of labels, and whether it goes on with them.
func relabelled(l labels.Labels, by []*relabel.Config) (labels.Labels, bool) {
	b := labels.NewBuilder(l)
	keep := relabel.ProcessBuilder(b, by...)
	return b.Labels(), keep
}

// TestScrapeConfigurationFindsTargets: Prometheus' own code finds the targets of the page's configuration, and keeps
// what the dashboard shows.
func TestScrapeConfigurationFindsTargets(t *testing.T) {
	// What Prometheus' service discovery says of a cluster with one node.
	discovered := map[string][]labels.Labels{
		"endpointslice": {
			labels.FromStrings("__address__", "192.0.2.1:6443", "__meta_kubernetes_service_name", "kubernetes", "__meta_kubernetes_endpointslice_port_name", "https"),
			labels.FromStrings("__address__", "192.0.2.1:9999", "__meta_kubernetes_service_name", "web", "__meta_kubernetes_endpointslice_port_name", "https"),
		},
		"node": {labels.FromStrings("__address__", "192.0.2.1:10250", "__meta_kubernetes_node_name", "node-1")},
	}
	targets := map[string]string{"apiserver": "192.0.2.1:6443/metrics", "kubelet": "192.0.2.1:10250/metrics", "cadvisor": "192.0.2.1:10250/metrics/cadvisor"}
	configs := map[string]scrapeConfig{}
	for _, s := range scrapeConfigs(t) {
		configs[s.JobName] = s
		if len(s.Discovery) != 1 || s.Scheme != "https" || s.Authorization.CredentialsFile == "" {
			t.Errorf("%s: %+v", s.JobName, s)
			continue
		}
		var found []string
		for _, l := range discovered[s.Discovery[0].Role] {
			if got, keep := relabelled(l, s.Relabel); keep {
				path := s.MetricsPath
				if path == "" {
					path = "/metrics"
				}
				found = append(found, got.Get("__address__")+path)
				if s.Discovery[0].Role == "node" && got.Get("node") != "node-1" {
					t.Errorf("%s: the target does not say which node it is: %s", s.JobName, got)
				}
			}
		}
		if strings.Join(found, " ") != targets[s.JobName] {
			t.Errorf("%s: the targets are %v, want %s", s.JobName, found, targets[s.JobName])
		}
	}
	testenv.Equal(t, len(configs), len(targets), "jobs:")
	data := testenv.Must(os.ReadFile(metricsFile))(t)
	for line := range strings.Lines(string(data)) {
		job, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, _, _ := strings.Cut(rest, " ")
		if _, keep := relabelled(labels.FromStrings(model.MetricNameLabel, name), configs[job].MetricRelabel); !keep || configs[job].JobName == "" {
			t.Errorf("the job %q of the page has no %s", job, name)
		}
	}
}
