// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"testing"

	"github.com/miekg/dns"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestSlicesOfNoService: a user who may write EndpointSlices keeps no client from an answer about an address.
func TestSlicesOfNoService(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.headless(t, "db", map[string]string{"db-0": "10.42.0.2"})
	host := "h"
	for i, label := range []string{"", "a..b", "c.d"} {
		a.Put(&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "default", Name: fmt.Sprint("x", i), Labels: map[string]string{discoveryv1.LabelServiceName: label},
			},
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.0.2"}, Hostname: &host}},
		})
	}
	run(t, a, nil)
	wantAnswer(t, "db-0.db.default.svc.cluster.local", dns.TypeA, "10.42.0.2")
	wantAnswer(t, "2.0.42.10.in-addr.arpa", dns.TypePTR, "db-0.db.default.svc.cluster.local.")
}

// TestNoZoneTransfers: no client gets all names at once.
func TestNoZoneTransfers(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	run(t, a, nil)
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	for _, network := range []string{"udp", "tcp"} {
		for _, kind := range []uint16{dns.TypeAXFR, dns.TypeIXFR} {
			if got, rcode := answered(t, network, "cluster.local", kind); rcode != "REFUSED" || len(got) > 0 {
				t.Errorf("%s by %s: %v (%s)", dns.TypeToString[kind], network, got, rcode)
			}
		}
	}
}
