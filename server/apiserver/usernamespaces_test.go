// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/registry/rbac/validation"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// newUserNamespaces has the namespaces a, b and c, and bindings to a user, a group and an account.
func newUserNamespaces(t *testing.T) *userNamespaces {
	t.Helper()
	rule := func(group string, resources ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: []string{"get"}}
	}
	clusterRole := func(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
	}
	ref := func(kind, name string) rbacv1.RoleRef { return rbacv1.RoleRef{Kind: kind, Name: name} }
	person := func(name string) rbacv1.Subject { return rbacv1.Subject{Kind: rbacv1.UserKind, Name: name} }
	group := func(name string) rbacv1.Subject { return rbacv1.Subject{Kind: rbacv1.GroupKind, Name: name} }
	account := func(ns, name string) rbacv1.Subject {
		return rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: name}
	}
	inside := func(ns string, role rbacv1.RoleRef, subjects ...rbacv1.Subject) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: ns}, RoleRef: role, Subjects: subjects}
	}
	everywhere := func(role string, subjects ...rbacv1.Subject) *rbacv1.ClusterRoleBinding {
		return &rbacv1.ClusterRoleBinding{RoleRef: ref("ClusterRole", role), Subjects: subjects}
	}
	_, static := validation.NewTestRuleResolver(
		[]*rbacv1.Role{
			{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "reader"}, Rules: []rbacv1.PolicyRule{rule("", "pods")}},
			{ObjectMeta: metav1.ObjectMeta{Namespace: "b", Name: "empty"}},
		},
		[]*rbacv1.RoleBinding{
			inside("a", ref("Role", "reader"), person("anna"), account("", "robot")),
			inside("b", ref("ClusterRole", "view"), group("devs"), account("a", "robot")),
			inside("b", ref("Role", "empty"), person("eve")),
			inside("c", ref("Role", "missing"), person("eve")),
			inside("gone", ref("ClusterRole", "view"), person("anna")),
		},
		[]*rbacv1.ClusterRole{
			clusterRole("view", rule("", "pods")), clusterRole("admin", rule("*", "*")), clusterRole("nodes", rule("", "nodes", "nodes/proxy")),
			clusterRole("asks", rule("authorization.k8s.io", "selfsubjectaccessreviews", "selfsubjectrulesreviews"), rule("authentication.k8s.io", "*")),
			clusterRole("paths", rbacv1.PolicyRule{NonResourceURLs: []string{"/version"}, Verbs: []string{"get"}}),
			clusterRole("logs", rule("", "pods/log")), clusterRole("custom", rule("example.com", "*")), clusterRole("classes", rule("storage.k8s.io", "*")),
			clusterRole("named", rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, ResourceNames: []string{"one"}, Verbs: []string{"get"}}),
		},
		[]*rbacv1.ClusterRoleBinding{
			everywhere("asks", group(user.AllAuthenticated)), everywhere("paths", group(user.AllAuthenticated)),
			everywhere("nodes", person("nora")), everywhere("logs", person("lena")), everywhere("custom", person("carl")),
			everywhere("classes", person("stan")), everywhere("named", person("nina")), everywhere("view", group("viewers")), everywhere("admin", person("root")),
		})
	index := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	for _, name := range []string{"c", "a", "b"} {
		testenv.NoError(t, index.Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	}
	return &userNamespaces{
		namespaces: corelisters.NewNamespaceLister(index),
		cluster:    validation.NewDefaultRuleResolver(static, static, static, static),
		inside:     validation.NewDefaultRuleResolver(static, static, static, noClusterBindings{}),
		kinds: func(context.Context) ([]schema.GroupResource, error) {
			return namespacedResources([]*metav1.APIResourceList{
				{GroupVersion: "v1", APIResources: []metav1.APIResource{{Name: "pods", Namespaced: true}, {Name: "pods/log", Namespaced: true}, {Name: "nodes"}}},
				{GroupVersion: "storage.k8s.io/v1", APIResources: []metav1.APIResource{{Name: "storageclasses"}}},
				{GroupVersion: "example.com/v1", APIResources: []metav1.APIResource{{Name: "things", Namespaced: true}}},
			}), nil
		},
	}
}

// An attacker who has few rights, or rights outside namespaces, asks for the names of namespaces; the response must not
// have those in which the user has no right.
func TestUsersNamespacesFollowRoleBindings(t *testing.T) {
	u := newUserNamespaces(t)
	every := []string{"a", "b", "c"}
	for _, c := range []struct {
		name   string
		groups []string
		want   []string
	}{
		{name: "none", want: []string{}},
		{name: "anna", want: []string{"a"}}, // her binding in a namespace that is gone counts for nothing
		{name: "dan", groups: []string{"devs"}, want: []string{"b"}},
		{name: "anna", groups: []string{"devs"}, want: []string{"a", "b"}},
		{name: "eve", want: []string{}}, // a role without rules, and one that is not there
		{name: "system:serviceaccount:a:robot", want: []string{"a", "b"}},
		{name: "system:serviceaccount:b:robot", want: []string{}},
		{name: "nora", want: []string{}}, // nodes lie in no namespace
		{name: "stan", want: []string{}}, // nor does any kind of that group
		{name: "nina", want: []string{}}, // an object of some name, in whichever namespace
		{name: "lena", want: every},      // a subresource of pods
		{name: "carl", want: every},      // a custom kind
		{name: "vera", groups: []string{"viewers"}, want: every},
		{name: "root", want: every},
		{name: "boss", groups: []string{user.SystemPrivilegedGroup}, want: every},
	} {
		asking := &user.DefaultInfo{Name: c.name, Groups: append(c.groups, user.AllAuthenticated)}
		r := httptest.NewRequestWithContext(request.WithUser(t.Context(), asking), http.MethodGet, clusterconfig.NamespacesPath, nil)
		w := httptest.NewRecorder()
		u.ServeHTTP(w, r)
		var got clusterconfig.Namespaces
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != http.StatusOK || got.Namespaces == nil || !slices.Equal(got.Namespaces, c.want) {
			t.Errorf("%s %v: %d %s, want %v (%v)", c.name, c.groups, w.Code, w.Body, c.want, err)
		}
	}
}

// TestNamespacesWithoutKinds: who has rights by RoleBindings alone needs no discovery; others are not given a wrong
// answer without it, nor is a request without a user.
func TestNamespacesWithoutKinds(t *testing.T) {
	u := newUserNamespaces(t)
	u.kinds = func(context.Context) ([]schema.GroupResource, error) { return nil, errors.New("no discovery") }
	if got, err := u.namespacesOf(t.Context(), &user.DefaultInfo{Name: "anna", Groups: []string{user.AllAuthenticated}}); err != nil || !slices.Equal(got, []string{"a"}) {
		t.Errorf("%v, %v", got, err)
	}
	for name, want := range map[string]int{"": http.StatusUnauthorized, "nora": http.StatusServiceUnavailable} {
		ctx := t.Context()
		if name != "" {
			ctx = request.WithUser(ctx, &user.DefaultInfo{Name: name})
		}
		w := httptest.NewRecorder()
		u.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, clusterconfig.NamespacesPath, nil))
		testenv.True(t, w.Code == want, "%q: %d %s, want %d", name, w.Code, w.Body, want)
	}
}
