// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/kubernetes/pkg/kubelet/volumemanager"
	"k8s.io/kubernetes/pkg/volume/util/nestedpendingoperations"
	"k8s.io/kubernetes/pkg/volume/util/operationexecutor"
	volumetypes "k8s.io/kubernetes/pkg/volume/util/types"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMountsUnderWayAreWaitedFor: a volume whose file system is checked for an hour is not mounted behind the back of a
// node that has unmounted all.
func TestMountsUnderWayAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type manager struct {
			operationExecutor operationexecutor.OperationExecutor
		}
		k := &struct{ volumeManager *manager }{&manager{operationexecutor.NewOperationExecutor(nil)}}
		mounts, mounted := &Starts{}, 0
		testenv.NoError(t, gateMounts(k, mounts))
		operations := *testenv.Must(kubecompat.Field[nestedpendingoperations.NestedPendingOperations](k, operationsFieldPath))(t)
		mount := func() error {
			return operations.Run("volume", "pod", "", volumetypes.GeneratedOperations{
				OperationFunc: func() volumetypes.OperationContext {
					time.Sleep(time.Hour) // fake time
					mounted++
					return volumetypes.OperationContext{}
				}})
		}
		testenv.NoError(t, mount())
		testenv.Fails(t, mount(), "the same mount runs twice")
		began := time.Now()
		testenv.Equal(t, mounts.Close(t.Context()), 0, "mounts under way in the end:")
		testenv.Equal(t, mounted, 1, "mounted:")
		testenv.Equal(t, time.Since(began), time.Hour, "it took")
		testenv.WantError(t, mount(), "being stopped")
		testenv.Fails(t, gateMounts(&struct{}{}, mounts), "a kubelet without volumes has a gate")
	})
}

// Upstream's kubelet still begins the way to its mounts as gateMounts does. The rest of it is upstream's own types.
func TestWayToTheMounts(t *testing.T) { wayBegins[volumemanager.VolumeManager](t, operationsFieldPath) }
