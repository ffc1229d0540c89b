// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/controllers/localpath"
	"github.com/coracle-k8s/coracle/ingress/compile"
)

const (
	// storageClassName is the same name as in k3s.
	storageClassName = "local-path"
	// defaultClass is the annotation of the class for claims that name none.
	defaultClass = "storageclass.kubernetes.io/is-default-class"
)

// applyStorageClass makes the class of local storage, or removes the one that it made.
func applyStorageClass(ctx context.Context, c kubernetes.Interface, wanted bool) error {
	return applyClass(ctx, c.StorageV1().StorageClasses(), "StorageClass", defaultClass, wanted, &storagev1.StorageClass{
		ObjectMeta:           metav1.ObjectMeta{Name: storageClassName},
		Provisioner:          localpath.Provisioner,
		ReclaimPolicy:        ptr.To(corev1.PersistentVolumeReclaimDelete),
		VolumeBindingMode:    ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
		AllowVolumeExpansion: ptr.To(true),
	}, func(have *storagev1.StorageClass) bool { return have.Provisioner == localpath.Provisioner })
}

// applyIngressClass makes the IngressClass, or removes the one that it made.
func applyIngressClass(ctx context.Context, c kubernetes.Interface, wanted bool) error {
	return applyClass(ctx, c.NetworkingV1().IngressClasses(), "IngressClass", networkingv1.AnnotationIsDefaultIngressClass, wanted,
		&networkingv1.IngressClass{
			ObjectMeta: metav1.ObjectMeta{Name: compile.Class}, Spec: networkingv1.IngressClassSpec{Controller: compile.Controller},
		}, func(have *networkingv1.IngressClass) bool { return have.Spec.Controller == compile.Controller })
}

// classAPI is the client of a kind of classes.
type classAPI[C metav1.Object, L runtime.Object] interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (C, error)
	List(ctx context.Context, o metav1.ListOptions) (L, error)
	Create(ctx context.Context, class C, o metav1.CreateOptions) (C, error)
	Delete(ctx context.Context, name string, o metav1.DeleteOptions) error
}

// applyClass makes a class, which is the default unless there is one, or removes the one that it made and that is still
// served here. An existing one is not changed: most fields of a class are immutable, and an administrator who has made
// another class the default does not want to repeat that after every start.
func applyClass[C metav1.Object, L runtime.Object](ctx context.Context, classes classAPI[C, L], kind, isDefault string,
	wanted bool, class C, served func(C) bool) error {
	name := class.GetName()
	have, err := classes.Get(ctx, name, metav1.GetOptions{})
	switch {
	case err == nil && !wanted && have.GetLabels()[managedBy] == managerName && served(have):
		err = classes.Delete(ctx, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(have.GetUID()))})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting the %s %s: %w", kind, name, err)
		}
		return nil
	case err == nil || apierrors.IsNotFound(err) && !wanted:
		return nil
	case !apierrors.IsNotFound(err):
		return wrapError(kind, name, err)
	}
	class.SetLabels(map[string]string{managedBy: managerName})
	class.SetAnnotations(map[string]string{isDefault: "true"})
	all, err := classes.List(ctx, metav1.ListOptions{})
	if err == nil {
		err = meta.EachListItem(all, func(other runtime.Object) error {
			if o, err := meta.Accessor(other); err == nil && o.GetAnnotations()[isDefault] == "true" {
				class.SetAnnotations(map[string]string{isDefault: "false"}) // of two defaults the younger one counts
			}
			return nil
		})
	}
	if err != nil {
		return wrapError(kind, name, err)
	}
	_, err = classes.Create(ctx, class, metav1.CreateOptions{FieldManager: managerName})
	if apierrors.IsAlreadyExists(err) { // another server was faster
		return nil
	}
	return wrapError(kind, name, err)
}
