//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// workload is what the views show: pods that run, one that cannot, and objects of other kinds.
var workload = harness.Workload("Deployment", "default/talker", "replicas: 2", `
  terminationGracePeriodSeconds: 1, containers: [`+harness.BoxYAML+`, command: [sh, -c,
  'echo a line of $HOSTNAME; echo "{\"level\":\"warn\",\"msg\":\"it is hot\",\"degrees\":41}"; exec testbox hold']}]`) + `
apiVersion: v1
kind: Pod
metadata: {name: broken, namespace: default}
spec:
  containers: [{name: box, image: none.example/none, imagePullPolicy: Never}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: words, namespace: default}
data: {greeting: hello}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden, namespace: default}
stringData: {password: not-to-be-seen}
---
apiVersion: v1
kind: Service
metadata: {name: talker, namespace: default}
spec: {selector: {app: talker}, ports: [{port: 80}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: default}
spec:
  schedule: "0 3 1 1 *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: box, image: ` + harness.BoxImage + `, imagePullPolicy: Never, command: [sh, -c, echo ran]}]}}}}
`

// addWorkload makes the workload and waits until its pods are what they will be.
func addWorkload(k *harness.Kube) {
	k.T.Helper()
	k.Apply(workload)
	k.Kubectl("rollout", "status", "deployment/talker", "--timeout=120s")
	k.Await(harness.Soon, "pod/broken", "{.status.containerStatuses[0].state.waiting.reason}", "ErrImageNeverPull")
}

// TestViewsByKeyboard goes through the console's views without a mouse, and kills the server that they are of.
func TestViewsByKeyboard(t *testing.T) {
	k := newServer(t)
	addWorkload(k)
	b := newBrowser(t, k.Machine.Site)
	p := b.admin(k)

	// The overview begins with what is wrong.
	p.shows("broken", "ErrImageNeverPull", "1 of 1 nodes ready")
	p.keys("j")
	p.focused(".card-head a")
	p.keys(kb.Enter)
	p.shows("none.example/none")
	p.keys("0")
	p.shows("1 problem")

	// A list: its filter, order, columns, marks.
	p.list("po default")
	p.shows("talker-", "Running", "broken")
	p.keys("/", "!talker", kb.Enter)
	p.without("talker-")
	p.keys(kb.Escape)
	p.keys("/", "-l app=talker", kb.Enter)
	p.without("broken")
	p.keys(kb.Escape)
	p.shows("broken")
	p.keys("w")
	p.shows("Readiness Gates")
	p.keys("w")
	p.without("Readiness Gates")
	first := func() string { return eval[string](p, `document.querySelector(".table .line").innerText`) }
	p.until("the first row is the broken pod", func(string) bool { return strings.Contains(first(), "broken") })
	p.keys("O")
	p.until("the order is reversed", func(string) bool { return strings.Contains(first(), "talker-") })
	p.keys("O", "g", " ")
	p.shows("1 marked")
	p.keys(kb.Escape)
	p.without("1 marked")
	p.keys("G", "g", "j", "k", kb.Enter)
	p.shows("none.example/none", "Conditions")
	p.keys("v")
	p.shows("ErrImageNeverPull")
	p.keys("y")
	p.shows("kind: Pod")
	p.keys(kb.Escape)

	// The address has the whole state: the same after "reload".
	p.list("po default")
	p.keys("/", "talker", kb.Enter)
	p.without("broken")
	eval[bool](p, `new Promise((done) => setTimeout(() => done(true), 300))`) // the address follows what is typed after a pause
	eval[any](p, `location.reload()`)
	p.shows("talker-", "Running")
	p.without("broken")
	p.keys("g", kb.Escape)
	p.shows("broken")

	// A log, of one pod and of a workload, and as a file.
	p.only("talker-")
	p.keys("l")
	p.shows("a line of talker-")
	p.keys(kb.Escape)
	p.list("deploy default")
	p.shows("talker", "2/2")
	p.only("talker")
	p.keys("l")
	p.shows("2 pods")
	p.until("the lines of both pods", func(now string) bool { return strings.Count(now, "a line of talker-") == 2 })
	p.keys("t")
	p.becomes("times are shown", `/^20\d\d-/.test(document.querySelector(".log-line").innerText)`)
	p.keys("J")
	p.until("JSON is in words", func(now string) bool { return strings.Count(now, "WARN it is hot degrees=41") == 2 })
	p.keys("J", "t", "/", "no such line", kb.Enter)
	p.shows("No line matches.")
	p.keys(kb.Escape)
	folder := b.downloads(p)
	p.keys("D")
	p.shows("4 lines are saved.")
	harness.Eventually(t, harness.Soon, "the log is saved", func() error {
		text, err := os.ReadFile(filepath.Join(folder, "talker.log"))
		testenv.Require(t, err != nil || strings.Count(string(text), "a line of talker-") == 2, "the file has %q", text)
		return err
	})
	p.keys(kb.Escape)

	// A shell.
	p.find("po default", "talker-")
	p.keys("s")
	p.shows("#")
	p.keys("echo an$((40+2))swer", kb.Enter)
	p.shows("an42swer")
	p.keys("exit 3", kb.Enter)
	p.shows("exit code 3")
	p.keys(kb.Escape)
	p.shows("pods", "Ready")

	// Objects of other kinds.
	p.find("cm default", "words")
	p.keys("y")
	p.shows("greeting: hello")
	p.find("secrets default", "hidden")
	p.details()
	p.shows("password")
	p.without("not-to-be-seen", "bm90LXRvLWJlLXNlZW4")
	p.keys("y")
	p.shows("hidden until you ask")
	p.without("bm90LXRvLWJlLXNlZW4")
	p.find("svc default", "talker")
	p.details()
	p.shows("Endpoint slices", "Pods it selects", "talker-")
	p.find("no", "node-1")
	p.details()
	p.shows("Pods on this node", "talker-", "Kubelet")
	p.list("events default")
	p.shows("ErrImageNeverPull")
	p.keys(":", "nothing-of-the-kind", kb.Enter)
	p.shows("has no kind named")
	p.keys(kb.Escape, "?")
	p.shows("A text or regular expression")
	p.keys(kb.Escape)

	// A question has the keys, also when "back" has changed the view behind it.
	p.find("cm default", "words")
	p.details()
	p.keys("x")
	p.shows("Delete configmap default/words?")
	eval[any](p, `history.back()`)
	p.until("the list is behind the question", func(string) bool { return eval[bool](p, `!!document.querySelector(".table .line")`) })
	p.keys(kb.Escape)
	p.without("Delete configmap default/words?")
	if hash := eval[string](p, `location.hash`); !strings.HasPrefix(hash, "#/list/") {
		t.Errorf("Esc has led to %s", hash)
	}

	// The server is killed and comes back: the list goes on by itself, where it was.
	p.list("po default")
	p.shows("broken")
	before := eval[map[string]int](p, `__types`)
	k.Server.Kill()
	p.shows("ErrImageNeverPull")
	k.Server.StartNode()
	k.Kubectl("delete", "pod", "broken", "--wait=false")
	p.without("broken")
	after := eval[map[string]int](p, `__types`)
	testenv.False(t, after["reset"] != 0 || after["rows"] != before["rows"], "the list was read again: before %v, after %v", before, after)
	p.saysNothing("metrics.k8s.io") // of pods without any
}
