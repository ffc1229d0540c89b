// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"bytes"
	"fmt"
	"os/exec"
	"syscall"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/test/netns"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// BenchmarkAtTheLimit writes tables of a node whose namespaces have all that the limits let them have, as blocks and as
// rules.
func BenchmarkAtTheLimit(b *testing.B) {
	netns.RequireNFT(b)
	for _, kind := range []string{"blocks", "rules"} {
		b.Run(kind, func(b *testing.B) {
			w := newWorld()
			for n := range 4 {
				ns := fmt.Sprint("ns", n)
				w.namespace(ns, nil)
				if kind == "blocks" {
					w.pod(ns, "p", "n1", 10+n, nil)
					block := &networkingv1.IPBlock{CIDR: "0.0.0.0/0"}
					for i := range 24_500 {
						block.Except = append(block.Except, fmt.Sprintf("%d.%d.%d.%d/32", 10+n, i>>15, i>>7&255, i<<1&255))
					}
					p := &networkingv1.NetworkPolicy{}
					p.Namespace, p.Name = ns, "p"
					p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: block}}}}
					w.add(p)
					continue
				}
				for q := range 2 {
					its := map[string]string{"q": fmt.Sprint(q)}
					w.pod(ns, fmt.Sprint("q", q), "n1", 10+n*10+q, its)
					text := ""
					for i := range 2_000 {
						text += fmt.Sprintf(`{ports: [{port: %d}], from: [{podSelector: {matchLabels: {ns: %s}}}]},`, 1+2*i+q, ns)
					}
					w.policy(b, ns, fmt.Sprint("q", q), fmt.Sprintf(`{podSelector: {matchLabels: {q: "%d"}}, ingress: [%s]}`, q, text[:len(text)-1]))
				}
			}
			var r Result
			var most int64
			for b.Loop() {
				r = Desired(w.State, DefaultLimits())
				cmd := exec.Command("nft", "-f", "-")
				cmd.Stdin = bytes.NewReader(renderReplacement(r.Ruleset))
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				most = max(most, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)
			}
			testenv.False(b, len(r.OverBudget) > 0, "%v", r.OverBudget)
			b.ReportMetric(float64(most>>10), "MB-of-nft")
			testenv.Check(b, Remove())
		})
	}
}
