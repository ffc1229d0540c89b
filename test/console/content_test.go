//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// evil is text that a page would run that takes text for HTML.
const evil = `<img src=x onerror=window.__xss=1>`

// badKinds are custom resources whose printer columns are wrong: values of other types, paths that lead nowhere, and
// names that would be HTML; and one without columns.
const badKinds = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crooks.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: crooks, singular: crook, kind: Crook, shortNames: [crk]}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
    additionalPrinterColumns:
    - {name: '` + evil + `', type: string, jsonPath: .spec.text, description: '` + evil + `'}
    - {name: Number, type: integer, jsonPath: .spec.text}
    - {name: When, type: date, jsonPath: .spec.text}
    - {name: Flag, type: boolean, jsonPath: .spec.object}
    - {name: Object, type: string, jsonPath: .spec.object}
    - {name: Many, type: string, jsonPath: '.spec.list[*].a'}
    - {name: Nowhere, type: string, jsonPath: '.spec.no.such["field"]'}
    - {name: Nowhere, type: number, jsonPath: '.spec.list[7]'}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: plains.example.com}
spec:
  group: example.com
  scope: Cluster
  names: {plural: plains, singular: plain, kind: Plain}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// badObjects are objects with such text in all places that the API allows.
const badObjects = `
apiVersion: example.com/v1
kind: Crook
metadata: {name: first, namespace: default, annotations: {note: '` + evil + `'}}
spec: {text: '` + evil + `', object: {a: '` + evil + `'}, list: [{a: 1}, {a: '` + evil + `'}]}
---
apiVersion: example.com/v1
kind: Plain
metadata: {name: simple}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "` + evil + `"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: bad-text, namespace: default}
data: {html: '` + evil + `', bidi: "user\u202enimda\u202c end", breaks: "a\u2028b\u0007"}
---
apiVersion: v1
kind: Event
metadata: {name: bad-event, namespace: default}
involvedObject: {kind: ConfigMap, namespace: default, name: bad-text}
type: Warning
reason: '` + evil + `'
message: "` + evil + ` \u202eesrever"
source: {component: test}
firstTimestamp: "2026-01-01T00:00:00Z"
lastTimestamp: "2026-01-01T00:00:00Z"
count: 1
---
apiVersion: v1
kind: Pod
metadata: {name: noisy, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: box
    image: ` + harness.BoxImage + `
    imagePullPolicy: Never
    command:
    - sh
    - -c
    - |
      echo '` + evil + `'
      printf 'title \033]0;owned\007 link \033]8;;javascript:window.__xss=1\033\\here\033]8;;\033\\ \033[31mred\033[0m\n'
      printf 'bidi \342\200\256txet\342\200\254 end\n'
      printf 'bytes \377\376 end\n'
      exec testbox hold
---
apiVersion: v1
kind: Pod
metadata: {name: endless, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: box
    image: ` + harness.BoxImage + `
    imagePullPolicy: Never
    command: [sh, -c, "head -c 10485760 /dev/zero | tr '\\000' x; echo; echo after the long line; exec testbox hold"]
---
apiVersion: v1
kind: Namespace
metadata: {name: empty}
`

