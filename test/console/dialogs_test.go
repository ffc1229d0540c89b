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

var scaled = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: one, namespace: default, labels: {app.kubernetes.io/managed-by: Helm}, annotations: {meta.helm.sh/release-name: shop}}
spec:
  replicas: 1
  selector: {matchLabels: {app: one}}
  template:
    metadata: {labels: {app: one}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: box, image: ` + harness.BoxImage + `, imagePullPolicy: Never, command: [testbox, hold]}]
---
` + harness.Workload("Deployment", "default/two", "replicas: 2", `
  containers: [`+harness.BoxYAML+`, command: [testbox, hold]}]`) + `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: guard, namespace: default}
spec: {minReplicas: 2, maxReplicas: 5, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: two}}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: default}
spec: {selector: {app: one}, ports: [{name: main, port: 8080}]}
`

// kept are objects in a namespace that is deleted, and some that wait for finalizers.
const kept = `
apiVersion: v1
kind: Namespace
metadata: {name: full}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: inside, namespace: full, finalizers: [example.com/never]}
---
apiVersion: v1
kind: Secret
metadata: {name: inside, namespace: full}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: again, namespace: default}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: stuck, namespace: default, finalizers: [example.com/never, example.com/other]}
---
apiVersion: v1
kind: Pod
metadata: {name: alone, namespace: default, finalizers: [example.com/never]}
spec:
  containers: [{name: box, image: ` + harness.BoxImage + `, imagePullPolicy: Never, command: [testbox, hold]}]
