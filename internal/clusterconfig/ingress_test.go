// SPDX-License-Identifier: Apache-2.0

package clusterconfig_test

import (
	"net/netip"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

func TestIngressSourceIsLastPodAddress(t *testing.T) {
	for network, want := range map[string]string{
		"10.42.7.0/24": "10.42.7.255", "10.42.7.9/24": "10.42.7.255", "10.42.4.0/22": "10.42.7.255", "10.42.7.128/26": "10.42.7.191",
		"fd00:42:0:7::/64": "fd00:42:0:7:ffff:ffff:ffff:ffff", "fd00:42::7:0/112": "fd00:42::7:ffff",
	} {
		if got := clusterconfig.IngressSource(netip.MustParsePrefix(network)); got != netip.MustParseAddr(want) {
			t.Errorf("the source in %s is %v, want %s", network, got, want)
		}
	}
}
