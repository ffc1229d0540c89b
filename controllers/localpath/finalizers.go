// SPDX-License-Identifier: Apache-2.0

package localpath

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// Upstream's controller adds its finalizer to each volume that a plugin made and that is to be deleted with its claim.
// The object is thus not deleted before the volume itself. If the policy changes to Retain, it removes the finalizer
// only from volumes of provisioners named kubernetes.io/… (modifyDeletionFinalizers in
// k8s.io/kubernetes/pkg/controller/volume/persistentvolume). This file does the same for coracle's volumes. Otherwise
// such a volume could never be deleted.

// finalizersOf returns the finalizers to write, and whether they differ from the volume's present ones.
func finalizersOf(pv *corev1.PersistentVolume) (want []string, changed bool) {
	if pv.Annotations[storagehelpers.AnnDynamicallyProvisioned] != Provisioner {
		return nil, false
	}
	has := slices.Contains(pv.Finalizers, storagehelpers.PVDeletionInTreeProtectionFinalizer)
	switch remove := pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete; {
	case has && !remove:
		return slices.DeleteFunc(slices.Clone(pv.Finalizers),
			func(f string) bool { return f == storagehelpers.PVDeletionInTreeProtectionFinalizer }), true
	// upstream removes it from a volume that is being deleted
	case !has && remove && pv.DeletionTimestamp == nil && pv.Status.Phase == corev1.VolumeBound:
		return append(slices.Clone(pv.Finalizers), storagehelpers.PVDeletionInTreeProtectionFinalizer), true
	}
	return nil, false
}

// watchVolumes records the volumes whose finalizers have to change.
func (v *Volumes) watchVolumes() error {
	enqueue := func(o any) {
		pv, ok := o.(*corev1.PersistentVolume)
		if !ok {
			return
		}
		if _, other := finalizersOf(pv); !other {
			return
		}
		v.mu.Lock()
		v.finalize[pv.Name] = true
		v.mu.Unlock()
		v.wakeup.Send()
	}
	_, err := v.o.VolumeInformer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: enqueue,
		UpdateFunc: func(_, o any) { enqueue(o) }})
	if err != nil {
		return fmt.Errorf("watching volumes for their finalizers: %w", err)
	}
	return nil
}

// setFinalizers changes the finalizers of the recorded volumes. It records failed ones again.
func (v *Volumes) setFinalizers(ctx context.Context) error {
	v.mu.Lock()
	noted := v.finalize
	v.finalize = map[string]bool{}
	v.mu.Unlock()
	volumes := v.o.Client.CoreV1().PersistentVolumes()
	var errs []error
	for name := range noted {
		err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
			pv, err := volumes.Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			want, other := finalizersOf(pv)
			if !other {
				return nil
			}
			pv.Finalizers = want
			_, err = volumes.Update(ctx, pv, metav1.UpdateOptions{})
			return err
		})
		if err != nil && !apierrors.IsNotFound(err) {
			v.mu.Lock()
			v.finalize[name] = true
			v.mu.Unlock()
			errs = append(errs, fmt.Errorf("changing the finalizers of PersistentVolume %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
