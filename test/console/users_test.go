//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUsersSeeWhatTheyMay: others than the admin log in to a server's console with a token. They see what they may see,
// and what they may not says so.
func TestUsersSeeWhatTheyMay(t *testing.T) {
	k := newServer(t)
	addWorkload(k)
	k.Kubectl("create", "namespace", "shop")
	k.Apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: goods, namespace: shop}\ndata: {a: b}\n")
	b := newBrowser(t, k.Machine.Site)
	t.Run("nobody", func(t *testing.T) { asUnknown(t, b, k) })
	t.Run("viewer", func(t *testing.T) { asViewer(t, b, k) })
	t.Run("tenant", func(t *testing.T) { asTenant(t, b, k) })
}

// asUnknown: a token that the API does not know gives nothing.
func asUnknown(t *testing.T, b *browser, k *harness.Kube) {
	p := b.open("https://" + k.IP + ":" + consolePort + "/")
	p.T = t
	for _, token := range []string{"abc", "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"} {
		p.focused("textarea")
		p.ctrl('a')
		p.keys(token, kb.Tab, kb.Enter)
		p.shows("Log in with a token", "does not accept this token")
	}
	p.saysNothing("status of 401")
}

// refuses presses the key of an action and waits for the reason why it is refused. Nothing is asked.
func (p *page) refuses(key, why string) {
	p.T.Helper()
	p.keys(key)
	p.shows(why)
	if eval[bool](p, `!!document.querySelector("dialog")`) || !strings.HasPrefix(eval[string](p, `location.hash`), "#/list/") {
		p.fail("%s does something", key)
	}
	off := eval[[]string](p, `[...document.querySelectorAll(".tools button[aria-disabled=true]")].map((b) => b.title)`)
	if !strings.Contains(strings.Join(off, "\n"), why) {
		p.fail("no button says %q; those that are off say %q", why, off)
	}
}

// asViewer: the role view may see all but secrets, and change nothing.
func asViewer(t *testing.T, b *browser, k *harness.Kube) {
	p := b.login(k.Server, newToken(k, "--role", "view"))
	p.T = t
	p.shows("broken", "ErrImageNeverPull", "console-")
	p.find("po default", "talker-")
	p.refuses("x", "You may not delete pods in namespace default.")
	p.refuses("s", "You may not create pods/exec in namespace default.")
	p.refuses("e", "You may not patch pods in namespace default.")
	p.keys("l")
	p.shows("a line of talker-")
	p.keys(kb.Escape)
	p.find("deploy default", "talker")
	p.refuses("S", "You may not patch deployments/scale in namespace default.")
	p.refuses("R", "You may not patch deployments in namespace default.")
	p.find("cj default", "nightly")
	p.refuses("T", "You may not create jobs in namespace default.")
	p.list("secrets default")
	p.shows("You may not list secrets in namespace default.", "is forbidden")
	p.without("hidden")
	p.list("ns")
	p.shows("kube-system")
	p.saysNothing("status of 403")
}

// asTenant: the role edit in a namespace may change what is in one namespace, and see no other.
func asTenant(t *testing.T, b *browser, k *harness.Kube) {
	p := b.login(k.Server, newToken(k, "--role", "edit", "--namespace", "shop"))
	p.T = t
	p.list("cm default")
	p.shows("You may not list configmaps in namespace default.", "Choose a namespace")
	p.keys("n")
	p.focused("dialog input")
	p.keys("shop", kb.Enter)
	p.shows("goods")
	p.only("goods")
	p.keys("e")
	p.editor("a: b")
	p.replace("a: b", "a: sold")
	p.ctrl(ctrlEnter)
	p.shows("What will change", "+  a: sold")
	p.focused("#edit-apply")
	p.keys(kb.Enter)
	p.shows("goods is changed")
	testenv.Equal(t, k.Kubectl("-n", "shop", "get", "configmap", "goods", "-o", "jsonpath={.data.a}"), "sold", "the edit has made")
	p.list("no")
	p.shows("You may not list nodes.")
	p.list("po *")
	p.shows("You may not list pods in all namespaces.")
	p.keys("n")
	p.focused("dialog input")
	p.keys("shop", kb.Enter)
	p.shows("No pods in namespace shop.")
	p.keys("0")
	p.shows("in namespace shop")
	p.without("ErrImageNeverPull")
	p.saysNothing("status of 403")
}
