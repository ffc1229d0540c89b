// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"io"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRevokedNodeIsRefused: a revoked node's two identities get nothing from the API any more, neither by a new
// connection nor by one that is open, and their watches and streams end at once. Other nodes' go on, although all have
// one user for their network parts, and a later machine of that name is a node.
func TestRevokedNodeIsRefused(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	o.Guard = &nodecreds.Guard{}
	s := f.start(t, o)
	admin := client(t, s.admin())
	for _, user := range []string{"system:node:n1", "system:node:n2", pki.NetworkUser} { // all may watch nodes, and ask for streams
		allow(t, s, user)
	}
	leaf := func(l pki.Leaf, node string, generation uint64) *rest.Config {
		l = l.For(node, generation)
		l.Path = filepath.Join(t.TempDir(), "pair.pem")
		testenv.NoError(t, f.pki.Ensure(l))
		return s.withLeaf(l)
	}
	kubelet := func(node string, generation uint64) *rest.Config { return leaf(f.pki.Node("", node), node, generation) }
	network := func(node string, generation uint64) *rest.Config { return leaf(f.pki.Network(""), node, generation) }
	earlier := leaf(f.pki.Network(""), "", 0) // its certificate names no machine

	revoked := map[string]*rest.Config{"the kubelet": kubelet("n1", 0), "the network parts": network("n1", 0), "network parts of an earlier version": earlier}
	kept := map[string]*rest.Config{"another kubelet": kubelet("n2", 0), "other network parts": network("n2", 0), "the administrator": s.admin()}
	watches := map[string]watch.Interface{}
	streams := map[string]io.ReadCloser{}
	for _, who := range []map[string]*rest.Config{revoked, kept} {
		for name, config := range who {
			eventually(t, "the right to watch", func() (err error) {
				watches[name], err = client(t, config).CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{})
				return err
			})
			defer watches[name].Stop()
			if name == "the administrator" {
				continue
			}
			path := clustersettings.Path
			if name == "the kubelet" || name == "another kubelet" {
				path = table.Path
			}
			eventually(t, "the right to a stream", func() (err error) {
				streams[name], err = client(t, config).CoreV1().RESTClient().Get().AbsPath(path).
					Param(clustersettings.Parameter, clustersettings.DNS).Stream(t.Context())
				return err
			})
			defer streams[name].Close()
		}
	}

	o.Guard.Set(nodecreds.Revoked{"n1": 1})
	for name, config := range revoked {
		for e := range watches[name].ResultChan() { // it is closed with the connection
			testenv.False(t, e.Type == watch.Added, "%s sees %v", name, e.Object)
		}
		_, _ = io.Copy(io.Discard, streams[name]) // it ends with the connection
		_, err := client(t, config).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		testenv.True(t, apierrors.IsUnauthorized(err), "%s: %v", name, err)
	}
	for name, config := range map[string]*rest.Config{"the next kubelet": kubelet("n1", 1), "the next network parts": network("n1", 1)} {
		testenv.Check(t, testenv.Err(client(t, config).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})), "%s", name)
	}
	made := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "later"}}
	testenv.Must(admin.CoreV1().Nodes().Create(t.Context(), made, metav1.CreateOptions{}))(t)
	for name := range kept {
		e, open := <-watches[name].ResultChan()
		if n, ok := e.Object.(*corev1.Node); !open || !ok || n.Name != made.Name {
			t.Errorf("the watch of %s: %v, open %t", name, e, open)
		}
	}
}

// allow gives a user the right to watch nodes, and to ask for the streams of settings and of the ingress.
func allow(t *testing.T, s *running, user string) {
	t.Helper()
	rbac := client(t, s.admin()).RbacV1()
	name := "test:" + user
	testenv.Must(rbac.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"nodes", "configmaps"}, Verbs: []string{"list", "watch"}},
		{NonResourceURLs: []string{clustersettings.Path, table.Path}, Verbs: []string{"get"}},
	}}, metav1.CreateOptions{}))(t)
	testenv.Must(rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}}}, metav1.CreateOptions{}))(t)
}
