// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	rbacv1ac "k8s.io/client-go/applyconfigurations/rbac/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// ingressRole lets nodes request the table of the ingress.
const ingressRole = "system:coracle:ingress"

func applyIngressRole(ctx context.Context, c kubernetes.Interface) error {
	_, err := c.RbacV1().ClusterRoles().Apply(ctx, rbacv1ac.ClusterRole(ingressRole).WithLabels(map[string]string{managedBy: managerName}).
		WithRules(rbacv1ac.PolicyRule().WithNonResourceURLs(table.Path).WithVerbs("get")), forceOptions())
	return wrapError("ClusterRole", ingressRole, err)
}

// applyIngressClass makes the IngressClass, or removes the one that it made.
func applyIngressClass(ctx context.Context, c kubernetes.Interface, wanted bool) error {
	return applyClass(ctx, c.NetworkingV1().IngressClasses(), "IngressClass", networkingv1.AnnotationIsDefaultIngressClass, wanted,
		&networkingv1.IngressClass{
			ObjectMeta: metav1.ObjectMeta{Name: compile.Class}, Spec: networkingv1.IngressClassSpec{Controller: compile.Controller},
		}, func(have *networkingv1.IngressClass) bool { return have.Spec.Controller == compile.Controller })
}