`

// TestDangerousActionsAskFirst does what can do harm, by keys alone: no key that is pressed too much does it.
func TestDangerousActionsAskFirst(t *testing.T) {
	k := newServer(t)
	k.Apply(scaled)
	k.Apply(kept)
	p := newBrowser(t, k.Machine.Site).admin(k)
	t.Run("scale", func(t *testing.T) { p.T = t; scaleSafely(k, p) })
	t.Run("delete", func(t *testing.T) { p.T = t; deleteSafely(k, p) })
	t.Run("finalizer", func(t *testing.T) { p.T = t; removeFinalizers(k, p) })
	p.T = t
	p.saysNothing("status of 409", "status of 404")
}

// inspectDialog has axe-core look at a dialog, in a narrow window and in a small one.
func inspectDialog(p *page, dialog string) {
	axe := axeScript(p.T)
	for _, width := range []int64{390, 1024} {
		p.size(width, 800)
		p.accessible(fmt.Sprintf("%s at %d", dialog, width), axe)
	}
	p.size(1280, 800)
}

// scaleSafely types a number over the one that is there, and jumps.
func scaleSafely(k *harness.Kube, p *page) {
	t := p.T
	replicas := func(name string) string {
		return k.Kubectl("get", "deployment", name, "-o", "jsonpath={.spec.replicas}")
	}
	p.find("deploy default", "one")
	p.keys("S")
	p.shows("Scale deployment default/one", "It has 1 replica now.", "Helm made this object in release shop")
	p.keys("3")
	p.shows("--replicas=3 ")
	p.keys(kb.Enter)
	p.shows("one is scaled to 3")
	testenv.Equal(t, replicas("one"), "3", "the replicas are")

	// A jump wants more than Enter.
	p.keys("S")
	p.shows("It has 3 replicas now.")
	p.keys("10", kb.Enter)
	p.shows("more than three times as many as now", "default/one: from 3 to 10, 7 more")
	p.shot("scale-jump")
	inspectDialog(p, "scale-jump")
	p.keys(kb.Enter) // on Cancel
	p.without("more than three times")
	testenv.Equal(t, replicas("one"), "3", "the replicas are")
	p.keys("S")
	p.shows("It has 3 replicas now.")
	p.keys("10", kb.Enter)
	p.shows("more than three times")
	p.keys(kb.Tab, kb.Enter)
	p.shows("one is scaled to 10")
	testenv.Equal(t, replicas("one"), "10", "the replicas are")
	k.Kubectl("scale", "deployment", "one", "--replicas=1")

	// Several: each one's number, and who owns it.
	p.keys(kb.Escape)
	p.shows("two")
	p.keys("g", "  ")
	p.shows("2 marked")
	p.keys("S")
	p.shows("Scale 2 objects", "default/one: 1 replica", "default/two: 2 replicas",
		"HorizontalPodAutoscaler guard owns this number: 2 to 5.")
	p.shot("scale-many")
	inspectDialog(p, "scale-many")
	// y copies the command, in a field of numbers too.
	eval[any](p, `navigator.clipboard.writeText = async (text) => { window.__copied = text }`)
	p.keys("y")
	p.shows("Copied.")
	testenv.Equal(t, eval[string](p, `__copied`), "kubectl scale deployment one two --replicas=1 -n default", "the clipboard has")
	p.keys(kb.Escape, kb.Escape)

	p.find("svc default", "front")
	p.keys("f")
	p.shows("It says it has: 8080 (main).")
	p.keys("9999")
	p.shows("kubectl port-forward service/front :9999 ")
	p.keys(kb.Escape)
}

// deleteSafely deletes with choices, a namespace by its name, and not an object that is another than the one that was
// shown.
func deleteSafely(k *harness.Kube, p *page) {
	t := p.T
	// Enter twice does nothing to a pod; the command follows the choices.
	p.find("po default", "alone")
	p.keys("x")
	p.shows("Delete pod default/alone?", "nothing makes it again", "kubectl delete pod alone -n default")
	p.keys(kb.Enter)
	p.without("Delete pod default/alone?")
	testenv.Check(t, testenv.Err(k.Try("get", "pod", "alone")), "Enter has deleted")
	p.keys("x")
	p.shows("Delete pod default/alone?")
	eval[any](p, `document.querySelector("dialog summary").focus()`)
	p.keys(kb.Enter, kb.Tab, "7")
	p.shows("kubectl delete pod alone --grace-period=7 -n default")
	p.keys(kb.Tab, " ")
	p.shows("--grace-period=0 --force", "its containers may run on")
	p.shot("delete-choices")
	inspectDialog(p, "delete-choices")
	p.keys(kb.Tab, kb.Tab, kb.Tab, kb.Enter) // the command's Copy, Cancel, Delete
	p.shows("alone is being deleted")
	testenv.Equal(t, k.Kubectl("get", "pod", "alone", "-o", "jsonpath={.metadata.deletionGracePeriodSeconds}"), "0", "the grace period is")

	// What is left can be chosen.
	p.find("deploy default", "one")
	p.keys("x")
	p.shows("Its pods are deleted, too.")
	eval[any](p, `document.querySelector("dialog summary").focus()`)
	p.keys(kb.Enter, kb.Tab, "stays")
	p.shows("kubectl delete deployment one --cascade=orphan -n default")
	p.keys(kb.Tab, kb.Tab, kb.Tab, kb.Enter)
	p.shows("one is being deleted")
	harness.Eventually(t, harness.Soon, "the pods' set has lost its owner", func() error {
		out, err := k.Try("get", "replicaset", "-l", "app=one", "-o", "jsonpath={.items[*].metadata.name}{.items[*].metadata.ownerReferences}")
		if err == nil && (!strings.HasPrefix(out, "one-") || strings.Contains(out, "[")) {
			err = fmt.Errorf("there is %q", out)
		}
		return err
	})

	// Another object of the name is not the one that was shown.
	p.find("cm default", "again")
	p.keys("x")
	p.shows("Delete configmap default/again?")
	k.Kubectl("delete", "configmap", "again")
	k.Kubectl("create", "configmap", "again", "--from-literal=a=b")
	p.keys(kb.Tab, kb.Enter)
	p.shows("this is a new object: the one that was shown has gone. Nothing was deleted.")
	testenv.Equal(t, k.Kubectl("get", "configmap", "again", "-o", "jsonpath={.data.a}"), "b", "the new object has")

	// A namespace wants its name.
	p.find("ns", "full")
	p.keys("x")
	p.shows("Delete namespace full?", "objects of", "go with it.", "secrets 1", "Type full to confirm")
	p.without("At least")
	p.shot("delete-namespace")
	inspectDialog(p, "delete-namespace")
	p.keys(kb.Enter, "ful", kb.Enter)
	testenv.Equal(t, k.Kubectl("get", "namespace", "full", "-o", "jsonpath={.status.phase}"), "Active", "without its name the namespace is")
	p.keys("l", kb.Enter)
	p.shows("full is being deleted")
	// And says what is left in it.
	k.Await(harness.Soon, "namespace/full", `{.status.conditions[?(@.type=="NamespaceFinalizersRemaining")].status}`, "True")
	p.details()
	p.shows("Its deletion began", "example.com/never in 1 resource instances")
	p.shot("namespace-waits")
	inspectDialog(p, "namespace-waits")
	p.back()
	k.Kubectl("-n", "full", "patch", "configmap", "inside", "--type=json", "-p", `[{"op":"remove","path":"/metadata/finalizers"}]`)
}

// removeFinalizers takes finalizers from an object one at a time, and is back in the list when it has gone.
func removeFinalizers(k *harness.Kube, p *page) {
	t := p.T
	k.Kubectl("delete", "configmap", "stuck", "--wait=false")
	p.find("cm default", "stuck")
	p.details()
	p.shows("Its deletion began", "It waits for the finalizers example.com/never, example.com/other.")
	eval[any](p, `document.querySelector(".note button").focus()`)
	p.keys(kb.Enter)
	p.shows("Remove a finalizer of configmap default/stuck", "may stay for ever", "Type stuck to confirm", `"op":"remove"`)
	p.shot("finalizer")
	inspectDialog(p, "finalizer")
	p.keys(kb.Enter, "stuck", kb.Enter)
	p.shows("The finalizer example.com/never of stuck is removed.", "It waits for the finalizer example.com/other.")
	testenv.Equal(t, k.Kubectl("get", "configmap", "stuck", "-o", "jsonpath={.metadata.finalizers}"), `["example.com/other"]`, "the finalizers are")
	// By the question of x, too.
	p.keys("x")
	p.focused("dialog button") // Cancel
	eval[any](p, `document.querySelector("dialog .start button").focus()`)
	p.keys(kb.Enter)
	p.shows("Type stuck to confirm")
	p.keys("stuck", kb.Enter)
	p.until("the list is there", func(string) bool { return eval[bool](p, `location.hash.startsWith("#/list/")`) })
	testenv.Fails(t, testenv.Err(k.Try("get", "configmap", "stuck")), "the object is still there")
}
