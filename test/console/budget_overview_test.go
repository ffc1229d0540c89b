//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
)

// requestsOf is how many requests a server's API has answered.
func requestsOf(s *harness.Server) (n float64) {
	for line := range strings.Lines(s.Kubectl("get", "--raw", "/metrics")) {
		if strings.HasPrefix(line, "apiserver_request_total{") {
			fields := strings.Fields(line)
			if v, err := strconv.ParseFloat(fields[len(fields)-1], 64); err == nil {
				n += v
			}
		}
	}
	return n
}

// TestBudgetOverview measures what an open overview of 40 workloads costs: the API's requests, the processor's time and
// the heap of the tab.
func TestBudgetOverview(t *testing.T) {
	byHand(t, "overview")
	k := newServer(t)
	var all strings.Builder
	for i := range 40 {
		_, _ = fmt.Fprintf(&all, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web-%[1]d}
spec:
  selector: {matchLabels: {app: web-%[1]d}}
  template:
    metadata: {labels: {app: web-%[1]d}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: box, image: %[2]s, imagePullPolicy: Never, command: [testbox, hold]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-%[1]d}
spec: {selector: {app: web-%[1]d}, ports: [{port: 80}]}
---`, i, harness.BoxImage)
	}
	k.Apply(all.String())
	k.Kubectl("wait", "--for=condition=Available", "deployment", "--all", "--timeout=300s")
	time.Sleep(time.Minute) // a measurement: until the server has settled
	b := newBrowser(t, k.Machine.Site)
	measure := func(what string, during func() string) {
		requests, cpu := requestsOf(k.Server), sampleOf(k.Server, 1).cpu
		time.Sleep(2 * time.Minute) // a measurement
		t.Logf("%s: %.1f requests a minute, %v of a processor a minute%s; load %s", what, (requestsOf(k.Server)-requests)/2,
			(sampleOf(k.Server, 1).cpu-cpu)/2, during(), load())
	}
	measure("without a page", func() string { return "" })
	p := b.admin(k)
	p.shows("pods running")
	measure("with an overview", func() string { return fmt.Sprintf(", a heap of %.1f MB", p.heap()) })
	measure("with an overview", func() string { return fmt.Sprintf(", a heap of %.1f MB", p.heap()) })
}
