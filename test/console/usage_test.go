//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// usageYAML is a Deployment that uses much more memory than it requests, and a pod that uses nearly all that it may,
// beside a container that uses nothing.
var usageYAML = harness.Workload("Deployment", "default/greedy", "replicas: 2", `
  terminationGracePeriodSeconds: 0, volumes: [{name: m, emptyDir: {medium: Memory}}],
  containers: [`+harness.BoxYAML+`, command: [sh, -c, "dd if=/dev/zero of=/m/x bs=1M count=64 && exec testbox hold"],
  volumeMounts: [{name: m, mountPath: /m}], resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {memory: 256Mi}}}]`) + `
apiVersion: v1
kind: Pod
metadata: {name: nearly, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: m, emptyDir: {medium: Memory}}]
  containers:
  - ` + harness.BoxYAML + `
    , command: [sh, -c, "dd if=/dev/zero of=/m/x bs=1M count=95 && exec testbox hold"], volumeMounts: [{name: m, mountPath: /m}],
    resources: {requests: {cpu: 50m, memory: 100Mi}, limits: {memory: 100Mi}}}
  - {name: quiet, image: ` + harness.BoxImage + `, imagePullPolicy: Never, command: [testbox, hold], resources: {requests: {memory: 10Mi}}}
`

// cell is what a list shows of an object in a column, before ":" the classes of the cell.
func (p *page) cell(name, column string) string {
	return eval[string](p, fmt.Sprintf(`{
  const at = [...document.querySelectorAll(".table .head .cell")].findIndex((c) => c.innerText.replace(/ [▴▾]$/, "") === %q);
  const row = [...document.querySelectorAll(".table .line")].find((r) => r.querySelector("a")?.innerText.startsWith(%q));
  const cell = at < 0 || !row ? null : row.children[at];
  cell ? cell.className + ":" + cell.textContent : "";
}`, column, name))
}

// cellIs waits until a cell is as it should be.
func (p *page) cellIs(name, column string, ok func(classes, text string) bool) {
	p.T.Helper()
	last := ""
	p.until(name+"'s "+column, func(string) bool {
		last = p.cell(name, column)
		classes, text, _ := strings.Cut(last, ":")
		return text != "" && ok(classes, text)
	})
}

// toned says that a cell has a tone, and a text of this form.
func toned(tone, suffix string) func(classes, text string) bool {
	return func(classes, text string) bool {
		return strings.Contains(classes+" ", " "+tone+" ") && strings.HasSuffix(text, suffix)
	}
}

// TestListsSayWhatIsUsed: lists say what their objects use, of what they request and may use.
func TestListsSayWhatIsUsed(t *testing.T) {
	k := newServer(t)
	k.Apply(usageYAML)
	k.Kubectl("rollout", "status", "deployment/greedy", "--timeout=120s")
	k.Kubectl("wait", "--for=condition=Ready", "pod/nearly", "--timeout=120s")
	b := newBrowser(t, k.Machine.Site)
	p := b.admin(k)
	p.shows("Close to its memory limit", "Above its memory request", "default/greedy")
	p.shot("usage-overview")
	t.Run("pods", func(t *testing.T) { p.T = t; usageOfPods(p) })
	t.Run("workloads and nodes", func(t *testing.T) { p.T = t; usageOfOthers(p) })
	t.Run("pages", func(t *testing.T) { p.T = t; usageOnPages(p, k) })
	t.Run("refused", func(t *testing.T) { usageRefused(t, b, k) })
	p.T = t
	p.saysNothing("metrics.k8s.io") // of pods without any
}

func usageOfPods(p *page) {
	p.list("po default")
	p.cellIs("nearly", "Memory", toned("bad", "Mi"))
	p.cellIs("greedy-", "Memory", toned("passing", "Mi"))
	p.cellIs("greedy-", "%MEM/R", toned("passing", "%"))
	p.cellIs("greedy-", "CPU", toned("numeric", "m"))
	if found := p.cell("nearly", "%MEM/L"); found != "" {
		p.fail("the limits are shown without asking: %s", found)
	}
	p.shot("usage-pods")
	p.keys("w")
	p.cellIs("nearly", "%MEM/L", toned("bad", "%"))
	p.cellIs("greedy-", "%MEM/L", toned("share", "%"))
	p.shot("usage-pods-wide")
	p.keys("w")
	p.size(390, 844)
	p.until("a phone shows amounts and no shares", func(now string) bool {
		return strings.Contains(now, "Mi") && !strings.Contains(now, "%")
	})
	p.shot("usage-phone")
	p.size(1280, 800)
	// The order by memory, as a link of a colleague has it.
	eval[bool](p, `(location.hash = "#/list/nodes.v1", true)`)
	p.shows("nodes")
	eval[bool](p, `(location.hash = "#/list/pods.v1?ns=default&sort=-Memory", true)`)
	p.until("the largest is first", func(string) bool {
		return strings.HasPrefix(eval[string](p, `document.querySelector(".table .line a")?.innerText ?? ""`), "nearly") && p.cell("nearly", "Memory") != ""
	})
}

