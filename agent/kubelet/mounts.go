// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/volume/util/nestedpendingoperations"
	volumetypes "k8s.io/kubernetes/pkg/volume/util/types"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// gatedOperations runs a kubelet's mounts and unmounts through a gate. Upstream's goes on with them after the kubelet
// has ended: a file system that is checked for a minute would be mounted after all volumes were unmounted.
type gatedOperations struct {
	nestedpendingoperations.NestedPendingOperations
	mounts *Starts
}

// Run implements nestedpendingoperations.NestedPendingOperations.
func (o gatedOperations) Run(volume v1.UniqueVolumeName, pod volumetypes.UniquePodName, node types.NodeName,
	operation volumetypes.GeneratedOperations) error {
	if err := o.mounts.beginStart(); err != nil {
		return err
	}
	ended := func() { o.mounts.endStart(context.Background(), nil) }
	run := operation.OperationFunc
	operation.OperationFunc = func() volumetypes.OperationContext {
		defer ended()
		return run()
	}
	err := o.NestedPendingOperations.Run(volume, pod, node, operation)
	if err != nil { // the operation does not run
		ended()
	}
	return err
}

// operationsFieldPath is the path of the field with a kubelet's mounts that are under way.
var operationsFieldPath = []string{"volumeManager", "operationExecutor", "pendingOperations"}

// gateMounts makes a kubelet that is not running yet mount through a gate. It has to be called before restVolumes.
// After an error the kubelet is unchanged.
func gateMounts(kubelet any, mounts *Starts) error {
	if mounts == nil {
		return nil
	}
	operations, err := kubecompat.Field[nestedpendingoperations.NestedPendingOperations](kubelet, operationsFieldPath)
	if err != nil {
		return fmt.Errorf("kubelet: gate its mounts: %w", err)
	}
	*operations = gatedOperations{*operations, mounts}
	return nil
}
