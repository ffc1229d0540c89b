// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	rbacv1ac "k8s.io/client-go/applyconfigurations/rbac/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// ingressRole lets nodes request the table of the ingress.
const ingressRole = "system:coracle:ingress"

func applyIngressRole(ctx context.Context, c kubernetes.Interface) error {
	_, err := c.RbacV1().ClusterRoles().Apply(ctx, rbacv1ac.ClusterRole(ingressRole).WithLabels(map[string]string{managedBy: manager}).
		WithRules(rbacv1ac.PolicyRule().WithNonResourceURLs(table.Path).WithVerbs("get")), force())
	return wrap("ClusterRole", ingressRole, err)
}

// applyIngressClass makes the IngressClass, or removes the one that it made. An existing one is not changed, for the
// reasons in applyStorageClass.
func applyIngressClass(ctx context.Context, c kubernetes.Interface, wanted bool) error {
	classes := c.NetworkingV1().IngressClasses()
	have, err := classes.Get(ctx, compile.Class, metav1.GetOptions{})
	switch {
	case err == nil && !wanted && have.Labels[managedBy] == manager && have.Spec.Controller == compile.Controller:
		err = classes.Delete(ctx, compile.Class, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(have.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting the IngressClass %s: %w", compile.Class, err)
		}
		return nil
	case err == nil || apierrors.IsNotFound(err) && !wanted:
		return nil
	case !apierrors.IsNotFound(err):
		return wrap("IngressClass", compile.Class, err)
	}
	all, err := classes.List(ctx, metav1.ListOptions{})
	if err != nil {
		return wrap("IngressClass", compile.Class, err)
	}
	isDefault := "true"
	for _, other := range all.Items {
		if other.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
			isDefault = "false" // with two defaults the younger one is used
		}
	}
	_, err = classes.Create(ctx, &networkingv1.IngressClass{
		ObjectMeta: metav1.ObjectMeta{
			Name: compile.Class, Labels: map[string]string{managedBy: manager},
			Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: isDefault},
		},
		Spec: networkingv1.IngressClassSpec{Controller: compile.Controller},
	}, metav1.CreateOptions{FieldManager: manager})
	if apierrors.IsAlreadyExists(err) { // another server was faster
		return nil
	}
	return wrap("IngressClass", compile.Class, err)
}
