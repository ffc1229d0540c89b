//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// quietKinds is a kind of custom objects with conditions.
const quietKinds = `
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
---
apiVersion: v1
kind: Namespace
metadata: {name: quiet}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: calm}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: none, namespace: quiet}
spec: {hard: {pods: "0"}}
`

// quietObjects have no pods that could say what is wrong, but for the last one: a probe kills its pods.
var quietObjects = harness.Workload("DaemonSet", "quiet/agentd", "", `
  containers: [`+harness.BoxYAML+`, command: [testbox, hold]}]`) +
	harness.Workload("ReplicaSet", "quiet/plain", "replicas: 2", `
  containers: [`+harness.BoxYAML+`, command: [testbox, hold]}]`) + `
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: quiet}
spec:
  template:
    spec: {restartPolicy: Never, containers: [{name: box, image: ` + harness.BoxImage + `, imagePullPolicy: Never, command: ["true"]}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: dangling, namespace: quiet}
spec:
  rules:
  - host: dangling.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: absent, port: {number: 80}}}}]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: scaler, namespace: quiet}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: nobody}
  minReplicas: 1
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
---
apiVersion: v1
kind: Service
metadata: {name: lonely, namespace: quiet}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: example.com/v1
kind: Gear
metadata: {name: spare, namespace: quiet}
status: {conditions: [{type: Ready, status: "False", reason: Worn, message: the cogs are worn}]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: guard}
webhooks:
- name: guard.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  clientConfig: {service: {name: guard, namespace: quiet}}
  rules: [{apiGroups: [example.com], apiVersions: [v1], operations: [CREATE], resources: [nothings]}]
---
` + harness.Workload("Deployment", "shop/web", "replicas: 2", `
  terminationGracePeriodSeconds: 0,
  containers: [{name: web, image: `+harness.BoxImage+`, imagePullPolicy: Never, command: [testbox, hold],
  livenessProbe: {httpGet: {path: /, port: 9999}, periodSeconds: 1, failureThreshold: 1}}]`) + `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
`

// youngObjects are the objects of a namespace that are not a minute old: the overview gives those that long.
func youngObjects(k *harness.Kube, namespace string) (young []string) {
	k.T.Helper()
	out := k.Kubectl("-n", namespace, "get", "daemonset,replicaset,job,ingress,horizontalpodautoscaler,service,gear",
		"-o", `jsonpath={range .items[*]}{.kind} {.metadata.creationTimestamp}{"\n"}{end}`)
	for line := range strings.Lines(out) {
		kind, created, _ := strings.Cut(strings.TrimSpace(line), " ")
		if at, err := time.Parse(time.RFC3339, created); err == nil && time.Since(at) < time.Minute+time.Second {
			young = append(young, kind)
		}
	}
	return young
}

// visit opens a view by its address.
func (p *page) visit(hash string) {
	p.T.Helper()
	eval[any](p, fmt.Sprintf(`void (location.hash = %q)`, hash))
}

// cards are the sentences of the overview, each with the object that it is about.
func (p *page) cards() []string {
	return eval[[]string](p, `[...document.querySelectorAll(".card-head")].map((e) => e.innerText.replace(/\s+/g, " "))`)
}

var uid = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// TestOverviewCannotLie: what has no pods that could fail has a card with its cause, and the page is green only when
// there is nothing to say.
func TestOverviewCannotLie(t *testing.T) {
	axe := axeScript(t)
	k := newServer(t)
	k.Apply(quietKinds)
	k.Kubectl("wait", "--for=condition=Established", "crd/gears.example.com", "--timeout=60s")
	k.Becomes(harness.Soon, "0", "-n", "quiet", "get", "resourcequota/none", "-o", "jsonpath={.status.hard.pods}")
	harness.Eventually(t, harness.Soon, "the objects are there", func() error {
		return harness.Succeeds(k.TryApply(quietObjects))
	})
	p := newBrowser(t, k.Machine.Site).admin(k)
	testenv.Until(t, 2*time.Minute, "the objects are a minute old", func() bool { return len(youngObjects(k, "quiet")) == 0 })

	p.visit("#/?ns=quiet")
	for object, sentence := range map[string]string{
		"daemonset quiet/agentd": "No pods can be made: quota none is used up", "replicaset quiet/plain": "No pods can be made: quota none is used up",
		"job quiet/once": "No pods can be made: quota none is used up", "ingress quiet/dangling": "Service absent, to which it leads, does not exist",
		"horizontalpodautoscaler quiet/scaler": `Cannot scale: `, "service quiet/lonely": "No pod is behind the Service",
		"gear quiet/spare": "Ready: the cogs are worn", "validatingwebhookconfiguration guard": "Its Service quiet/guard has no ready endpoint",
	} {
		p.until(object+" has a card: "+sentence, func(string) bool {
			for _, c := range p.cards() {
				if strings.HasPrefix(c, sentence) && strings.HasSuffix(c, object) {
					return true
				}
			}
			return false
		})
	}
	p.shot("overview-quiet")
	p.without("Nothing is wrong")
	if n := len(p.cards()); n != 8 {
		t.Errorf("%d causes have %q", 8, p.cards())
	}
	for _, width := range []int64{390, 1024} {
		p.size(width, 844)
		p.accessible(fmt.Sprintf("overview with cards, %d px", width), axe)
	}
	p.size(1280, 800)

	// Pods of one workload are together, with the probe that kills them, and the Service that lacks them.
	p.visit("#/?ns=shop")
	p.until("the probe is the cause", func(string) bool {
		all := p.cards()
		return len(all) == 2 && strings.HasPrefix(all[1], "Liveness probe fails on web: connection refused at :9999; restarted ") && strings.Contains(all[1], "2 pods of deployment shop/web")
	})
	p.shot("overview-probe")
	if uid.MatchString(p.text()) {
		t.Errorf("the page has a UID: %s", uid.FindString(p.text()))
	}

	// Without a card, a warning keeps the page from being green.
	k.Kubectl("delete", "validatingwebhookconfiguration", "guard")
	p.visit("#/?ns=calm")
	p.becomes("the page is green", `document.querySelector("p.good")?.innerText === "Nothing is wrong."`)
	k.Apply(`
apiVersion: v1
kind: Event
metadata: {name: odd, namespace: calm}
involvedObject: {kind: ConfigMap, namespace: calm, name: none}
type: Warning
reason: Odd
message: something is odd
source: {component: test}
firstTimestamp: "` + time.Now().UTC().Format(time.RFC3339) + `"
lastTimestamp: "` + time.Now().UTC().Format(time.RFC3339) + `"
count: 1
`)
	p.shows("there was 1 warning in the last ten minutes")
	p.without("Nothing is wrong")
	p.saysNothing("metrics.k8s.io")
}
