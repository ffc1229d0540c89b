//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/charts"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// helm runs the cluster's helm on a server's machine.
func helm(k *harness.Kube, args ...string) string {
	k.T.Helper()
	args = append([]string{"helm", "--kubeconfig", k.Kubeconfig, "-n", "default"}, args...)
	return testenv.Must(harness.Output(k.Machine.Command(k.T.Context(), k.Machine.Coracle(), args...)))(k.T)
}

// greeting is a chart with a ConfigMap, one that stays, and hooks.
var greeting = charts.New("greeting", "1.2.3", "").
	With("values.yaml", "word: none\ntone: {loud: false, kind: true}\nextra: dropped\n").
	With("templates/config.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {word: {{ .Values.word }}}\n").
	With("templates/kept.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}-kept, annotations: {helm.sh/resource-policy: keep}}\n").
	With("templates/hook.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}-hook, annotations: {helm.sh/hook: pre-rollback}}\n")

// TestReleasesAreChangedByButtons rolls back and uninstalls releases of a user's helm by keys, on both consoles.
func TestReleasesAreChangedByButtons(t *testing.T) {
	axe := axeScript(t)
	k := newServer(t)
	archive := filepath.Join(k.Machine.Dir, "greeting.tgz")
	testenv.NoError(t, os.WriteFile(archive, greeting.Archive(), 0o644))
	k.Apply("apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: owned, namespace: kube-system}\nspec: {targetNamespace: default, chartContent: " +
		base64.StdEncoding.EncodeToString(greeting.Archive()) + "}\n")
	for _, name := range []string{"hello", "guarded", "moving"} {
		helm(k, "install", name, archive, "--set", "word=one,extra=null")
		helm(k, "upgrade", name, archive, "--set", "word=two,tone.loud=true,extra=null")
	}
	k.Kubectl("-n", "kube-system", "wait", "helmchart/owned", "--for=condition=Ready", "--timeout=120s")

	b := newBrowser(t, k.Machine.Site)
	p := b.admin(k)
	t.Run("values", func(t *testing.T) {
		p.T = t
		p.release("hello")
		p.keys("c")
		p.shows("Compare revisions of hello", "-word: one", "+word: two", "All values")
		p.shot("helm-compare")
		p.accessibleAtSizes("helm compare", axe)
		p.keys(kb.Escape)
		all := strings.TrimPrefix(helm(k, "get", "values", "hello", "--all"), "COMPUTED VALUES:\n")
		p.do("asking for the values", chromedp.Click(`.release .related:last-child button`))
		p.shows("All values")
		p.accessibleAtSizes("release", axe)
		testenv.Equal(t, eval[string](p, `document.querySelectorAll(".release details")[1].querySelector("pre").textContent`), all, "the computed values")
	})
	t.Run("rollback", func(t *testing.T) {
		p.T = t
		p.release("hello")
		p.keys("u")
		p.shows("Roll back the release hello", "-word: two", "+word: one", "hello-hook", "pre-rollback", "helm rollback hello 1")
		p.cancelHasFocus()
		p.shot("helm-rollback")
		p.accessibleAtSizes("helm rollback", axe)
		p.cancelHasFocus()
		p.keys(kb.Tab, kb.Enter)
		p.shows("is again as in revision 1. This is its revision 3.", "Rollback to 1")
		testenv.Equal(t, k.Kubectl("get", "configmap", "hello", "-o", "jsonpath={.data.word}"), "one", "the release says")
		k.Kubectl("get", "configmap", "hello-hook")
		testenv.Contains(t, helm(k, "history", "hello"), "Rollback to 1", "helm's history")
	})
	t.Run("a release that has changed meanwhile", func(t *testing.T) {
		p.T = t
		p.release("moving")
		p.keys("u")
		p.shows("+word: one")
		p.cancelHasFocus()
		helm(k, "upgrade", "moving", archive, "--set", "word=two")
		p.keys(kb.Tab, kb.Enter)
		p.shows("The release has changed since you looked at it")
		testenv.Equal(t, k.Kubectl("get", "configmap", "moving", "-o", "jsonpath={.data.word}"), "two", "the release says")
	})
	t.Run("a release of a HelmChart", func(t *testing.T) {
		p.T = t
		p.release("owned")
		p.keys("x")
		p.shows("made by the HelmChart kube-system/owned", "delete the HelmChart")
		p.cancelHasFocus()
		p.keys(kb.Escape)
		p.keys("u")
		p.shows("The release has no earlier revision.")
		p.keys(kb.Escape)
		p.saysNothing("status of 409")
	})
	t.Run("without rights", func(t *testing.T) {
		k := k.In(t)
		k.Kubectl("create", "serviceaccount", "records")
		k.Kubectl("create", "role", "records", "--verb=*", "--resource=secrets")
		k.Kubectl("create", "rolebinding", "records", "--role=records", "--serviceaccount=default:records")
		p := b.login(k.Server, strings.TrimSpace(k.Kubectl("create", "token", "records")))
		p.T = t
		p.open("helm/releases/default/guarded")
		p.shows("helm rollback guarded 1")
		p.keys("u")
		p.shows("+word: one")
		p.cancelHasFocus()
		p.keys(kb.Tab, kb.Enter)
		p.shows(`You may not read ConfigMap default/guarded`, `"system:serviceaccount:default:records" cannot`, "Nothing was changed.")
		testenv.Equal(t, k.Kubectl("get", "configmap", "guarded", "-o", "jsonpath={.data.word}"), "two", "the release says")
		k.Kubectl("create", "serviceaccount", "looks")
		k.Kubectl("create", "role", "looks", "--verb=get,list,watch", "--resource=secrets")
		k.Kubectl("create", "rolebinding", "looks", "--role=looks", "--serviceaccount=default:looks")
		p.saysNothing("status of 403", "status of 409")
		p = b.login(k.Server, strings.TrimSpace(k.Kubectl("create", "token", "looks")))
		p.T = t
		p.open("helm/releases/default/guarded")
		p.shows("helm rollback guarded 1")
		p.until("the rights are known", func(string) bool {
			return eval[int](p, `document.querySelectorAll(".tools button[aria-disabled=true]").length`) == 2
		})
		p.keys("x")
		p.shows("You may not delete secrets in namespace default.")
		p.saysNothing("status of 403")
	})
	t.Run("uninstall", func(t *testing.T) {
		k := k.In(t)
		p := b.login(k.Server, newToken(k, "--role", "admin"))
		p.T = t
		p.open("helm/releases/default/hello")
		p.shows("helm uninstall hello")
		p.keys("x")
		p.shows("Uninstall the release hello", "ConfigMap hello", "Objects that stay", "hello-kept")
		p.cancelHasFocus()
		p.shot("helm-uninstall")
		p.accessibleAtSizes("helm uninstall", axe)
		testenv.True(t, eval[bool](p, `document.querySelector("dialog .danger").disabled`), "it can be removed without its name")
		p.do("going back to the field", chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
			return press(ctx, t, '\t', int64(kb.ModifierShift))
		}))
		p.focused("dialog input")
		p.keys("hell")
		testenv.True(t, eval[bool](p, `document.querySelector("dialog .danger").disabled`), "it can be removed by another name")
		p.keys("o", kb.Enter)
		p.shows("Release hello in namespace default was removed.")
		p.until("the list of releases is there", func(string) bool { return eval[string](p, `location.hash`) == "#/helm" })
		testenv.Equal(t, k.Kubectl("get", "configmap", "hello", "hello-kept", "--ignore-not-found", "-o", "name"), "configmap/hello-kept", "left is")
		p.saysNothing()
	})
	t.Run("a console that only shows", func(t *testing.T) {
		p := b.admin(k, "--read-only")
		p.T = t
		p.release("guarded")
		p.keys("u")
		p.shows("This console is read-only.")
		p.saysNothing()
	})
}

// accessibleAtSizes looks for what keeps people from using the page, in windows of three sizes.
func (p *page) accessibleAtSizes(view, axe string) {
	p.T.Helper()
	for _, size := range [][2]int64{{390, 844}, {1024, 768}, {1280, 800}} {
		p.size(size[0], size[1])
		p.accessible(fmt.Sprintf("%s at %d", view, size[0]), axe)
		p.shot(fmt.Sprintf("%s-%d", strings.ReplaceAll(view, " ", "-"), size[0]))
	}
}

// release opens a release of the namespace default.
func (p *page) release(name string) {
	p.T.Helper()
	p.open("helm/releases/default/" + name)
	p.shows("helm uninstall " + name)
}

// cancelHasFocus waits until a dialog's first answer, which does nothing, has the focus.
func (p *page) cancelHasFocus() {
	p.T.Helper()
	p.focused(".buttons button:first-child")
	testenv.Equal(p.T, eval[string](p, `document.activeElement.textContent`), "Cancel", "the focus is on")
}
