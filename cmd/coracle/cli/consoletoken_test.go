// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// tokenCluster has roles, a namespace, and an API that makes tokens, or fails to.
func tokenCluster(fails *bool) *fake.Clientset {
	c := fake.NewClientset(
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "view"}}, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "admin"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
	)
	c.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "token" {
			return false, nil, nil
		}
		if *fails {
			return true, nil, errors.New("no tokens today")
		}
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: "t"}}, nil
	})
	return c
}

// counts are the numbers of accounts, bindings of the cluster, and bindings of the namespace shop.
func counts(t *testing.T, c *fake.Clientset) [3]int {
	t.Helper()
	a := testenv.Must(c.CoreV1().ServiceAccounts(consoleNamespace).List(t.Context(), metav1.ListOptions{}))(t)
	b := testenv.Must(c.RbacV1().ClusterRoleBindings().List(t.Context(), metav1.ListOptions{}))(t)
	r := testenv.Must(c.RbacV1().RoleBindings("shop").List(t.Context(), metav1.ListOptions{}))(t)
	return [3]int{len(a.Items), len(b.Items), len(r.Items)}
}

func TestEachConsoleTokenHasItsOwnAccount(t *testing.T) {
	fails := false
	c, now := tokenCluster(&fails), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i, f := range []consoleTokenFlags{{role: "view", ttl: time.Hour}, {role: "view", namespace: "shop", ttl: 2 * time.Hour}, {role: "admin", ttl: 3 * time.Hour}} {
		if token, err := f.make(t.Context(), c, now); token != "t" || err != nil {
			t.Fatalf("%d: %q, %v", i, token, err)
		}
	}
	testenv.Equal(t, counts(t, c), [3]int{3, 4, 1}, "there are")
	// A later token removes what has ended, the first and the second.
	last := consoleTokenFlags{role: "view", namespace: "shop", ttl: time.Hour}
	testenv.Must(last.make(t.Context(), c, now.Add(2*time.Hour)))(t)
	testenv.Equal(t, counts(t, c), [3]int{2, 2, 1}, "after two have ended there are")
}

func TestNothingOfAFailedConsoleTokenStays(t *testing.T) {
	fails := true
	c := tokenCluster(&fails)
	for _, f := range []consoleTokenFlags{
		{role: "view", ttl: time.Hour}, {role: "view", namespace: "shop", ttl: time.Hour}, {role: "none", ttl: time.Hour}, {role: "view", namespace: "none", ttl: time.Hour},
	} {
		if token, err := f.make(t.Context(), c, time.Now()); err == nil {
			t.Errorf("%+v gave %q", f, token)
		}
	}
	testenv.Equal(t, counts(t, c), [3]int{}, "there are")
}
