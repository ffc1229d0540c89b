// SPDX-License-Identifier: Apache-2.0

package kubecompat

import (
	"testing"

	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/csi"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// host is as much of a volume host as initializing the CSI plugin takes.
type host struct {
	volume.VolumeHost
	node types.NodeName
}

func (h host) GetNodeName() types.NodeName        { return h.node }
func (h host) GetKubeClient() clientset.Interface { return nil }

func initCSI(t *testing.T, node types.NodeName) {
	t.Helper()
	testenv.NoError(t, csi.ProbeVolumePlugins()[0].Init(host{node: node}))
}

func TestKubeletsCSIManagerIsKept(t *testing.T) {
	defer func() { manager = nil }()
	initCSI(t, "kubelets-node")
	if got := nodeOf(manager); got != "kubelets-node" {
		t.Fatalf("upstream's variable holds a manager for node %q: has it moved?", got)
	}
	RestoreAfter(func() { initCSI(t, "") })
	testenv.Equal(t, nodeOf(manager), "kubelets-node", "after a controller's CSI plugin started, the variable is for node")
	manager = nil
	RestoreAfter(func() { initCSI(t, "") })
	testenv.True(t, manager == nil, "the controller's manager is still there, though there is no kubelet")
}

func TestWriteWithoutAKubelet(t *testing.T) {
	testenv.Fails(t, Write(), "an object was written for no node")
}