func usageOfOthers(p *page) {
	p.list("deploy default")
	p.cellIs("greedy", "Memory", toned("passing", "Mi"))
	p.until("the sum of both pods", func(string) bool {
		_, text, _ := strings.Cut(p.cell("greedy", "Memory"), ":")
		n := 0
		_, _ = fmt.Sscanf(text, "%dMi", &n)
		return n >= 128 && n < 256
	})
	p.shot("usage-deployments")
	p.list("no")
	p.cellIs("", "%MEM", toned("share", "%"))
	p.cellIs("", "CPU", toned("numeric", "m"))
	p.shot("usage-nodes")
}

// inUse is what the table of usage on an object's page has in each row: the classes and texts of its cells.
func (p *page) inUse(row string) string {
	return eval[string](p, fmt.Sprintf(`{
  const row = [...document.querySelectorAll(".in-use tbody tr")].find((r) => r.firstChild.textContent === %q);
  row ? [...row.children].map((c) => c.className + ":" + c.textContent).join("|") : "";
}`, row))
}

// usageOnPages: the page of a pod or workload says it by container, and that of a node as kubectl describe does.
func usageOnPages(p *page, k *harness.Kube) {
	p.find("po default", "nearly")
	p.details()
	p.until("the pod's containers", func(string) bool {
		return regexp.MustCompile(`\|:9\dMi\|:100Mi \(9\d%\)\|bad:100Mi \(9\d%\)$`).MatchString(p.inUse("box")) &&
			regexp.MustCompile(`\|:10Mi \(\d+%\)\|:$`).MatchString(p.inUse("quiet"))
	})
	p.shot("usage-pod")
	p.find("deploy default", "greedy")
	p.details()
	p.shows("Sums of the 2 pods that are measured")
	p.until("the workload's containers", func(string) bool {
		return regexp.MustCompile(`\|:1\d\dMi\|passing:16Mi \(4\d\d%\)\|:256Mi \(2\d%\)$`).MatchString(p.inUse("box"))
	})
	p.list("no")
	p.keys("d")
	p.until("the node's usage", func(string) bool { return strings.HasSuffix(p.inUse("Memory"), "%)") })
	described := k.Kubectl("describe", "node", k.NodeName())
	for of, row := range map[string]string{"cpu": "CPU", "memory": "Memory"} {
		found := regexp.MustCompile(`(?m)^  ` + of + ` +(\S+) \((\d+)%\) +(\S+) \((\d+)%\)`).FindStringSubmatch(described)
		testenv.Require(p.T, found != nil, "no %s in %s", of, described)
		want := asOnPage(found[1], found[2], of) + "|:" + asOnPage(found[3], found[4], of)
		p.until("the page has "+want, func(string) bool { return strings.Contains(p.inUse(row), "|:"+want+"|") })
	}
	found := regexp.MustCompile(`Non-terminated Pods: +\((\d+) in total\)`).FindStringSubmatch(described)
	testenv.Require(p.T, found != nil, "no number of pods in %s", described)
	p.until(found[1]+" pods", func(string) bool { return strings.Contains(p.inUse("Pods"), "|:"+found[1]+" (") })
	p.until("the pod that uses most is first", func(string) bool {
		return strings.HasPrefix(eval[string](p, `document.querySelector(".table .line a")?.innerText ?? ""`), "nearly")
	})
	p.shot("usage-node")
	p.back()
}

// asOnPage writes an amount of kubectl describe as the page does; nothing for none.
func asOnPage(amount, percent, of string) string {
	q := resource.MustParse(amount)
	switch {
	case q.IsZero():
		return ""
	case of == "cpu":
		return fmt.Sprintf("%dm (%s%%)", q.MilliValue(), percent)
	default:
		return fmt.Sprintf("%dMi (%s%%)", q.Value()>>20, percent)
	}
}

// usageRefused: a user who may list pods and not their figures sees the list as it is without a metrics API.
func usageRefused(t *testing.T, b *browser, k *harness.Kube) {
	k.Apply(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: pods-only}
rules: [{apiGroups: [""], resources: [pods], verbs: [list, watch, get]}]
`)
	p := b.login(k.Server, newToken(k, "--role", "pods-only", "--namespace", "default"))
	p.T = t
	p.list("po default")
	p.shows("nearly")
	p.becomes("the figures were refused", `performance.getEntriesByType("resource").some((e) => e.name.includes("/usage?") && e.responseEnd > 0)`)
	p.without("CPU", "Mi")
	p.saysNothing("status of 403")
}
