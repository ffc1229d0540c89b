//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// tasksYAML is what the tasks are done on, beside the shop of the pictures.
var tasksYAML = `
apiVersion: v1
kind: ConfigMap
metadata: {name: words, namespace: shop}
data: {color: green, taste: sweet}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: stuck, namespace: shop, finalizers: [example.com/never]}
---
apiVersion: v1
kind: Secret
metadata: {name: key, namespace: shop}
stringData: {password: swordfish}
---
` + harness.Workload("Deployment", "shop/front", "replicas: 1", `
  terminationGracePeriodSeconds: 0,
  containers: [`+harness.BoxYAML+`, command: [testbox, serve], ports: [{name: http, containerPort: 8080}],
  env: [{name: COLOR, value: red}], envFrom: [{configMapRef: {name: words}}]}]`) +
	harness.Workload("Deployment", "shop/greedy", "replicas: 1", `
  terminationGracePeriodSeconds: 0,
  containers: [`+harness.BoxYAML+`, command: [sh, -c, "dd if=/dev/zero of=/m/x bs=1M count=64 && exec testbox hold"],
  volumeMounts: [{name: m, mountPath: /m}], resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {memory: 256Mi}}}],
  volumes: [{name: m, emptyDir: {medium: Memory}}]`) + `
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec: {selector: {app: front}, ports: [{name: main, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: wrong, namespace: shop}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
`

// pasted is what people paste: a namespace with what is in it, and a kind with an object of it.
const pasted = `apiVersion: v1
kind: Namespace
metadata: {name: garden}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: rake, namespace: garden}
data: {a: b}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gears.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: gears, singular: gear, kind: Gear}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
    additionalPrinterColumns: [{name: Teeth, type: integer, jsonPath: .spec.teeth}]
---
apiVersion: example.com/v1
kind: Gear
metadata: {name: large, namespace: garden}
spec: {teeth: 73}
`

// task is one of a day's tasks.
type task struct {
	name string
	do   func(t *testing.T)
}

// TestTwentyTasks does a day's tasks of a cluster's users by keys alone, and prints how many keys each took, with those
// that were typed, and how long it took with all waiting for the cluster. A combination of keys is one, and so is
// pasting. A task whose result is not reached fails.
func TestTwentyTasks(t *testing.T) {
	byHand(t, "tasks")
	k := newServer(t)
	k.Apply(shop)
	k.Apply(tasksYAML)
	k.Kubectl("create", "namespace", "team")
	k.Kubectl("-n", "shop", "rollout", "status", "deployment/front", "--timeout=120s")
	k.Kubectl("-n", "shop", "set", "env", "deployment/front", "COLOR=blue")
	for _, workload := range []string{"deployment/web", "deployment/front", "deployment/greedy", "statefulset/database"} {
		k.Kubectl("-n", "shop", "rollout", "status", workload, "--timeout=120s")
	}
	archive := filepath.Join(k.Machine.Dir, "greeting.tgz")
	testenv.NoError(t, os.WriteFile(archive, greeting.Archive(), 0o644))
	helm(k, "install", "hello", archive, "--set", "word=one")
	helm(k, "upgrade", "hello", archive, "--set", "word=two")
	k.Kubectl("-n", "shop", "wait", "--for=jsonpath={.status.containerStatuses[0].restartCount}=2", "pod", "-l", "app=payments", "--timeout=120s")

	b := newBrowser(t, k.Machine.Site)
	p := b.admin(k)
	var table strings.Builder
	for _, x := range append(reading(p), changing(k, b, p)...) {
		t.Run(strings.ReplaceAll(x.name, ",", ""), func(t *testing.T) {
			p.T = t
			eval[any](p, `document.querySelector("dialog")?.dispatchEvent(new Event("cancel", {cancelable: true})); document.activeElement?.blur(); location.hash = "#/"`)
			p.shows("nodes ready")
			before, began := p.pressed, time.Now()
			x.do(t)
			fmt.Fprintf(&table, "| %s | %d | %.1f s |\n", x.name, p.pressed-before, time.Since(began).Seconds())
		})
	}
	p.T = t
	t.Run("as a tenant by a link", func(t *testing.T) { tenantsLink(t, k, b, &table) })
	t.Logf("load %s\n| task | keys | time |\n| --- | --- | --- |\n%s", load(), &table)
}

