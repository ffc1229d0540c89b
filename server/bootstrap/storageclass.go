// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/controllers/localpath"
)

const (
	// storageClassName is the name that k3s uses, too.
	storageClassName = "local-path"
	// defaultClass is the annotation of the class for claims that name none.
	defaultClass = "storageclass.kubernetes.io/is-default-class"
)

// applyStorageClass makes the class of local storage, or removes the one that it made. An existing one is not changed:
// most fields of a class are immutable, and an administrator who has made another class the default does not want to
// repeat that after every start.
func applyStorageClass(ctx context.Context, c kubernetes.Interface, wanted bool) error {
	classes := c.StorageV1().StorageClasses()
	have, err := classes.Get(ctx, storageClassName, metav1.GetOptions{})
	switch {
	case err == nil && !wanted && have.Labels[managedBy] == manager && have.Provisioner == localpath.Provisioner:
		err = classes.Delete(ctx, storageClassName, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(have.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting the StorageClass %s: %w", storageClassName, err)
		}
		return nil
	case err == nil || apierrors.IsNotFound(err) && !wanted:
		return nil
	case !apierrors.IsNotFound(err):
		return wrap("StorageClass", storageClassName, err)
	}
	all, err := classes.List(ctx, metav1.ListOptions{})
	if err != nil {
		return wrap("StorageClass", storageClassName, err)
	}
	isDefault := "true"
	for _, other := range all.Items {
		if other.Annotations[defaultClass] == "true" {
			isDefault = "false" // with two defaults the younger one is used
		}
	}
	_, err = classes.Create(ctx, &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{
			Name: storageClassName, Labels: map[string]string{managedBy: manager}, Annotations: map[string]string{defaultClass: isDefault},
		},
		Provisioner:          localpath.Provisioner,
		ReclaimPolicy:        ptr.To(corev1.PersistentVolumeReclaimDelete),
		VolumeBindingMode:    ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
		AllowVolumeExpansion: ptr.To(true),
	}, metav1.CreateOptions{FieldManager: manager})
	if apierrors.IsAlreadyExists(err) { // another server was faster
		return nil
	}
	return wrap("StorageClass", storageClassName, err)
}
