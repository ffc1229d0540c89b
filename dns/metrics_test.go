// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// answers is how many answers of a kind the process' metrics count.
func answers(t *testing.T, rcode string) (n float64) {
	t.Helper()
	families := testenv.Must(legacyregistry.DefaultGatherer.Gather())(t)
	for _, f := range families {
		if f.GetName() != "coredns_dns_responses_total" {
			continue
		}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetName() == "rcode" && l.GetValue() == rcode {
					n += m.Counter.GetValue()
				}
			}
		}
	}
	return n
}

func TestAnswersAreCounted(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	run(t, a, nil)
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	found, missing := answers(t, "NOERROR"), answers(t, "NXDOMAIN")
	if _, rcode := answered(t, "udp", "absent.default.svc.cluster.local", dns.TypeA); rcode != "NXDOMAIN" {
		t.Fatal(rcode)
	}
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	testenv.Eventually(t, 2*time.Minute, "both are counted", func() error { // an answer is counted after it was sent
		if n, m := answers(t, "NOERROR"), answers(t, "NXDOMAIN"); n < found+1 || m < missing+1 {
			return fmt.Errorf("%v answers with addresses and %v without, want one more of each than %v and %v", n, m, found, missing)
		}
		return nil
	})
}
