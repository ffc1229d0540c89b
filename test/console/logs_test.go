//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/harness"
)

// stuck are pods that do not start, each for another reason.
var stuck = harness.Workload("Deployment", "default/hungry", "replicas: 2", `
  containers: [`+harness.BoxYAML+`, resources: {requests: {memory: 500Gi}}}]`) + `
apiVersion: v1
kind: Pod
metadata: {name: nomap, namespace: default}
spec:
  containers: [{name: box, image: ` + harness.BoxImage + `, imagePullPolicy: Never, volumeMounts: [{name: config, mountPath: /config}]}]
  volumes: [{name: config, configMap: {name: missing}}]
---
apiVersion: v1
kind: Pod
metadata: {name: noimage, namespace: default}
spec:
  containers: [{name: box, image: none.example/none, imagePullPolicy: Never}]
`

// box is the beginning of a container that runs a shell of the tests' image.
const box = `image: ` + harness.BoxImage + `, imagePullPolicy: Never, command: [sh, -c, `

// talking are a pod of two containers, two pods of one, and a CronJob.
const talking = `
apiVersion: v1
kind: Pod
metadata: {name: chat, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, ` + box + `'for i in $(seq 100); do echo filler $i; done; echo level=error the first failure; echo "    at the stack"; for i in $(seq 101 200); do echo filler $i; done; echo "{\"level\":\"warn\",\"msg\":\"it is hot\"}"; echo level=error the second failure; exec testbox hold']}
  - {name: side, ` + box + `'echo the side speaks; exec testbox hold']}
---
apiVersion: v1
kind: Pod
metadata: {name: mark-a, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: box, ` + box + `'for i in $(seq 40); do echo -n wordsofalphabet" "; done; echo of a; exec testbox hold']}]
---
apiVersion: v1
kind: Pod
metadata: {name: mark-b, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: box, ` + box + `'echo of b; exec testbox hold']}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick, namespace: default}
spec:
  schedule: "0 3 1 1 *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: box, ` + box + `'echo $HOSTNAME has run']}]}}}}
`

// countLogs counts the logs that the page opens.
const countLogs = `window.__logs = 0;
{ const send = WebSocket.prototype.send;
  WebSocket.prototype.send = function(text) { if (JSON.parse(text).op === "log") window.__logs++; send.call(this, text); };
}`

