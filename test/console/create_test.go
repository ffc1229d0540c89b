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

// paste puts a text into the editor at once, as the clipboard does.
func (p *page) paste(text string) {
	p.T.Helper()
	p.ctrl('a')
	eval[any](p, `{ const data = new DataTransfer(); data.setData("text/plain", `+jsString(text)+`);
document.querySelector(".editor").shadowRoot.querySelector(".cm-content").dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true})) }`)
}

func jsString(text string) string {
	return "`" + strings.NewReplacer("\\", "\\\\", "`", "\\`", "$", "\\$").Replace(text) + "`"
}

// line is the text of the editor's line with the cursor.
func (p *page) line() string {
	p.T.Helper()
	return eval[string](p, `document.querySelector(".editor").shadowRoot.querySelector(".cm-activeLine")?.innerText ?? ""`)
}

// whole is a manifest as the web has them: each object needs one before it.
const whole = `apiVersion: v1
kind: Namespace
metadata: {name: fresh}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: runner, namespace: fresh}
---
apiVersion: v1
kind: Pod
metadata: {name: runs, namespace: fresh}
spec:
  serviceAccountName: runner
  terminationGracePeriodSeconds: 0
  containers:
  - {name: box, image: ` + harness.BoxImage + `, imagePullPolicy: Never, command: [sleep, infinity]}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: fresh}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: box, image: ` + harness.BoxImage + `, imagePullPolicy: Never, command: [sleep, infinity]}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gears.example.com}
spec:
  group: example.com
  names: {kind: Gear, plural: gears}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}}}}}
---
apiVersion: example.com/v1
kind: Gear
metadata: {name: big, namespace: fresh}
spec: {size: 3}
`

// mistakes is a text with a mistake in each document but one.
const mistakes = `apiVersion: apps/v1
kind: Deployment
metadata: {name: odd, namespace: default}
spec:
  replicaz: 3
  selector: {matchLabels: {app: odd}}
  template:
    metadata: {labels: {app: odd}}
    spec:
      containers:
      - name: box
---
apiVersion: v1
kind: ConfigMap
metadata: {name: number, namespace: default}
data:
  a: 1
---
apiVersion: v1
kind: Service
metadata: {name: odd, namespace: default}
spec:
  type: NodePorts
  ports:
  - port: 80
---
a: [
---
apiVersion: v1
kind: ConfigMap
metadata: {name: fine, namespace: default}
`

// TestCreateAndItsMistakes pastes manifests, by keys alone.
func TestCreateAndItsMistakes(t *testing.T) {
	k := newServer(t)
	k.Apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine, namespace: default, annotations: {team: x}}\ndata: {first: one}\n")
	p := newBrowser(t, k.Machine.Site).admin(k)
	p.list("cm default")
	p.shows("mine")

	t.Run("objects that need earlier ones", func(t *testing.T) {
		p.T = t
		p.keys("a")
		p.editor("")
		p.paste(whole)
		p.ctrl(ctrlEnter)
		p.shows("as far as it can be checked now", "document 1 makes its namespace", "document 5 makes its kind")
		p.shot("create-needs")
		p.focused("#create-apply")
		p.keys(kb.Enter)
		p.shows("6 objects are applied")
		k.Becomes(harness.Soon, "Running", "-n", "fresh", "get", "pod/runs", "-o", "jsonpath={.status.phase}")
		k.Becomes(harness.Soon, "Running", "-n", "fresh", "get", "pod/plain", "-o", "jsonpath={.status.phase}")
		testenv.Equal(t, k.Kubectl("-n", "fresh", "get", "gear", "big", "-o", "jsonpath={.spec.size}"), "3", "the gear has the size")
		p.shot("created")
	})

	t.Run("all mistakes, each with its line", func(t *testing.T) {
		p.T = t
		eval[any](p, `document.querySelector(".editor").shadowRoot.querySelector(".cm-content").focus()`)
		p.paste(mistakes)
		p.ctrl(ctrlEnter)
		p.shows("4 of 5 objects have mistakes. Nothing is written.", "unknown field spec.replicaz", "line 5", "data.a: text is wanted", "line 17",
			`"NodePorts" is not one of`, "line 23", "this is not YAML", "would be created")
		p.shot("create-mistakes")
		testenv.False(t, strings.Contains(p.text(), "⏎"), "the page has line breaks as signs: %s", p.text())
		p.focused(".mistakes button")
		p.keys(kb.Enter)
		p.editor("replicaz")
		p.until("the cursor is on the mistake", func(string) bool { return strings.Contains(p.line(), "replicaz: 3") })
		p.keys(kb.F8)
		p.until("F8 goes to the next mistake", func(string) bool { return strings.Contains(p.line(), "a: 1") })
		testenv.Equal(t, eval[int](p, `document.querySelector(".editor").shadowRoot.querySelectorAll(".cm-mistake").length`), 4, "the number of marked lines is")
	})

	t.Run("what is applied stays", func(t *testing.T) {
		p.T = t
		// The quota is reached by the second pod: a dry run of each is accepted.
		k.Apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: few}\n---\napiVersion: v1\nkind: ResourceQuota\nmetadata: {name: one, namespace: few}\nspec: {hard: {configmaps: '2'}}\n")
		k.Becomes(harness.Soon, "1", "-n", "few", "get", "quota/one", "-o", "jsonpath={.status.used.configmaps}")
		p.paste("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: few}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b, namespace: few}\n")
		p.ctrl(ctrlEnter)
		p.shows("The server would accept this")
		p.focused("#create-apply")
		p.keys(kb.Enter)
		p.shows("Applied: 1 of 2 objects. Failed: 1.", "What is applied stays", "the quota one is exceeded. configmaps: 2 of 2 are used, and this needs 1 more", "The server's words")
		p.shot("create-partly")
		k.Kubectl("-n", "few", "delete", "quota", "one")
		eval[any](p, `document.querySelector(".editor").shadowRoot.querySelector(".cm-content").focus()`)
		p.ctrl(ctrlEnter)
		p.shows("is there already")
		p.focused("#create-apply")
		p.keys(kb.Enter)
		p.shows("unchanged", "2 objects are applied")
		p.keys(kb.Escape)
	})

	t.Run("an edit without last-applied, over a reload", func(t *testing.T) {
		p.T = t
		p.find("cm default", "mine")
		p.keys("e")
		p.editor("first: one")
		p.shows("team: x")
		testenv.False(t, strings.Contains(p.text(), "last-applied-configuration"), "the editor shows last-applied")
		p.replace("first: one", "first: changed")
		eval[any](p, `location.reload()`)
		p.editor("first: changed")
		p.ctrl(ctrlEnter)
		p.shows("What will change", "+  first: changed")
		p.focused("#edit-apply")
		p.keys(kb.Enter)
		p.shows("mine is changed")
		testenv.Contains(t, k.Kubectl("get", "cm", "mine", "-o", "yaml"), "last-applied-configuration", "the object is")
		testenv.Equal(t, eval[string](p, `sessionStorage.getItem("coracle-drafts") ?? ""`), "", "what is stored is")
	})

	t.Run("an edit that is refused", func(t *testing.T) {
		p.T = t
		p.find("cm default", "mine")
		p.keys("e")
		p.editor("first: changed")
		p.replace("first: changed", "first: 1")
		p.ctrl(ctrlEnter)
		p.shows("data.first: text is wanted", "line ")
		p.shot("edit-mistake")
		p.focused(".mistakes button")
		p.keys(kb.Enter)
		p.until("the cursor is on the mistake", func(string) bool { return strings.Contains(p.line(), "first: 1") })
	})
	p.saysNothing("status of 422")
}
