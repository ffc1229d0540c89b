// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// TestAddressesOfTheNode: neither the node's own address nor that of its ingress proxy is given to a pod.
func TestAddressesOfTheNode(t *testing.T) {
	for _, text := range []string{"10.42.7.0/29", "fd00:42::8/125"} {
		t.Run(text, func(t *testing.T) {
			a, err := openIPAM(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			network := netip.MustParsePrefix(text)
			for i := range 6 {
				got, err := a.allocate(key{fmt.Sprint("pod", i), "eth0"}, []netip.Prefix{network})
				if i == 5 {
					if !errors.Is(err, errExhausted) {
						t.Errorf("a sixth pod has the address %v, error %v", got, err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if got[0] == clusterconfig.NodeSource(network) || got[0] == clusterconfig.IngressSource(network) || got[0] == network.Addr() {
					t.Errorf("a pod has the node's address %v", got[0])
				}
			}
		})
	}
}
