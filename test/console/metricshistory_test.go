//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// history asks for the past use of a pod or node, as a user, or as the admin for none.
func history(k *harness.Kube, user, query string) (enabled bool, points int, err error) {
	args := []string{"get", "--raw", clusterconfig.MetricsHistoryPath + "?" + query}
	if user != "" {
		args = append(args, "--as="+user, "--as-group=system:authenticated")
	}
	out, err := k.TryKubectl(args...)
	if err != nil {
		return false, 0, fmt.Errorf("%w: %s", err, out)
	}
	var got struct {
		Enabled bool
		Since   *time.Time
		Curves  []struct{ CPU, Memory []*float64 }
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		return false, 0, fmt.Errorf("%s: %w", out, err)
	}
	if got.Enabled && got.Since == nil {
		return false, 0, fmt.Errorf("since when is missing: %s", out)
	}
	for _, c := range got.Curves {
		points += len(c.CPU)
	}
	return got.Enabled, points, nil
}

// TestMetricsHistoryOnPages: without --metrics-history a node's page names it. With it the page has curves of the last
// hour and day, which a key chooses, and a tenant may read the past of their own pods alone.
func TestMetricsHistoryOnPages(t *testing.T) {
	axe := axeScript(t)
	k := newServer(t)
	k.Apply(served)
	k.Kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	k.Kubectl("create", "rolebinding", "tenant", "--clusterrole=edit", "--user=tenant")
	pod := strings.TrimPrefix(k.Kubectl("get", "pods", "-l", "app=web", "-o", "name"), "pod/")
	node := strings.TrimPrefix(k.Kubectl("get", "nodes", "-o", "name"), "node/")
	own := url.Values{"namespace": {"default"}, "pod": {pod}}.Encode()
	b := newBrowser(t, k.Machine.Site)

	if enabled, _, err := history(k, "", "node="+node); enabled || err != nil {
		t.Fatalf("a history that nobody asked for: %v, %v", enabled, err)
	}
	p := b.admin(k)
	p.find("no", node)
	p.keys(kb.Enter)
	p.shows("Use since this page was opened", "allocatable", "start the servers with --metrics-history")
	p.without("Since opened")
	p.accessible("a node without a history", axe)

	testenv.NoError(t, k.Stop())
	k.Args = append(k.Args, "--metrics-history")
	k.StartNode()
	testenv.Until(t, harness.Soon, "the history has begun", func() bool {
		enabled, _, err := history(k, "", "node="+node)
		return err == nil && enabled
	})
	p = b.admin(k)
	p.find("no", node)
	p.keys(kb.Enter)
	p.shows("Use in the last hour", "keeps these figures since", "allocatable")
	p.keys("h")
	p.shows("Use in the last day")
	p.accessible("a node's history", axe)
	p.keys("h")
	p.shows("Use since this page was opened")

	for _, user := range []string{"", "tenant"} {
		if enabled, _, err := history(k, user, own); !enabled || err != nil {
			t.Errorf("%q reads the history of a pod in the own namespace: %v, %v", user, enabled, err)
		}
	}
	for _, query := range []string{"node=" + node, "node=none", "namespace=kube-system&pod=" + pod, "namespace=kube-system&pod=none"} {
		if _, _, err := history(k, "tenant", query); err == nil || !strings.Contains(err.Error(), "cannot get") {
			t.Errorf("the tenant reads %s: %v", query, err)
		}
	}
	if !harness.Whole() {
		return // the points of two minutes take two minutes
	}
	points := func(what, query string) {
		testenv.Until(t, 4*time.Minute, what+" has two points", func() bool {
			_, n, err := history(k, "", query)
			return err == nil && n >= 2
		})
	}
	points("the pod", own)
	points("the node", "node="+node)
	p.find("po default", pod)
	p.keys(kb.Enter)
	p.shows("Use in the last hour")
	testenv.Until(t, harness.Soon, "two charts are drawn", func() bool { return eval[int](p, `document.querySelectorAll(".chart canvas").length`) == 2 })
	p.accessible("a pod's history", axe)
	p.shot("metrics-history")
}

// TestBudgetMetricsHistory measures servers with a node and pods in pairs, one with the history and one without.
func TestBudgetMetricsHistory(t *testing.T) {
	byHand(t, "history")
	var pair [2]*harness.Server
	for i, args := range [][]string{nil, {"--metrics-history"}} {
		pair[i] = harness.NewMachine(t).NewServer(args...)
		pair[i].AddBoxImage()
		pair[i].StartNode()
		k := pair[i].In(t)
		k.Await(harness.Soon, "serviceaccount/default", "{.metadata.name}", "default")
		k.Apply(strings.Replace(served, "spec: {selector", "spec: {replicas: 3, selector", 1))
		k.Kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	}
	time.Sleep(time.Duration(setting("SETTLE", 120)) * time.Second) // a measurement: until both have settled
	for range setting("PAIRS", 2) {
		var before, after [2]sample
		for i, s := range pair {
			before[i] = sampleOf(s, 1)
		}
		time.Sleep(time.Duration(setting("MINUTES", 3)) * time.Minute) // a measurement
		for i, s := range pair {
			after[i] = sampleOf(s, 1)
		}
		for i, name := range []string{"without", "with   "} {
			t.Logf("%s: %v; %v of a processor, %d KB written; load %s", name, sampleOf(pair[i], 5), after[i].cpu-before[i].cpu,
				(after[i].written-before[i].written)>>10, load())
		}
	}
}