// pick filters a list until each row has a name; the cursor is on one of them.
func (p *page) pick(name string) {
	p.T.Helper()
	p.keys("/", name, kb.Enter)
	p.until("only "+name+" is in the list", func(string) bool {
		return eval[bool](p, fmt.Sprintf(`{ const rows = [...document.querySelectorAll(".table .line")];
  rows.length > 0 && rows.every((r) => r.innerText.includes(%q)) && rows.some((r) => r.matches(".active")) }`, name))
	})
}

// tabTo presses Tab until an element has the focus.
func (p *page) tabTo(selector, text string) {
	p.T.Helper()
	for range 40 {
		if eval[bool](p, fmt.Sprintf(`!!document.activeElement?.matches(%q) && document.activeElement.innerText.includes(%q)`, selector, text)) {
			return
		}
		p.keys(kb.Tab)
	}
	p.fail("forty presses of Tab do not lead to %q", text)
}

// reading are the tasks that change nothing.
func reading(p *page) []task {
	return []task{
		{"what is wrong, and why", func(*testing.T) {
			p.shows("payments", "key.pem", "uploads")
		}},
		{"logs of all pods of a Deployment", func(*testing.T) {
			p.list("deploy shop")
			p.pick("web")
			p.keys("l")
			p.shows("3 pods", "connection refused")
		}},
		{"search in these logs, with the lines around a match", func(t *testing.T) {
			p.open("logs/deployments.v1.apps/shop/web")
			p.shows("connection refused")
			p.keys("/", "502", kb.Enter)
			p.shows("3 lines match")
			p.without("/cart")
			p.keys("n")
			p.shows("3 of 3", "/cart")
		}},
		{"the previous container's log", func(*testing.T) {
			p.list("po shop")
			p.pick("payments")
			p.shows("CrashLoopBackOff") // between two starts the kubelet has a log of before
			p.keys("p")
			p.shows("is the Secret payments-key mounted?")
		}},
		{"a shell", func(*testing.T) {
			p.list("po shop")
			p.pick("web-")
			p.keys("s")
			p.shows("#")
			before := p.pressed
			p.keys("echo an$((40+2))swer", kb.Enter)
			p.shows("an42swer")
			p.keys("exit", kb.Enter)
			p.shows("exit code")
			p.pressed = before // the shell's own
		}},
		{"a Secret's value", func(*testing.T) {
			p.list("secrets shop")
			p.pick("key")
			p.keys(kb.Enter)
			p.shows("password")
			p.without("swordfish")
			p.tabTo(".containers button", "Show")
			p.keys(kb.Enter)
			p.shows("swordfish")
		}},
		{"who uses a ConfigMap", func(*testing.T) {
			p.list("cm shop")
			p.pick("words")
			p.keys(kb.Enter)
			p.shows("What uses it")
			p.tabTo(".related button", "")
			p.keys(kb.Enter)
			p.shows("deployment front", "envFrom of box")
		}},
		{"what is behind a Service", func(*testing.T) {
			p.list("svc shop")
			p.pick("front")
			p.keys(kb.Enter)
			p.shows("1 endpoint is ready.", "Endpoint slices")
			p.back()
			p.becomes("the list is shown, and not the page's own tables", `document.querySelector("#filter")?.value === "front"`)
			p.keys(kb.Escape) // the filter
			p.pick("wrong")
			p.keys(kb.Enter)
			p.shows("Nothing is behind this Service: no running pod has app=nobody.")
		}},
		{"the warnings of a namespace", func(*testing.T) {
			p.list("ev shop")
			p.keys("/", "warning", kb.Enter)
			p.shows("BackOff", "Back-off restarting failed container")
		}},
		{"which pods are above their request", func(*testing.T) {
			p.list("po shop")
			p.cellIs("greedy-", "%MEM/R", toned("passing", "%"))
			for range 20 {
				if eval[bool](p, `location.hash.includes("sort=%25MEM") || location.hash.includes("sort=-%25MEM")`) {
					break
				}
				p.keys("o")
				eval[bool](p, `new Promise((done) => setTimeout(() => done(true), 350))`) // the address follows after a pause
			}
			p.keys("O")
			p.until("the greediest is first", func(string) bool {
				return strings.HasPrefix(eval[string](p, `document.querySelector(".table .line a")?.innerText ?? ""`), "greedy")
			})
		}},
		{"nodes, servers, leader, store", func(*testing.T) {
			p.shows("1 of 1 nodes ready", "leader", "Store", "Snapshots")
		}},
		{"search across kinds", func(*testing.T) {
			p.keys("Q")
			p.focused(".bar input")
			p.keys("front")
			p.shows("deployments", "services", "pods")
		}},
		{"another namespace", func(*testing.T) {
			before := p.pressed
			p.list("po shop")
			p.pressed = before // the list is where one is
			p.keys("n")
			p.focused("dialog input")
			p.keys("team", kb.Enter)
			p.shows("No pods in namespace team.")
		}},
	}
}

