// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// systemNamespaces are the namespaces that every cluster has for its own objects.
var systemNamespaces = []string{metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease}

// defaultAccount is the ServiceAccount of pods that name none.
const defaultAccount = "default"

// withholdTokens keeps the token of a system namespace's default account out of pods that do not request it. An account
// for which a user has set automountServiceAccountToken is left as it is.
func withholdTokens(ctx context.Context, c kubernetes.Interface) error {
	return errors.Join(convert.Slice(systemNamespaces, func(ns string) error {
		return wrapError("ServiceAccount", ns+"/"+defaultAccount, withholdToken(ctx, c, ns))
	})...)
}

func withholdToken(ctx context.Context, c kubernetes.Interface, ns string) error {
	accounts := c.CoreV1().ServiceAccounts(ns)
	have, err := accounts.Get(ctx, defaultAccount, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err): // the controllers, which make it, have not begun
		_, err = accounts.Create(ctx, &corev1.ServiceAccount{
			ObjectMeta: metav1.ObjectMeta{Name: defaultAccount, Namespace: ns}, AutomountServiceAccountToken: ptr.To(false),
		}, metav1.CreateOptions{FieldManager: managerName})
		if apierrors.IsAlreadyExists(err) { // the controllers have begun in the meantime
			return withholdToken(ctx, c, ns)
		}
	case err == nil && have.AutomountServiceAccountToken == nil:
		_, err = accounts.Patch(ctx, defaultAccount, types.MergePatchType, []byte(`{"automountServiceAccountToken":false}`),
			metav1.PatchOptions{FieldManager: managerName})
	}
	return err
}