// TestLogsByKeys reads logs by keys: of pods that have not started, and of those that write much.
func TestLogsByKeys(t *testing.T) {
	k := newServer(t)
	k.Apply(stuck)
	k.Apply(talking)
	for _, job := range []string{"tick-a", "tick-b"} {
		k.Kubectl("create", "job", job, "--from=cronjob/tick")
		k.Kubectl("wait", "--for=condition=Complete", "job/"+job, "--timeout=60s")
	}
	k.Kubectl("wait", "--for=condition=Ready", "pod/chat", "pod/mark-a", "pod/mark-b", "--timeout=120s")
	k.Await(harness.Soon, "pod/noimage", "{.status.containerStatuses[0].state.waiting.reason}", "ErrImageNeverPull")
	k.Await(harness.Soon, "deployment/hungry", "{.status.unavailableReplicas}", "2")
	p := newBrowser(t, k.Machine.Site).admin(k)
	// sub opens a list with a filter, and runs a part of the test.
	sub := func(name, list, only string, f func(p *page)) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			p.T = t
			p.find(list, only)
			f(p)
		})
		p.T = t
	}

	unscheduled := "not scheduled: 1 Insufficient memory"
	sub("a pod without a node", "po default", "hungry", func(p *page) {
		p.keys("l")
		p.shows(unscheduled)
		p.without("204 No Content", "No lines yet.")
		p.shot("log-not-scheduled")
		p.back()
		p.only("hungry")
		p.keys("s")
		p.shows("The pod does not run: Pending: " + unscheduled)
		p.without("unable to upgrade")
		p.back()
		p.only("hungry")
		p.keys("A")
		p.shows("The pod does not run: Pending: " + unscheduled)
	})
	sub("a Deployment without a node", "deploy default", "hungry", func(p *page) {
		p.keys("l")
		p.shows("2 pods: " + unscheduled)
		p.without("204 No Content", "No lines yet.")
	})
	sub("a pod without its ConfigMap", "po default", "nomap", func(p *page) {
		p.keys("l")
		p.shows(`container creating: configmap "missing" not found`)
		p.back()
		p.only("nomap")
		p.keys("s")
		p.shows(`The pod does not run: Pending: container creating: configmap "missing" not found`)
	})
	sub("a pod without its image", "po default", "noimage", func(p *page) {
		p.keys("l")
		p.shows(`waiting: ErrImageNeverPull: Container image "none.example/none"`)
	})
	sub("the matches and the lines around them", "po default", "chat", func(p *page) {
		p.keys("l")
		p.shows("the second failure")
		p.keys("/", "failure", kb.Enter)
		p.shows("2 lines match", "the first failure")
		p.without("filler")
		p.keys("n") // from the end of the log to its last match
		p.shows("2 of 2", "filler 200", "it is hot")
		p.keys("N")
		p.shows("1 of 2", "filler 100", "filler 101")
		p.shot("log-find")
		chosen := func(string) bool {
			return eval[bool](p, `{ const box = document.querySelector(".log").getBoundingClientRect(), line = document.querySelector(".log-line.current");
  !!line && line.innerText.includes("the first failure") && line.getBoundingClientRect().top > box.top && line.getBoundingClientRect().bottom < box.bottom && !!line.querySelector("mark") }`)
		}
		p.until("the match is in sight", chosen)
		p.keys("N") // around
		p.shows("2 of 2")
		p.keys("n", "&")
		p.shows("1 of 2")
		p.without("filler")
		p.keys("&")
		p.shows("filler 100")
		p.until("the match is in sight", chosen)
		p.keys(kb.Escape)
		p.without("1 of 2")
	})
	sub("levels", "po default", "chat", func(p *page) {
		p.keys("l")
		p.shows("the second failure")
		p.keys("L")
		p.shows("the first failure", "at the stack", "the second failure")
		p.without("filler", "it is hot")
		p.keys("L")
		p.shows("it is hot", "the first failure")
		p.without("filler")
		p.keys("L")
		p.shows("filler")
	})
	sub("each press of c is another container", "po default", "chat", func(p *page) {
		p.keys("l")
		p.shows("the second failure")
		eval[any](p, countLogs+`;undefined`)
		p.keys("c", "c", "c")
		p.shows("the side speaks", "the second failure")
		if at := eval[string](p, `document.querySelector(".tools select").selectedOptions[0].text`); at != "all containers" {
			p.T.Errorf("three presses lead to %q", at)
		}
		p.keys("c")
		p.without("the side speaks")
		p.shows("the second failure")
		if n := eval[int](p, `__logs`); n > 2 {
			p.T.Errorf("%d logs were opened: the other container's was needed, and once more this one's", n)
		}
	})
	sub("marked pods", "po default", "mark-", func(p *page) {
		p.keys(" ", "j", " ")
		p.shows("2 marked")
		p.keys("l")
		p.shows("of a", "of b", "and 1 more", "mark-a", "mark-b")
		p.shot("log-marked")
		eval[bool](p, `new Promise((done) => setTimeout(() => done(true), 300))`) // the address follows after a pause
		eval[any](p, `location.reload()`)
		p.shows("of a", "of b", "mark-b")

		p.size(390, 844)
		lines := func() []string {
			return eval[[]string](p, `[...document.querySelectorAll(".log-line")].map((e) => e.innerText)`)
		}
		p.until("numbers stand for pods", func(string) bool {
			return len(lines()) > 10 && strings.HasPrefix(lines()[0], "1 ") || strings.HasPrefix(lines()[0], "2 ")
		})
		for _, line := range lines() {
			for word := range strings.FieldsSeq(line) {
				if len(word) > 2 && word != "wordsofalphabet" {
					p.T.Errorf("a word is broken: %q", line)
				}
			}
		}
		p.shot("log-phone")
		eval[any](p, `document.querySelector(".log .source").click()`)
		p.shows("/box")
		p.size(1280, 800)
	})
	sub("the last jobs of a CronJob", "cj default", "tick", func(p *page) {
		p.keys("l")
		p.shows("Jobs: tick-b (the newest), tick-a", "tick-a-", "tick-b-", "has run")
		p.becomes("the newest stands out", `[...document.querySelectorAll(".log-line")].every((e) => e.innerText.startsWith("tick-b-") === e.matches(".newest"))`)
		p.shot("log-cronjob")
	})
	p.saysNothing()
}