// changing are the tasks that change the cluster; the last one drains its node.
func changing(k *harness.Kube, b *browser, p *page) []task {
	shopGet := func(what, path string) string { return k.Kubectl("-n", "shop", "get", what, "-o", "jsonpath="+path) }
	return []task{
		{"edit what another client edits", func(t *testing.T) {
			p.list("cm shop")
			p.pick("words")
			p.keys("e")
			p.editor("color: green")
			k.Kubectl("-n", "shop", "patch", "configmap", "words", "--type=merge", "-p", `{"data":{"taste":"sour"}}`)
			p.replace("color: green", "color: blue")
			p.ctrl(ctrlEnter)
			p.shows("What will change", "+  color: blue")
			p.focused("#edit-apply")
			p.keys(kb.Enter)
			p.shows("words is changed")
			testenv.Equal(t, shopGet("configmap/words", "{.data}"), `{"color":"blue","taste":"sour"}`, "both edits have made")
		}},
		{"scale", func(t *testing.T) {
			p.list("deploy shop")
			p.pick("web")
			p.keys("S")
			p.shows("It has 3 replicas now.")
			p.keys("2", kb.Enter)
			p.shows("web is scaled to 2", "2/2")
			testenv.Equal(t, shopGet("deployment/web", "{.spec.replicas}"), "2", "the replicas are")
		}},
		{"restart", func(*testing.T) {
			p.list("deploy shop")
			p.pick("web")
			p.keys("R")
			p.shows("The pods are replaced")
			p.keys(kb.Enter)
			p.shows("web has restarted: 2 new pods are ready.")
		}},
		{"roll a Deployment back", func(*testing.T) {
			p.list("deploy shop")
			p.pick("front")
			p.keys("u")
			p.shows("Back to revision 1", "value: red")
			p.keys(kb.Enter)
			p.shows("front goes back to revision 1.")
			k.Becomes(harness.Soon, "red", "-n", "shop", "get", "deployment/front", "-o", "jsonpath={.spec.template.spec.containers[0].env[0].value}")
		}},
		{"create a namespace and a kind, with objects of them", func(t *testing.T) {
			p.keys(":", "create", kb.Enter)
			p.focused(".editor")
			p.paste(pasted)
			p.shows("teeth: 73")
			p.ctrl(ctrlEnter)
			p.shows("The server would accept this, as far as it can be checked now")
			p.focused("#create-apply")
			p.keys(kb.Enter)
			p.shows("4 objects are applied")
			testenv.Equal(t, k.Kubectl("-n", "garden", "get", "gear", "large", "-o", "jsonpath={.spec.teeth}"), "73", "the gear has")
			p.keys(kb.Escape)
		}},
		{"delete what waits for a finalizer", func(t *testing.T) {
			p.list("cm shop")
			p.pick("stuck")
			p.keys("x")
			p.shows("Delete configmap shop/stuck?")
			p.keys(kb.Tab, kb.Enter)
			p.shows("stuck is being deleted")
			k.Becomes(harness.Soon, `["example.com/never"]`, "-n", "shop", "get", "configmap/stuck", "-o", "jsonpath={.metadata.finalizers}")
			p.keys(kb.Enter)
			p.shows("It waits for the finalizer example.com/never.")
			p.tabTo(".note button", "Remove")
			p.keys(kb.Enter)
			p.shows("Type stuck to confirm")
			p.keys("stuck", kb.Enter)
			p.until("the list is there", func(string) bool { return eval[bool](p, `location.hash.startsWith("#/list/")`) })
			testenv.Fails(t, testenv.Err(k.Try("-n", "shop", "get", "configmap", "stuck")), "the object is still there")
		}},
		{"delete", func(*testing.T) {
			p.list("po shop")
			p.pick("import-")
			name := eval[string](p, `document.querySelector(".table .line a").innerText`)
			p.keys("x")
			p.shows("Delete pod shop/" + name)
			p.keys(kb.Tab, kb.Enter)
			p.shows(name + " is being deleted")
			k.Kubectl("-n", "shop", "wait", "--for=delete", "pod/"+name, "--timeout=60s")
		}},
		{"forward a port", func(t *testing.T) {
			p.list("svc shop")
			p.pick("front")
			p.keys("f")
			p.shows("It says it has: 80 (main).")
			p.keys(kb.Enter)
			p.shows("Forwarded ports", "http://127.0.0.1:2")
			address := regexp.MustCompile(`http://127\.0\.0\.1:2\d+/`).FindString(p.text())
			client := http.Client{Transport: &http.Transport{DialContext: b.machine.Dial, DisableKeepAlives: true}}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			answer := testenv.Must(client.Do(testenv.Must(http.NewRequestWithContext(ctx, http.MethodGet, address+"env/COLOR", nil))(t)))(t)
			defer answer.Body.Close()
			text := testenv.Must(io.ReadAll(answer.Body))(t)
			testenv.Equal(t, strings.TrimSpace(string(text)), "red", "the pod says")
		}},
		{"roll a Helm release back", func(t *testing.T) {
			p.keys(":", "helm default", kb.Enter)
			p.shows("hello", "deployed", "1.2.3")
			p.keys("j", kb.Enter)
			p.shows("helm uninstall hello", "History")
			p.keys("u")
			p.shows("-word: two", "+word: one")
			p.cancelHasFocus()
			p.keys(kb.Tab, kb.Enter)
			p.shows("is again as in revision 1.")
			testenv.Equal(t, k.Kubectl("get", "configmap", "hello", "-o", "jsonpath={.data.word}"), "one", "the release says")
		}},
		{"cordon a node", func(*testing.T) {
			p.list("no")
			p.shows("Ready")
			p.keys("C")
			p.shows("Cordon this node?")
			p.keys(kb.Enter)
			p.shows("node-1 is cordoned")
			k.Await(harness.Soon, "node/node-1", "{.spec.unschedulable}", "true")
		}},
		{"drain a node", func(*testing.T) {
			p.list("no")
			p.shows("SchedulingDisabled")
			p.keys("D")
			p.shows("Drain node", "with emptyDir")
			p.tabTo("dialog input[type=checkbox]", "")
			p.keys(" ", kb.Enter)
			p.shows("is drained")
		}},
	}
}

// tenantsLink opens a link of a colleague as a user of one namespace: login, the same view, and again after a reload.
func tenantsLink(t *testing.T, k *harness.Kube, b *browser, table *strings.Builder) {
	token := newToken(k.In(t), "--role", "edit", "--namespace", "team")
	began := time.Now()
	p := b.open("https://" + net.JoinHostPort(k.IP, consolePort) + "/#/list/configmaps.v1?ns=team&filter=kube-root")
	p.T = t
	p.focused("textarea")
	p.keys(token)
	p.pressed = 1 // pasted
	p.keys(kb.Tab, kb.Enter)
	filtered := func() {
		p.shows("live", "kube-root-ca.crt")
		testenv.Equal(t, eval[string](p, `document.querySelector("#filter").value`), "kube-root", "the filter is")
	}
	filtered()
	eval[any](p, `location.reload()`)
	filtered()
	p.list("no")
	p.shows("You may not list nodes.")
	p.keys("n")
	p.focused("dialog input")
	p.shows("These are those in which you have rights.", "team")
	p.without("kube-system")
	fmt.Fprintf(table, "| as a tenant by a link | %d | %.1f s |\n", p.pressed, time.Since(began).Seconds())
}
