//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var served = harness.Workload("Deployment", "default/web", "", `
  terminationGracePeriodSeconds: 1, containers: [`+harness.BoxYAML+`, command: [testbox, serve], env: [{name: COLOR, value: green}],
  ports: [{name: http, containerPort: 8080}], volumeMounts: [{name: scratch, mountPath: /scratch}]}],
  volumes: [{name: scratch, emptyDir: {}}]`) + `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {selector: {app: web}, ports: [{name: main, port: 80, targetPort: http}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: guard, namespace: default}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
`

// TestActionsByKeys forwards a port, undoes and pauses a rollout, starts a debug container and drains a node, without a
// mouse.
func TestActionsByKeys(t *testing.T) {
	k := newServer(t)
	m := k.Machine
	k.Apply(served)
	k.Kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	k.Kubectl("set", "env", "deployment/web", "COLOR=blue")
	k.Kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	b := newBrowser(t, m.Site)
	p := b.admin(k)

	p.list("svc default")
	p.shows("web")
	p.only("web")
	p.keys("f")
	p.shows("It says it has: 80 (main).", "kubectl port-forward service/web :80 -n default")
	p.shot("forward")
	p.keys(kb.Enter)
	p.shows("Forwarded ports", "http://127.0.0.1:2")
	p.shot("forwards")
	address := regexp.MustCompile(`http://127\.0\.0\.1:2\d+/`).FindString(p.text())
	client := http.Client{Transport: &http.Transport{DialContext: b.machine.Dial, DisableKeepAlives: true}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	request := testenv.Must(http.NewRequestWithContext(ctx, http.MethodGet, address+"env/COLOR", nil))(t)
	answer := testenv.Must(client.Do(request))(t)
	defer answer.Body.Close()
	if text, err := io.ReadAll(answer.Body); strings.TrimSpace(string(text)) != "blue" {
		t.Errorf("%s says %q, %v", address, text, err)
	}
	p.keys(kb.Escape, ":", "forwards", kb.Enter)
	p.shows("0 open, 1 in all")
	p.keys(kb.Escape)

	p.list("deploy default")
	p.shows("1/1")
	p.only("web")
	p.keys("u")
	p.shows("Back to revision 1", "value: green", "kubectl rollout undo deployment web --to-revision=1 -n default")
	p.shot("undo")
	p.keys(kb.Enter)
	p.shows("web goes back to revision 1.")
	k.Await(harness.Soon, "deployment/web", "{.spec.template.spec.containers[0].env[0].value}", "green")
	p.keys("P")
	p.shows("Pause this rollout?", "kubectl rollout pause deployment web -n default")
	p.keys(kb.Enter)
	k.Await(harness.Soon, "deployment/web", "{.spec.paused}", "true")
	p.keys("u")
	p.shows("resume it first")
	p.keys(kb.Escape, "P")
	p.shows("Resume this rollout?")
	p.keys(kb.Enter)
	k.Await(harness.Soon, "deployment/web", "{.spec.paused}", "")
	k.Kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	k.Await(harness.Soon, "pods", "{.items[*].status.phase}", "Running") // one

	p.list("po default")
	p.shows("web-", "Running")
	p.only("web-")
	p.keys("b")
	p.shows("Debug container", "which the field offers")
	p.keys(harness.BoxImage)
	p.shows("kubectl debug -it web-", "--image="+harness.BoxImage)
	p.shot("debug")
	p.keys(kb.Enter)
	p.shows("Attached to", "debugger-")
	p.keys(kb.Enter)
	p.shows("#")
	p.keys("cat /proc/1/cmdline; echo an$((40+2))swer", kb.Enter)
	p.shows("an42swer", "serve")
	p.shot("attached")
	p.keys("exit", kb.Enter)
	p.shows("The container's program has ended.")
	p.keys(kb.Escape)
	p.shows("web-", "Running")
	p.keys("g", "A")
	p.shows("The container's program reads no input.")
	p.keys(kb.Escape)
	p.shows("Running")

	p.list("no")
	p.shows("Ready")
	p.keys("g", "D")
	p.shows("Drain node", "kubectl drain ", "--ignore-daemonsets", "ReplicaSet web-", "is evicted; data in emptyDir is lost", "Evict 1 pod with emptyDir")
	p.without("without a controller")
	p.shot("drain-question")
	inspectDialog(p, "drain-question")
	p.keys(kb.Tab, kb.Enter)
	p.shows("Nothing was changed.", "--delete-emptydir-data accepts that): default/web-")
	p.shot("drain-refused")
	node := k.Kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
	k.Await(harness.Soon, "node/"+node, "{.spec.unschedulable}", "")
	p.keys(kb.Escape, "D")
	p.shows("Evict 1 pod with emptyDir")
	eval[any](p, `document.querySelector("dialog input[type=checkbox]").focus()`) // data
	p.keys(" ", kb.Enter)
	p.shows("may not go yet", "The disruption budget guard needs 1 healthy pods")
	p.shot("drain")
	k.Kubectl("delete", "pdb", "guard")
	p.shows("is drained", "has gone")
	k.Await(harness.Soon, "node/"+node, "{.spec.unschedulable}", "true")
	p.keys(kb.Escape)
	// The pod is gone, and with it the forward.
	p.keys("F")
	p.shows("the pod was deleted")
	p.shot("forward-ended")

	p.saysNothing("400") // the drain and the undo that were refused
}