// TestHostileContentIsShownAsText: whatever objects, printer columns, logs and programs say, the page shows it as text.
func TestHostileContentIsShownAsText(t *testing.T) {
	k := newServer(t)
	k.Apply(badKinds)
	k.Kubectl("wait", "--for=condition=Established", "crd/crooks.example.com", "crd/plains.example.com", "--timeout=60s")
	harness.Eventually(t, harness.Soon, "the objects are there", func() error {
		return harness.Succeeds(k.TryApply(badObjects))
	})
	k.Kubectl("wait", "--for=condition=Ready", "pod/noisy", "pod/endless", "--timeout=120s")
	p := newBrowser(t, k.Machine.Site).admin(k)

	p.list("crk default")
	p.shows("first", evil, "Object", "Many") // the API gives no column from a path on that it cannot read
	p.shot("crooks")
	p.keys("o", "o", "O") // sorted by what is not a number
	p.shows("first")
	p.only("first")
	p.details()
	p.shows("note=" + evil)
	p.keys("y")
	p.shows("kind: Crook")
	p.list("plains")
	p.shows("simple", "Age")
	p.find("clusterroles", "system:node-proxier")
	p.details()
	p.back()
	p.only("img src=x")
	p.details()
	p.shows(evil)
	p.keys("e")
	p.editor(evil)
	p.keys(kb.Escape)
	p.until("the object is there", func(string) bool { return eval[bool](p, `!!document.querySelector(".object .facts")`) })
	p.keys("x")
	p.shows("Delete clusterrole "+evil+"?", "kubectl delete clusterrole '"+evil+"'")
	p.shot("evil-name")
	p.keys(kb.Tab, kb.Enter)
	p.shows("is being deleted")
	p.list("events default")
	p.keys("/", "bad-text", kb.Enter)
	p.shows(evil, `\u{202e}esrever`)
	p.find("cm default", "bad-text")
	p.details()
	p.shows(evil, `user\u{202e}nimda\u{202c} end`, `a\u{2028}b\u{7}`)
	p.keys("y")
	p.shows("kind: ConfigMap")
	p.keys("e")
	p.editor("kind: ConfigMap")
	p.keys(kb.Escape)

	p.find("po default", "noisy")
	p.keys("l")
	p.shows(evil, `title \u{1b}]0;owned\u{7} link`, "javascript:", "red", `bidi \u{202e}txet\u{202c} end`, "bytes \uFFFD")
	p.shot("bad-log")
	p.back()
	p.only("endless") // a line of 10 MB
	p.keys("l")
	p.shows("after the long line")
	p.keys("/", "more bytes", kb.Enter)
	p.shows("more bytes)")
	p.keys("g")
	p.shows("xxxxxxxxxxxx")
	p.keys(kb.Escape)
	p.back()
	title := eval[string](p, `document.title`)
	p.only("noisy")
	p.keys("s")
	p.shows("#")
	p.keys(`printf '\033]0;owned\007\033]52;c;b3duZWQ=\007\033]8;;javascript:window.__xss=1\033\\here\033]8;;\033\\\342\200\256txet\n'; echo do''ne`, kb.Enter)
	p.shows("done")
	if now := eval[string](p, `document.title`); strings.Contains(now, "owned") {
		t.Errorf("the title was %q and is %q", title, now)
	}
	p.shot("bad-shell")
	// A link of a program's own opens nothing.
	at := eval[[]float64](p, `{ const e = [...document.querySelectorAll(".xterm-rows span")].findLast((s) => s.textContent.startsWith("here")); const r = e.getBoundingClientRect(); [r.left + 6, r.top + r.height / 2] }`)
	p.do("clicking the link", chromedp.MouseClickXY(at[0], at[1]))
	if hash := eval[string](p, `location.hash`); !strings.HasPrefix(hash, "#/shell/") {
		t.Errorf("a click on a program's link has led to %s", hash)
	}
	p.keys("exit", kb.Enter)
	p.shows("exit code")
	p.keys(kb.Escape)

	p.list("po empty")
	p.shows("No pods in namespace empty.")

	// An object as large as the API takes: its YAML has a million characters.
	line := "A line of a large object, one of very many.\n"
	c := k.KubectlCommand(t.Context(), "create", "-f", "-")
	c.Stdin = strings.NewReader("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: huge, namespace: empty}\ndata:\n  alpha: b\n  text: |\n" +
		strings.Repeat("    "+line, 1_000_000/len(line)) + "  zend: the end\n")
	testenv.Must(harness.Output(c))(t)
	p.find("cm empty", "huge")
	p.keys("y")
	p.shows("zend: the end")
	p.keys("e")
	p.editor("alpha: b")
	p.replace("alpha: b", "alpha: changed")
	p.ctrl(ctrlEnter)
	p.shows("What will change", "+  alpha: changed")
	p.focused("#edit-apply")
	p.keys(kb.Enter)
	p.shows("huge is changed")
	if got := k.Kubectl("-n", "empty", "get", "configmap", "huge", "-o", "jsonpath={.data.alpha} {.data.zend}"); got != "changed the end" {
		t.Errorf("the edit has made %q", got)
	}

	if eval[bool](p, `window.__xss !== undefined || document.querySelector("main img, dialog img, .announcements img") !== null`) {
		t.Error("text has become a part of the page")
	}
	p.saysNothing("metrics.k8s.io") // of a pod that has just begun

	// A script that got into the page could ask no other host, and the browser says so.
	testenv.True(t, eval[bool](p, `fetch("https://203.0.113.1/").then(() => false, () => true)`), "the page may ask another host")
	p.until("the browser reports it", func(string) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return slices.ContainsFunc(p.violations, func(s string) bool {
			return strings.Contains(s, "203.0.113.1") && strings.Contains(s, "Content Security Policy")
		})
	})
}
