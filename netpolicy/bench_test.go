// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"fmt"
	"testing"
)

// BenchmarkUpdate is a change among 1,000 pods and 200 policies, of which 100 pods are this node's: what is computed, and what is written.
func BenchmarkUpdate(b *testing.B) {
	w := newWorld()
	w.Nodes[1].Spec.PodCIDRs = []string{"10.42.2.0/23", "fd00:42:0:2::/64"}
	for n := range 20 {
		w.namespace(fmt.Sprint("ns", n), nil)
		for p := range 50 {
			node := "n2"
			if p < 5 {
				node = "n1"
			}
			w.pod(fmt.Sprint("ns", n), fmt.Sprint("p", p), node, 1+(n*50+p)%250, map[string]string{"app": fmt.Sprint("a", p%10)})
		}
		for p := range 10 {
			w.policy(b, fmt.Sprint("ns", n), fmt.Sprint("p", p), fmt.Sprintf(`{podSelector: {matchLabels: {app: a%d}}, ingress: [{from: [{podSelector: {matchLabels: {app: a%d}}}], ports: [{port: 80}]}]}`, p, (p+1)%10))
		}
	}
	before := Desired(w.State, DefaultLimits()).Ruleset
	w.Sandboxes = w.Sandboxes[1:]
	var text []byte
	for b.Loop() {
		text = difference(before, Desired(w.State, DefaultLimits()).Ruleset)
	}
	b.ReportMetric(float64(len(text)), "bytes-written/op")
	b.ReportMetric(float64(len(whole(before))), "bytes-of-table")
}
