//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// ctrlEnter is Enter, for ctrl: the editor reviews what was written.
const ctrlEnter = '\r'

// TestActionsByKeyboard does what the console can do, without a mouse, and looks at each result by kubectl.
func TestActionsByKeyboard(t *testing.T) {
	k := newServer(t)
	addWorkload(k)
	p := newBrowser(t, k.Machine.Site).admin(k)

	// Create: many documents at once.
	p.list("po default")
	p.keys("a")
	p.editor("")
	p.keys(`{apiVersion: v1, kind: Namespace, metadata: {name: shop}}`, kb.Enter, "---", kb.Enter,
		`{apiVersion: v1, kind: ConfigMap, metadata: {name: one, namespace: shop}, data: {a: b, c: d}}`, kb.Enter, "---", kb.Enter,
		`{apiVersion: v1, kind: ConfigMap, metadata: {name: two}, data: {a: b}}`, kb.Enter, "---", kb.Enter,
		`{apiVersion: v1, kind: ConfigMap, metadata: {name: three}, data: {a: b}}`)
	p.ctrl(ctrlEnter)
	// An object in a namespace that the same text makes is checked when it is applied.
	p.shows("The server would accept this, as far as it can be checked now", "document 1 makes its namespace; it is checked when it is applied", "kubectl apply")
	testenv.Fails(t, testenv.Err(k.Try("get", "configmap", "two")), "the check has created something")
	p.focused("#create-apply")
	p.keys(kb.Enter)
	p.shows("Applied", "4 objects are applied")
	k.Await(harness.Soon, "configmap/two", "{.data.a}", "b")
	testenv.Equal(t, k.Kubectl("-n", "shop", "get", "configmap", "one", "-o", "jsonpath={.data.c}"), "d", "the second document is")
	p.keys(kb.Escape)

	// Edit: a dry run, its difference, and then it is applied.
	p.find("cm shop", "one")
	p.keys("e")
	p.editor("a: b")
	p.replace("a: b", "a: changed")
	p.ctrl(ctrlEnter)
	p.shows("What will change", "-  a: b", "+  a: changed", "kubectl patch")
	testenv.Equal(t, k.Kubectl("-n", "shop", "get", "configmap", "one", "-o", "jsonpath={.data.a}"), "b", "the dry run has written")
	p.focused("#edit-apply")
	p.keys(kb.Enter)
	p.shows("one is changed")
	testenv.Equal(t, k.Kubectl("-n", "shop", "get", "configmap", "one", "-o", "jsonpath={.data}"), `{"a":"changed","c":"d"}`, "the edit has made:")
	// What the API refuses is said, and the text stays.
	p.find("deploy default", "talker")
	p.keys("e")
	p.editor("replicas: 2")
	p.replace("replicas: 2", "replicas: -2")
	p.ctrl(ctrlEnter)
	p.shows("must be greater than or equal to 0", "replicas: -2")
	p.keys(kb.Escape)
	p.shows("Leave without applying?")
	p.keys(kb.Enter)
	p.until("the editor is left", func(string) bool { return eval[bool](p, `location.hash.startsWith("#/list/")`) })
	p.shows("talker", "2/2")

	// Scale, restart.
	p.keys("S")
	p.shows("It has 2 replicas now.", "kubectl scale deployment")
	p.ctrl('a')
	p.keys("3")
	p.shows("--replicas=3")
	p.keys(kb.Enter)
	p.shows("talker is scaled to 3", "3/3")
	k.Await(harness.Soon, "deployment/talker", "{.spec.replicas}", "3")
	p.keys("R")
	p.shows("The pods are replaced", "kubectl rollout restart")
	p.keys(kb.Enter)
	p.shows("talker restarts")
	testenv.Contains(t, k.Kubectl("get", "deployment", "talker", "-o", "jsonpath={.spec.template.metadata.annotations}"), "restartedAt", "the template's annotations are")
	p.shows("talker has restarted: 3 new pods are ready.")
	k.Kubectl("rollout", "status", "deployment/talker", "--timeout=10s")

	// A node: cordon, and back.
	p.find("no", "node-1")
	p.keys("C")
	p.shows("Cordon this node?", "kubectl cordon node-1")
	p.keys(kb.Enter)
	p.shows("node-1 is cordoned", "SchedulingDisabled")
	k.Await(harness.Soon, "node/node-1", "{.spec.unschedulable}", "true")
	p.keys("C")
	p.shows("Uncordon this node?")
	p.keys(kb.Enter)
	p.shows("takes pods again")
	p.without("SchedulingDisabled")
	k.Await(harness.Soon, "node/node-1", "{.spec.unschedulable}", "")

	// A CronJob runs now.
	p.find("cj default", "nightly")
	p.keys("T")
	p.shows("A job is made from nightly", "--from=cronjob/nightly")
	p.keys(kb.Enter)
	p.shows("is made.")
	harness.Eventually(t, harness.Soon, "the job has run", func() error {
		out, err := k.Try("get", "jobs", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.ownerReferences[0].name} {.status.succeeded}{end}`)
		if err == nil && (!strings.HasPrefix(out, "nightly-manual-") || !strings.HasSuffix(out, "nightly 1")) {
			err = fmt.Errorf("the jobs are %q", out)
		}
		return err
	})

	// Marked rows are deleted together, and others stay.
	p.list("cm default")
	p.shows("two", "three", "words")
	p.keys("/", "^(two|three)$", kb.Enter)
	p.without("words")
	p.keys("g", "  ")
	p.shows("2 marked")
	p.keys("x")
	p.shows("Delete 2 configmaps?", "default/two", "default/three", "kubectl delete")
	p.keys(kb.Escape)
	p.without("Delete 2 configmaps?")
	testenv.Check(t, testenv.Err(k.Try("get", "configmap", "two", "three")), "Esc has deleted")
	p.keys("x")
	p.shows("Delete 2 configmaps?")
	p.keys(kb.Enter) // on Cancel
	p.without("Delete 2 configmaps?")
	testenv.Check(t, testenv.Err(k.Try("get", "configmap", "two", "three")), "the first key of a question has deleted")
	p.keys("x")
	p.shows("Delete 2 configmaps?")
	p.keys(kb.Tab, kb.Enter)
	p.shows("2 objects are being deleted")
	p.keys(kb.Escape, kb.Escape)
	harness.Eventually(t, harness.Soon, "both are deleted", func() error {
		out, err := k.Try("get", "configmaps", "-o", "name")
		if err == nil && (strings.Contains(out, "two") || strings.Contains(out, "three") || !strings.Contains(out, "words")) {
			err = fmt.Errorf("there are %q", out)
		}
		return err
	})
	p.saysNothing("status of 422")

	t.Run("read only", func(t *testing.T) { readOnly(t, k) })
	t.Run("two editors", func(t *testing.T) { twoEditors(t, k) })
}

// readOnly: a console that only shows says so, for each action that changes something.
func readOnly(t *testing.T, k *harness.Kube) {
	p := newBrowser(t, k.Machine.Site).admin(k, "--read-only")
	p.shows("This console is read-only.")
	p.find("deploy default", "talker")
	for _, key := range []string{"e", "S", "R", "x"} {
		p.keys(key)
		p.shows("×") // a message, which can be dismissed
		p.until("no question is asked for "+key, func(now string) bool { return strings.Count(now, "This console is read-only.") > 1 })
		if eval[bool](p, `!!document.querySelector("dialog")`) {
			p.fail("%s asks something", key)
		}
	}
	off := eval[[]string](p, `[...document.querySelectorAll(".tools button[aria-disabled=true]")].map((b) => b.textContent + ": " + b.title)`)
	testenv.True(t, len(off) >= 4 && strings.Contains(strings.Join(off, "\n"), "Delete: This console is read-only."),
		"buttons that are off: %q", off)
	p.saysNothing()
}

// twoEditors: two users edit one object. The second one sees three sides: the object as it is, the two texts put
// together, and what they had written; no text is lost.
func twoEditors(t *testing.T, k *harness.Kube) {
	k.Apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared, namespace: default}\ndata: {first: one, second: two, third: three}\n")
	b := newBrowser(t, k.Machine.Site)
	mine, other := b.admin(k), b.admin(k)
	for _, p := range []*page{mine, other} {
		p.T = t
		p.find("cm default", "shared")
		p.keys("e")
		p.editor("third: three")
	}
	other.replace("first: one", "first: theirs")
	other.replace("second: two", "second: theirs")
	other.ctrl(ctrlEnter)
	other.shows("What will change")
	other.focused("#edit-apply")
	other.keys(kb.Enter)
	other.shows("shared is changed")

	mine.replace("first: one", "first: mine")
	mine.replace("third: three", "third: mine")
	mine.ctrl(ctrlEnter)
	mine.shows("another client has changed the same fields", "first: theirs", "first: mine", "second: theirs", "third: mine", "Your text as it was")
	testenv.Equal(t, k.Kubectl("get", "configmap", "shared", "-o", "jsonpath={.data.first}"), "theirs", "a conflict has written")
	// The text as it was can be seen, and put back.
	eval[any](mine, `document.querySelector(".note details summary").focus()`)
	mine.keys(kb.Enter)
	mine.until("the text as it was has its second line", func(string) bool {
		return eval[bool](mine, `document.querySelector(".note details pre").innerText.includes("second: two")`)
	})
	eval[any](mine, `document.querySelector(".editor").shadowRoot.querySelector(".cm-content").focus()`)
	mine.shot("conflict")
	mine.ctrl(ctrlEnter)
	mine.shows("What will change", "-  first: theirs", "+  first: mine", "+  third: mine")
	mine.focused("#edit-apply")
	mine.keys(kb.Enter)
	mine.shows("shared is changed")
	testenv.Equal(t, k.Kubectl("get", "configmap", "shared", "-o", "jsonpath={.data}"), `{"first":"mine","second":"theirs","third":"mine"}`, "both edits have made:")
	other.saysNothing()
	mine.saysNothing("status of 409")
}
