// SPDX-License-Identifier: Apache-2.0

package localpath

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-helpers/storage/ephemeral"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/utils/ptr"
)

// This file chooses the node of a claim whose pod names its node itself (spec.nodeName). Of other pods the scheduler
// does that before they have a node. Upstream's controller makes no volume for a claim without a chosen node.

const (
	// gatherDelay is how long a round waits for further changes.
	gatherDelay = 100 * time.Millisecond
	// claimRetry is the pause after a failed write.
	claimRetry = time.Second
)

// watchNodeNames wakes chooseNodes when a claim may lack a node.
func (v *Volumes) watchNodeNames() error {
	waits := func(claim any) {
		if v.lacksNode(claim.(*corev1.PersistentVolumeClaim)) {
			v.nodeNames.Send()
		}
	}
	_, claims := v.o.ClaimInformer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: waits, UpdateFunc: func(_, claim any) { waits(claim) },
	})
	consumes := func(obj any) {
		pod := obj.(*corev1.Pod)
		claims := func(of corev1.Volume) bool { return claimName(pod, of) != "" }
		if pod.Spec.NodeName != "" && slices.ContainsFunc(pod.Spec.Volumes, claims) {
			v.nodeNames.Send()
		}
	}
	_, pods := v.o.PodInformer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: consumes, UpdateFunc: func(before, after any) {
			if before.(*corev1.Pod).Spec.NodeName == "" {
				consumes(after)
			}
		},
	})
	_, classes := v.o.ClassInformer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { v.nodeNames.Send() }})
	if err := errors.Join(claims, pods, classes); err != nil {
		return fmt.Errorf("watching claims without a node: %w", err)
	}
	return nil
}

// chooseNodes writes the node of each claim that lacks one and whose pod has one. It returns the pause until it has to
// be called again, 0 for none.
func (v *Volumes) chooseNodes(ctx context.Context) (again time.Duration) {
	claims, err := v.o.ClaimInformer.Lister().List(labels.Everything())
	if err != nil { // a cache's lister returns no error
		return claimRetry
	}
	for _, claim := range claims {
		if !v.lacksNode(claim) {
			continue
		}
		node, err := v.nodeName(claim)
		if err == nil && node != "" {
			claim = claim.DeepCopy()
			metav1.SetMetaDataAnnotation(&claim.ObjectMeta, storagehelpers.AnnSelectedNode, node)
			_, err = v.o.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, claim, metav1.UpdateOptions{})
		}
		if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
			if again = claimRetry; !apierrors.IsConflict(err) { // the claim has changed meanwhile
				v.o.Logger.Warn("the node of a claim could not be written; retrying", "namespace", claim.Namespace, "claim", claim.Name, "error", err)
			}
		}
	}
	return again
}

// lacksNode says whether a volume of this provisioner is made for a claim as soon as a node is chosen for it.
func (v *Volumes) lacksNode(claim *corev1.PersistentVolumeClaim) bool {
	if claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil || claim.Annotations[storagehelpers.AnnSelectedNode] != "" {
		return false
	}
	class, err := v.o.ClassInformer.Lister().Get(storagehelpers.GetPersistentVolumeClaimClass(claim))
	return err == nil && class.Provisioner == Provisioner &&
		ptr.Deref(class.VolumeBindingMode, "") == storagev1.VolumeBindingWaitForFirstConsumer
}

// nodeName returns the node of the oldest pod with the claim that has one, empty if there is none.
func (v *Volumes) nodeName(claim *corev1.PersistentVolumeClaim) (string, error) {
	pods, err := v.o.PodInformer.Lister().Pods(claim.Namespace).List(labels.Everything())
	if err != nil {
		return "", err
	}
	pods = slices.DeleteFunc(pods, func(pod *corev1.Pod) bool {
		return pod.Spec.NodeName == "" || pod.DeletionTimestamp != nil || podutil.IsPodTerminal(pod) ||
			!slices.ContainsFunc(pod.Spec.Volumes, func(of corev1.Volume) bool {
				return claimName(pod, of) == claim.Name && (of.Ephemeral == nil || ephemeral.VolumeIsForPod(pod, claim) == nil)
			})
	})
	if len(pods) == 0 {
		return "", nil
	}
	first := slices.MinFunc(pods, func(a, b *corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	there, err := v.nodeExists(first.Spec.NodeName)
	if err != nil || !there {
		return "", err
	}
	return first.Spec.NodeName, nil
}

// claimName returns the name of a volume's claim, empty for a volume without one.
func claimName(pod *corev1.Pod, of corev1.Volume) string {
	switch {
	case of.PersistentVolumeClaim != nil:
		return of.PersistentVolumeClaim.ClaimName
	case of.Ephemeral != nil:
		return ephemeral.VolumeClaimName(pod, &of)
	}
	return ""
}
