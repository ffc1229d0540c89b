// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/release/common"
	releasev1 "helm.sh/helm/v4/pkg/release/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// byUser is a user's own operation on what the release has now: the way back to revision to, or the removal for 0.
func (t *tester) byUser(to int) *helmjob.Request {
	t.Helper()
	c := testenv.Must(openCluster(shared.socket, t.ns, slog.Default()))(t)
	cfg := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	testenv.NoError(t, cfg.Init(c, t.ns, "secret"))
	history := testenv.Must((&job{req: t.removal(), cfg: cfg}).history())(t)
	out := &helmjob.Request{Operation: helmjob.Remove, Socket: shared.socket, Namespace: t.ns, Release: "web", Timeout: time.Minute}
	add := func(r *releasev1.Release) {
		out.Shown = append(out.Shown, helmjob.Shown{Revision: r.Version, Sum: recordOf(r).Sum()})
	}
	add(lastOf(history))
	for _, r := range history {
		if r.Version == to {
			out.Operation = helmjob.RollBack
			add(r)
		}
	}
	return out
}

// twice installs a release whose first revision says hello and whose second says two.
func (t *tester) twice() {
	t.Helper()
	req := t.request(web("1.0.0").With("templates/kept.yaml",
		"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: kept\n  annotations: {helm.sh/resource-policy: keep}\ndata: {greeting: stays}\n"))
	t.do(req, helmjob.Installed, "")
	req.Values = []helmjob.Document{"greeting: two"}
	t.do(req, helmjob.Upgraded, "")
}

func TestUserRollsBackAndRemoves(t *testing.T) {
	tt := newTester(t)
	tt.twice()
	testenv.NoError(t, shared.client.CoreV1().ConfigMaps(tt.ns).Delete(t.Context(), "web", metav1.DeleteOptions{}))
	r := tt.do(tt.byUser(1), helmjob.RolledBack, "")
	tt.wantGreeting("web", "hello")
	testenv.False(t, r.Release == nil || r.Release.Revision != 3 || r.Release.Status != "deployed", "the release is %+v", r.Release)
	tt.says(tt.do(tt.byUser(0), helmjob.Uninstalled, ""), "kept", "[ConfigMap] kept")
	tt.wantGreeting("web", "")
	tt.wantGreeting("kept", "stays")
}

// TestUserChangesOnlyWhatWasShown: others may write in the release's namespace, with fewer rights than the user. What
// they put into its records between the look and the button must not be done.
func TestUserChangesOnlyWhatWasShown(t *testing.T) {
	tt := newTester(t)
	tt.twice()
	old, removal := tt.byUser(1), tt.byUser(0)
	refused := func(words ...string) {
		t.Helper()
		tt.says(tt.do(old, "", helmjob.Changed), words...)
		tt.says(tt.do(removal, "", helmjob.Changed), words...)
		tt.wantGreeting("web", "two")
	}
	var manifest string
	tt.rewrite(func(r *releasev1.Release) {
		manifest = r.Manifest
		r.Manifest += "\n---\n" + configMap("evil", "x")
	})
	refused("revision 2 is another")
	tt.rewrite(func(r *releasev1.Release) {
		r.Manifest = manifest
		r.Hooks = []*releasev1.Hook{{Name: "evil", Kind: "Job", Manifest: configMap("evil", "x"), Events: []releasev1.HookEvent{releasev1.HookPreDelete}}}
	})
	refused("revision 2 is another")
	tt.rewrite(func(r *releasev1.Release) {
		r.Hooks = nil
		r.Namespace = "kube-system"
	})
	refused("namespace kube-system")
	tt.rewrite(func(r *releasev1.Release) { r.Namespace = tt.ns })
	tt.wantGreeting("evil", "")

	// An upgrade by another client.
	req := tt.request(web("1.0.0"))
	req.Values = []helmjob.Document{"greeting: three"}
	tt.do(req, helmjob.Upgraded, "")
	tt.says(tt.do(old, "", helmjob.Changed), "another newest revision")
	tt.says(tt.do(removal, "", helmjob.Changed), "another newest revision")
	tt.wantGreeting("web", "three")
}

