// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"testing"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestKubeletPortsAreReserved: neither pods nor Services get a port at which the kubelet listens, and pods none of the
// balancer's.
func TestKubeletPortsAreReserved(t *testing.T) {
	o := Options{Cluster: clusterconfig.Settings{NetworkBackend: clusterconfig.NetworkNone}, Port: 7443, LocalPort: 6444, ConsolePort: 8443, kubeletPorts: []uint16{10350, 10248}}
	services := slices.Concat([]uint16{7443, 6443, 10250, 10053, 10054, 10055}, table.GatewayPorts(), []uint16{10350, 10248, 8443})
	testenv.EqualSlices(t, o.reserved().Ports, services, "of Services:")
	if got, want := o.reservedHostPorts(), append(services, 6444); !slices.Equal(got, want) {
		t.Errorf("host ports: %v, want %v", got, want)
	}
	if slices.Contains(o.keptFromIngress(), 8443) || !slices.Contains(o.keptFromIngress(), 6443) {
		t.Errorf("the ingress does not connect to %v", o.keptFromIngress())
	}
}
