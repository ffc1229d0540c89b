// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/klog/v2"
	upstream "k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/cm"

	"github.com/coracle-k8s/coracle/test/testenv"
)

type someCgroups struct {
	cm.ContainerManager
	pods *cm.FakePodContainerManager
}

func (c someCgroups) NewPodContainerManager() cm.PodContainerManager { return c.pods }

// Upstream's kubelet asks for pods' cgroups every two seconds, each time by another PodContainerManager.
func TestCgroupsAreSweptRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods := cm.NewFakePodContainerManager()
		pods.Cgroups["a pod"] = nil
		k := &struct{ containerManager cm.ContainerManager }{someCgroups{pods: pods}}
		testenv.NoError(t, sweepRarely(k))
		for round := range 11 {
			found := testenv.Must(k.containerManager.NewPodContainerManager().GetAllPodsFromCgroups(klog.Background()))(t)
			if want := round%5 == 0; (len(found) > 0) != want {
				t.Errorf("after %d s: %v", 2*round, found)
			}
			time.Sleep(2 * time.Second) // fake time
		}
	})
}

// wayBegins checks that upstream's kubelet has a field of this type where a way to what is in it begins.
func wayBegins[T any](t *testing.T, way []string) {
	t.Helper()
	f, ok := reflect.TypeFor[upstream.Kubelet]().FieldByName(way[0])
	testenv.True(t, ok && f.Type == reflect.TypeFor[T](), "a kubelet's %s: %v", way[0], f.Type)
}

// Upstream's kubelet still has its manager of cgroups where sweepRarely expects it.
func TestWayToTheCgroups(t *testing.T) {
	wayBegins[cm.ContainerManager](t, cgroupsFieldPath)
	testenv.Fails(t, sweepRarely(&struct{ containerManager int }{}), "there is no manager, and no error")
}