// TestUserWaitsForAnotherHelm: a release on which another helm works is left alone, and one that a dead helm left is
// not.
func TestUserWaitsForAnotherHelm(t *testing.T) {
	tt := newTester(t)
	tt.twice()
	tt.leave(common.StatusPendingUpgrade)
	tt.says(tt.do(tt.byUser(1), "", helmjob.Busy), "pending-upgrade", "another helm")
	tt.says(tt.do(tt.byUser(0), "", helmjob.Busy), "pending-upgrade")
	tt.wantGreeting("web", "two")
	tt.rewrite(func(r *releasev1.Release) { r.Info.LastDeployed = time.Now().Add(-helmjob.UserLimit) })
	tt.do(tt.byUser(1), helmjob.RolledBack, "")
	tt.wantGreeting("web", "hello")
}

// TestFailedRollbackIsNotLeftPending: upstream leaves a release pending for ever when a hook of a rollback fails.
func TestFailedRollbackIsNotLeftPending(t *testing.T) {
	tt := newTester(t)
	tt.do(tt.request(web("1.0.0").With("templates/hook.yaml", fmt.Sprintf(hook, "pre-rollback"))), helmjob.Installed, "")
	tt.do(tt.request(web("1.1.0")), helmjob.Upgraded, "")
	req := tt.byUser(1)
	req.Timeout = time.Second
	r := tt.do(req, "", helmjob.RollbackFailed)
	tt.says(r, "web-hook")
	testenv.False(t, r.Release == nil || r.Release.Revision != 3 || r.Release.Status != "failed", "the release is %+v", r.Release)
}

// TestUserHasOwnRightsOnly: a rollback or removal for which the user lacks a right is refused before anything is
// changed, and objects of others are not taken over.
func TestUserHasOwnRightsOnly(t *testing.T) {
	tt := newTester(t)
	tt.twice()
	config := rest.CopyConfig(shared.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "tenant"}
	access := testenv.Must(helmjob.OpenAccess(t.Context(), t.TempDir(), config))(t)
	defer access.Close()
	allow := func(name string, verbs, resources []string) {
		t.Helper()
		testenv.Must(shared.client.RbacV1().Roles(tt.ns).Create(t.Context(), &rbacv1.Role{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Verbs: verbs, Resources: resources}},
		}, metav1.CreateOptions{}))(t)
		testenv.Must(shared.client.RbacV1().RoleBindings(tt.ns).Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "tenant"}},
		}, metav1.CreateOptions{}))(t)
	}
	allow("records", []string{"*"}, []string{"secrets"})
	allow("looks", []string{"get"}, []string{"configmaps"})
	refused := func(to int, words string) { // when the API knows the rights
		t.Helper()
		req := tt.byUser(to)
		req.Socket = access.Path()
		testenv.Eventually(t, time.Minute, words, func() error {
			r := Do(t.Context(), Options{}, req)
			if r.Reason != helmjob.Refused || !strings.Contains(r.Message, words) || !strings.Contains(r.Message, `User "tenant" cannot`) {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
	}
	refused(1, "You may not change ConfigMap")
	refused(0, "You may not remove ConfigMap")
	tt.wantGreeting("web", "two")

	maps := shared.client.CoreV1().ConfigMaps(tt.ns)
	testenv.NoError(t, maps.Delete(t.Context(), "web", metav1.DeleteOptions{}))
	allow("writes", []string{"patch"}, []string{"configmaps"})
	refused(1, "You may not create ConfigMap")
	testenv.Must(maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Data: map[string]string{"greeting": "mine"}},
		metav1.CreateOptions{}))(t)
	tt.says(tt.do(tt.byUser(1), "", helmjob.Conflict), "not of this release")
	tt.wantGreeting("web", "mine")
}

// TestRollbackRemovesOnlyItsOwn: an object that a newest revision names and an earlier one does not is removed by a
// rollback. Who may write that record need not have a right to the object.
func TestRollbackRemovesOnlyItsOwn(t *testing.T) {
	tt := newTester(t)
	tt.twice()
	other := testenv.Must(shared.client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "other-"}}, metav1.CreateOptions{}))(t)
	maps := shared.client.CoreV1().ConfigMaps(other.Name)
	testenv.Must(maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "theirs"}}, metav1.CreateOptions{}))(t)
	tt.rewrite(func(r *releasev1.Release) {
		r.Manifest += "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: theirs, namespace: " + other.Name + "}\n"
	})
	tt.says(tt.do(tt.byUser(1), "", helmjob.Conflict), "theirs is not of this release")
	testenv.Must(maps.Get(t.Context(), "theirs", metav1.GetOptions{}))(t)
	tt.wantGreeting("web", "two")
}
