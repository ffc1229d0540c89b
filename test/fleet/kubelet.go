// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/version"
)

const (
	// reportEvery is how often a kubelet reports a status that has not changed (agent/kubelet).
	reportEvery = 30 * time.Minute
	// renewals is how often a Lease is renewed while it lasts.
	renewals = 4
	// images is how many a node has.
	images = 12
)

// conditions are a node's, as a kubelet with a network or without one reports them.
func conditions(ready corev1.ConditionStatus) []corev1.NodeCondition {
	now := metav1.Now()
	out := []corev1.NodeCondition{
		{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasSufficientMemory", Message: "kubelet has sufficient memory available"},
		{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasNoDiskPressure", Message: "kubelet has no disk pressure"},
		{Type: corev1.NodePIDPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasSufficientPID", Message: "kubelet has sufficient PID available"},
		{Type: corev1.NodeReady, Status: ready, Reason: "KubeletReady", Message: "kubelet is posting ready status"},
	}
	if ready != corev1.ConditionTrue {
		out[3].Reason, out[3].Message = "KubeletNotReady", "container runtime network not ready"
	}
	for i := range out {
		out[i].LastHeartbeatTime, out[i].LastTransitionTime = now, now
	}
	return out
}

// object is the node as a kubelet registers it.
func (n *node) object() *corev1.Node {
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("110"),
		corev1.ResourceEphemeralStorage: resource.MustParse("64Gi"),
	}
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: map[string]string{
		corev1.LabelHostname: n.name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "arm64", "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "arm64"}}}
	o.Status = corev1.NodeStatus{
		Capacity: room, Allocatable: room, Conditions: conditions(corev1.ConditionFalse),
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.ip.String()}, {Type: corev1.NodeHostName, Address: n.name}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: kubeletPort}},
		NodeInfo: corev1.NodeSystemInfo{
			MachineID: "0123456789abcdef0123456789abcdef", SystemUUID: "01234567-89ab-cdef-0123-456789abcdef", BootID: "01234567-89ab-cdef-0123-456789abcdef",
			KernelVersion: "6.12.0", OSImage: "Debian GNU/Linux 13 (trixie)", ContainerRuntimeVersion: "containerd://2.2.0", KubeletVersion: version.Get().Coracle,
			OperatingSystem: "linux", Architecture: "arm64"},
	}
	for i := range images {
		o.Status.Images = append(o.Status.Images, corev1.ContainerImage{SizeBytes: 1e8, Names: []string{
			fmt.Sprintf("registry.example/team/image-%d@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", i), fmt.Sprintf("registry.example/team/image-%d:1.2.3", i)}})
	}
	return o
}

// register makes the Node, waits until it has a network for its pods, and says that it is ready.
func (n *node) register(ctx context.Context) error {
	nodes := n.core.Nodes()
	o, err := nodes.Create(ctx, n.object(), metav1.CreateOptions{})
	for apierrors.IsAlreadyExists(err) || err == nil && o.Spec.PodCIDR == "" {
		pause(ctx, retryAfter/4)
		o, err = nodes.Get(ctx, n.name, metav1.GetOptions{})
	}
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	if n.subnet, err = netip.ParsePrefix(o.Spec.PodCIDR); err != nil {
		return err
	}
	n.uid = string(o.UID)
	csi := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: n.name, OwnerReferences: n.owner()}}
	if _, err := n.storage.CSINodes().Create(ctx, csi, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("register: %w", err)
	}
	annotations := map[string]any{"metadata": map[string]any{"annotations": map[string]string{clusterconfig.BackendAnnotation: clusterconfig.NetworkVXLAN, clusterconfig.UnderlayAnnotation: n.ip.String()}}}
	if err := n.patchNode(ctx, annotations, types.MergePatchType); err != nil {
		return err
	}
	return n.report(ctx)
}

func (n *node) owner() []metav1.OwnerReference {
	return []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.name, UID: types.UID(n.uid)}}
}

// report reports the node's status.
func (n *node) report(ctx context.Context) error {
	all := conditions(corev1.ConditionTrue)
	return n.patchNode(ctx, map[string]any{"status": map[string]any{"conditions": all}}, types.StrategicMergePatchType, "status")
}

func (n *node) patchNode(ctx context.Context, patch any, kind types.PatchType, part ...string) error {
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	_, err = n.core.Nodes().Patch(ctx, n.name, kind, body, metav1.PatchOptions{}, part...)
	return err
}

// keepStatus reports it again and again until ctx is done.
func (n *node) keepStatus(ctx context.Context) {
	for pause(ctx, rand.N(reportEvery)); ctx.Err() == nil; pause(ctx, reportEvery) {
		n.again(ctx, "report", n.report)
	}
}

// keepLease makes the node's Lease and renews it until ctx is done.
func (n *node) keepLease(ctx context.Context) {
	lasts := clusterconfig.LeaseDuration
	leases := n.leases.Leases(corev1.NamespaceNodeLease)
	var lease *coordinationv1.Lease
	renew := func(ctx context.Context) (err error) {
		now := metav1.NowMicro()
		if lease == nil {
			made := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: n.name, OwnerReferences: n.owner()}, Spec: coordinationv1.LeaseSpec{
				HolderIdentity: new(n.name), LeaseDurationSeconds: new(int32(lasts.Seconds())), RenewTime: &now}}
			if made, err = leases.Create(ctx, made, metav1.CreateOptions{}); err == nil {
				lease = made
			}
			return err
		}
		next := lease.DeepCopy()
		next.Spec.RenewTime = &now
		if next, err = leases.Update(ctx, next, metav1.UpdateOptions{}); err == nil {
			lease = next
		}
		return err
	}
	n.again(ctx, "make the Lease", renew)
	for pause(ctx, rand.N(lasts/renewals)); ctx.Err() == nil; pause(ctx, lasts/renewals) {
		n.again(ctx, "renew the Lease", renew)
	}
}
