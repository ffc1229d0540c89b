// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"fmt"
	"testing"
	"unicode/utf8"

	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestSealOfTheFirstLevel: what a seal covers is the same in all versions of a level, since a program takes a release
// with another seal for one that a user wrote. Another coverage needs a level (docs/levels.md): a reader accepts both
// codes, and the writer makes the new one where the cluster's level knows it.
func TestSealOfTheFirstLevel(t *testing.T) {
	s := &sealedRelease{j: &job{req: &helmjob.Request{Namespace: "ns", Seal: []byte("key")}}}
	r := &release.Release{Name: "web", Version: 3, Manifest: "manifest", Hooks: []*release.Hook{{
		Name: "hook", Kind: "Job", Path: "web/hook.yaml", Manifest: "hook", Events: []release.HookEvent{release.HookPreDelete}, Weight: 5,
		DeletePolicies: []release.HookDeletePolicy{release.HookSucceeded},
	}}}
	testenv.Equal(t, s.code(r), "8206453a21b6250c92b15bd0a035687bfc82d26fd04d6a5bf384604d9397", "the seal is")
}

// TestForgedReleaseRecordIsRefused has the namespace's users, who may write Secrets and ConfigMaps there, write into
// the record of the release what they may not do themselves: an administrator's helm believes what it finds there.
func TestForgedReleaseRecordIsRefused(t *testing.T) {
	for _, driver := range []string{"secret", "configmap"} {
		t.Run(driver, func(t *testing.T) { forgedRecord(t, driver) })
	}
}

func forgedRecord(t *testing.T, driver string) {
	in := func(t *testing.T) *tester {
		tt := newTester(t)
		tt.driver = driver
		return tt
	}
	tampered := func(t *testing.T) (victim *tester, manifest string) {
		victim = newTester(t)
		return victim, fmt.Sprintf("\n---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: prey\n  namespace: %s\ndata:\n  greeting: forged\n", victim.ns)
	}
	prey := func(t *tester) {
		t.Helper()
		_, err := shared.client.CoreV1().ConfigMaps(t.ns).Create(t.Context(),
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "prey"}, Data: map[string]string{"greeting": "mine"}}, metav1.CreateOptions{})
		testenv.NoError(t, err)
	}
	hooks := func(manifest string, events ...release.HookEvent) func(*release.Release) {
		return func(r *release.Release) {
			r.Hooks = []*release.Hook{{Name: "prey", Kind: "ConfigMap", Path: "web/templates/x.yaml", Manifest: manifest, Events: events}}
		}
	}
	t.Run("a repair makes nothing that the chart did not have", func(t *testing.T) {
		tt := in(t)
		victim, manifest := tampered(t)
		tt.do(tt.request(web("1.0.0")), helmjob.Installed, "")
		tt.rewrite(func(r *release.Release) { r.Manifest += manifest })
		req := tt.request(web("1.0.0"))
		tt.do(req, helmjob.Upgraded, "") // the record is made again
		victim.wantGreeting("prey", "")
		tt.do(req, helmjob.Unchanged, "")
	})
	t.Run("an upgrade removes nothing that the release did not make", func(t *testing.T) {
		tt := in(t)
		victim, manifest := tampered(t)
		prey(victim)
		tt.do(tt.request(web("1.0.0").With("templates/old.yaml", configMap("old", "old"))), helmjob.Installed, "")
		tt.rewrite(func(r *release.Release) { r.Manifest += manifest })
		tt.do(tt.request(web("1.1.0")), helmjob.Upgraded, "")
		victim.wantGreeting("prey", "mine")
		tt.wantGreeting("old", "") // what was the release's goes as ever
	})
	t.Run("a removal runs no hooks that the chart did not have", func(t *testing.T) {
		tt := in(t)
		victim, manifest := tampered(t)
		tt.do(tt.request(web("1.0.0")), helmjob.Installed, "")
		tt.rewrite(hooks(manifest, release.HookPreDelete, release.HookPostDelete))
		tt.do(tt.removal(), helmjob.Uninstalled, "")
		victim.wantGreeting("prey", "")
		tt.wantGreeting("web", "")
	})
	t.Run("nor does a release that is said to be half removed", func(t *testing.T) {
		tt := in(t)
		victim, manifest := tampered(t)
		tt.do(tt.request(web("1.0.0")), helmjob.Installed, "")
		tt.rewrite(func(r *release.Release) {
			hooks(manifest, release.HookPreDelete)(r)
			r.SetStatus(common.StatusUninstalling, "")
		})
		tt.do(tt.request(web("1.0.0")), helmjob.Recovered, "")
		victim.wantGreeting("prey", "")
		tt.wantGreeting("web", "hello")
	})
	t.Run("the chart's own hooks run", func(t *testing.T) {
		tt := in(t)
		own := "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: farewell\n  annotations: {helm.sh/hook: pre-delete}\ndata: {greeting: bye}\n"
		tt.do(tt.request(web("1.0.0").With("templates/hook.yaml", own)), helmjob.Installed, "")
		tt.leave(common.StatusUninstalling)
		tt.do(tt.removal(), helmjob.Uninstalled, "")
		tt.wantGreeting("farewell", "bye")
	})
}

// TestLongErrorsAreCut has a template fail with more words than anybody reads.
func TestLongErrorsAreCut(t *testing.T) {
	tt := newTester(t)
	r := tt.do(tt.request(web("1.0.0").With("templates/fail.yaml", `{{ fail (repeat 1000000 "é ") }}`)), "", helmjob.RenderFailed)
	testenv.False(t, len(r.Message) > maxMessage+10 || !utf8.ValidString(r.Message), "the message has %d bytes", len(r.Message))
}
