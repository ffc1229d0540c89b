// SPDX-License-Identifier: Apache-2.0

package bootstrap_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/server/bootstrap"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestTokensOfDefaultAccounts: one that is not there yet, one that the controllers made, one for which an administrator
// decided, and one of a user's namespace.
func TestTokensOfDefaultAccounts(t *testing.T) {
	account := func(ns string, mount *bool) *corev1.ServiceAccount {
		return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "default"}, AutomountServiceAccountToken: mount}
	}
	c := fake.NewClientset(account("kube-public", nil), account("kube-node-lease", ptr.To(true)), account("shop", nil))
	for range 2 {
		testenv.NoError(t, bootstrap.Apply(t.Context(), bootstrap.Options{Client: c}))
	}
	for ns, want := range map[string]*bool{"kube-system": ptr.To(false), "kube-public": ptr.To(false), "kube-node-lease": ptr.To(true), "shop": nil} {
		got, err := c.CoreV1().ServiceAccounts(ns).Get(t.Context(), "default", metav1.GetOptions{})
		testenv.True(t, err == nil && ptr.Equal(got.AutomountServiceAccountToken, want),
			"%s: %v, %v", ns, got.AutomountServiceAccountToken, err)
	}
}
