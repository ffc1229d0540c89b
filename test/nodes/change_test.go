//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"slices"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRunningClusterChangesNetworkBackend: a running cluster changes to each back end while pods visit one another, and
// all reach all afterwards; a node whose coracle does not run changes when it starts, and servers with a flag of before
// refuse to.
func TestRunningClusterChangesNetworkBackend(t *testing.T) {
	harness.ByHand(t)
	m := newMesh(t, 3, clusterconfig.NetworkVXLAN, "eth0")
	m.workload()
	m.allMeet()
	largest := map[string]int{clusterconfig.NetworkVXLAN: 1450, clusterconfig.NetworkHostGateway: 1500, clusterconfig.NetworkWireGuard: 1440}
	for _, to := range []string{clusterconfig.NetworkHostGateway, clusterconfig.NetworkWireGuard, clusterconfig.NetworkVXLAN, clusterconfig.NetworkWireGuard, clusterconfig.NetworkHostGateway} {
		m.beat()
		m.changeBackend(to)
		gap := m.longestGap()
		t.Logf("changing to %s: a pod reached the Service of another node's pod after %v at the latest", to, gap)
		testenv.True(t, gap <= 30*time.Second, "no visit succeeded for %v while the back end changed to %s", gap, to)
		m.allMeet()
		m.largePackets(1500, largest[to], largest[to]) // of pods that have run since before
	}

	const last = 2
	m.restart(last, func() {
		testenv.Contains(t, m.changeBackend(clusterconfig.NetworkVXLAN), "change when they start: "+m.nodes[last].NodeName(), "the answer is")
	})
	m.allMeet()

	m.changeBackend(clusterconfig.NetworkHostGateway)
	m.allMeet()
	s := m.nodes[0]
	m.refusesVXLAN(m.site.NewMachine().NewPeer(s, "--disable-agent", "--network-backend", clusterconfig.NetworkVXLAN)) // what s was started with
	testenv.NoError(t, s.Stop())
	m.refusesVXLAN(s)
	flag := slices.Index(s.Args, "--network-backend")
	s.Args = slices.Delete(s.Args, flag, flag+2)
	s.StartAPI()
	m.returned(0)
	m.allMeet()
}

func (m *mesh) refusesVXLAN(s *harness.Server) {
	m.Helper()
	s.Start()
	testenv.True(m, s.WaitExit(harness.Soon) != 0, "a server with another --network-backend starts")
	harness.Says(m, s.LogTail(20), `--network-backend: this server was given "vxlan", but its cluster has "host-gw"`)
}

// changeBackend returns when all nodes that run have changed, with what the command says. It waits for a minute, which
// busy ones may exceed, and longer when it is given again.
func (m *mesh) changeBackend(to string) (out string) {
	m.Helper()
	s := m.nodes[0]
	harness.Eventually(m, patient, "all nodes that run go by "+to, func() (err error) {
		out, err = s.Run(s.Coracle(), "network-backend", "set", to, "--data-dir", s.DataDir)
		return err
	})
	testenv.Contains(m, out, "All running nodes use "+to, "it says")
	testenv.Equal(m, m.run(0, s.Coracle(), "network-backend", "show", "--data-dir", s.DataDir), to, "the cluster has")
	return out
}
