//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/ha"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	// namespace has everything that a load makes.
	namespace = "load"
	// own is where a server's API is on its own machine.
	own = "127.0.0.1:6443"
	// writeTimeout is how long one request of a writer may take before it is sent once more.
	writeTimeout = 5 * time.Second
)

// kept are objects that no version may change: of Kubernetes' own kinds and of a kind that people define.
const kept = `
apiVersion: v1
kind: Service
metadata: {name: there}
spec: {selector: {app: there}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Secret
metadata: {name: kept}
stringData: {word: not a secret}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kept}
data: {text: what an earlier version wrote}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: kept}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: there}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: kept}
spec: {rules: [{host: kept.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: there, port: {number: 80}}}}]}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: kept}
spec: {podSelector: {matchLabels: {app: there}}, ingress: [{}]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: kept}
spec: {minReplicas: 1, maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: elsewhere},
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.load.example}
spec:
  group: load.example
  names: {kind: Thing, plural: things}
  scope: Namespaced
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
`

const thing = `{apiVersion: load.example/v1, kind: Thing, metadata: {name: kept}, spec: {size: 3}}`

// keptKinds are those of kept, as kubectl has them.
const keptKinds = "service,secret,configmap,poddisruptionbudget,ingress,networkpolicy,horizontalpodautoscaler,deployment,thing"

// A load uses a cluster while its version changes, and knows what must be there: each write that was acknowledged, the
// objects that were made at its start, and the pods with the moments at which their containers were started.
type load struct {
	t       *testing.T
	c       *ha.Cluster
	writers map[*harness.Server]*ha.Writer // each at its own server
	objects string                         // name, UID and content of each
	pods    map[string]string              // UID, restarts and starts, by name
	formats map[*harness.Server]string
	stop    func()
	steps   int
}

// startLoad makes objects and pods, and has a writer write at each server until the test ends.
func startLoad(t *testing.T, c *ha.Cluster) *load {
	t.Helper()
	l := &load{t: t, c: c, writers: map[*harness.Server]*ha.Writer{}, pods: map[string]string{}, formats: map[*harness.Server]string{}}
	first := c.Servers[0]
	kube := first.Namespace(t, namespace)
	nodes := len(c.Nodes())
	kube.Apply(harness.Workload("Deployment", "there", fmt.Sprintf("replicas: %d", nodes),
		"terminationGracePeriodSeconds: 1, "+harness.OnePerNode("there")+", containers: ["+harness.BoxYAML+", command: [testbox, serve], "+
			"ports: [{containerPort: 8080}], readinessProbe: {httpGet: {path: /, port: 8080}}}]") + kept)
	harness.Eventually(t, harness.Soon, "an object of the kind that was defined", func() error {
		return harness.Succeeds(kube.TryApply(thing))
	})
	kube.Await(harness.Longer, "deployment/there", "{.status.readyReplicas}", fmt.Sprint(nodes))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, s := range c.Servers {
		l.writers[s] = ha.NewWriter(fmt.Sprintf("at-%d", s.Number), c.Client(s.Machine, own, writeTimeout), namespace)
		running.Go(func() { l.writers[s].Run(ctx) })
		l.formats[s] = numbers(t, s.Seen("server"))
	}
	l.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(l.stop)
	l.objects = l.has(first)
	l.pods = l.running(first)
	t.Logf("%s; formats: %s", c.Servers[0].NodeName(), l.formats[first])
	return l
}

// has is the name, UID and content of each object of kept, as a server has it.
func (l *load) has(s *harness.Server) string {
	l.t.Helper()
	return s.Insists("get", keptKinds, "-n", namespace, "--field-selector", "metadata.name!=kube-root-ca.crt",
		"-o", `jsonpath={range .items[?(@.metadata.name=="kept")]}{.kind} {.metadata.name} {.metadata.uid} {.spec} {.data}{"\n"}{end}`)
}

// running is the UID of each pod, and how often and when its containers were started.
func (l *load) running(s *harness.Server) map[string]string {
	l.t.Helper()
	out := map[string]string{}
	text := s.Insists("get", "pods", "-n", namespace, "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} `+
			`{.status.containerStatuses[*].restartCount} {.status.containerStatuses[*].state.running.startedAt}{"\n"}{end}`)
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		out[name] = rest
	}
	return out
}

// exchange stops a machine in order and starts it with another version. It returns when the cluster is whole, and the
// machine's node, if it has one, has said that it lives.
func (l *load) exchange(s *harness.Server, v version) {
	l.t.Helper()
	testenv.NoError(l.t, s.Stop(), "stopping machine %d", s.Number)
	s.Bin = v.program
	began := time.Now()
	s.Start()
	if slices.Contains(l.c.Nodes(), s) {
		l.lives(s, began)
	}
	l.c.WaitWhole()
}

// lives waits until a node has renewed its lease since a moment.
func (l *load) lives(s *harness.Server, since time.Time) {
	l.t.Helper()
	api := l.c.Ask(l.c.Servers[0]) // it may be this machine
	harness.Eventually(l.t, harness.Soon, fmt.Sprintf("the node of machine %d renews its lease", s.Number), func() error {
		lease, err := api.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(l.t.Context(), s.NodeName(), metav1.GetOptions{})
		if err == nil && (lease.Spec.RenewTime == nil || !lease.Spec.RenewTime.After(since)) {
			err = fmt.Errorf("it was renewed at %v", lease.Spec.RenewTime)
		}
		return errors.Join(s.Alive(), err)
	})
}

// gap is the longest time between two acknowledged writes of one writer, but that of one server, from a moment on.
func (l *load) gap(from time.Time, but *harness.Server) time.Duration {
	var longest time.Duration
	for s, w := range l.writers {
		if s != but {
			longest = max(longest, w.LongestGap(from))
		}
	}
	return longest
}

// goOn waits until each writer had writes acknowledged that were begun after a moment.
func (l *load) goOn(after time.Time) {
	l.t.Helper()
	for s := range l.writers {
		l.goesOn(s, after)
	}
}

// goesOn is goOn of the writer at one server.
func (l *load) goesOn(s *harness.Server, after time.Time) {
	l.t.Helper()
	harness.Eventually(l.t, harness.Soon, fmt.Sprintf("writes at server %d go on", s.Number),
		func() error { return l.writers[s].GoesOn(after) })
}

// holds fails the test unless the cluster has everything, its pods run on, and no format number has changed; and makes
// a pod on each node, for the next version to find. Those that the last step made are deleted.
func (l *load) holds(what string) {
	l.t.Helper()
	l.goOn(time.Now())
	l.steps++
	first := l.c.Servers[0]
	l.keepsWrites(what)
	testenv.Equal(l.t, l.has(first), l.objects, "%s: objects:", what)
	running := l.running(first)
	for _, name := range slices.Sorted(maps.Keys(l.pods)) {
		testenv.Equal(l.t, running[name], l.pods[name], "%s: UID, restarts and start of pod %s:", what, name)
		// A kubelet takes a moment to know its pods.
		harness.Eventually(l.t, harness.Soon, fmt.Sprintf("%s: the Service, asked in pod %s", what, name), func() error {
			return harness.Succeeds(first.TryKubectl("exec", "-n", namespace, name, "--", "testbox", "get", "http://there.load.svc.cluster.local/"))
		})
	}
	for _, s := range l.c.Servers {
		testenv.Equal(l.t, numbers(l.t, s.Seen("server")), l.formats[s], "%s: formats of server %d:", what, s.Number)
	}
	for _, s := range append(slices.Clone(l.c.Servers), l.c.Agents...) {
		testenv.Equal(l.t, s.InLog("is too old"), 0, "%s: refusals in the log of machine %d:\n%s", what, s.Number, s.LogTail(5))
	}
	l.bear(what)
}

// keepsWrites fails the test unless each server has each write that was acknowledged.
func (l *load) keepsWrites(what string) {
	l.t.Helper()
	var names []string
	for _, w := range l.writers {
		acked, _ := w.Acked()
		for _, a := range acked {
			names = append(names, a.Name)
		}
	}
	for _, s := range l.c.Servers {
		harness.Eventually(l.t, harness.Soon, fmt.Sprintf("%s: server %d has all writes", what, s.Number), func() error {
			list, err := l.c.Ask(s).CoreV1().ConfigMaps(namespace).List(l.t.Context(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			there := make(map[string]bool, len(list.Items))
			for i := range list.Items {
				there[list.Items[i].Name] = true
			}
			if lost := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return there[name] }); len(lost) > 0 {
				return fmt.Errorf("%d of %d acknowledged writes are lost: %v", len(lost), len(names), lost[:min(len(lost), 5)])
			}
			return nil
		})
	}
	l.t.Logf("%s: all of %d acknowledged writes are there", what, len(names))
}

// bear makes a pod on each node and deletes those that the step before made.
func (l *load) bear(what string) {
	l.t.Helper()
	first := l.c.Servers[0]
	for _, n := range l.c.Nodes() {
		name := func(step int) string { return fmt.Sprintf("born-%d-on-%d", step, n.Number) }
		first.InsistsOn(fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s},
  spec: {nodeName: %s, terminationGracePeriodSeconds: 1, containers: [%s, command: [testbox, hold]}]}}`,
			name(l.steps), namespace, n.NodeName(), harness.BoxYAML))
		if _, there := l.pods[name(l.steps-1)]; there {
			first.Insists("delete", "pod", "-n", namespace, name(l.steps-1), "--ignore-not-found")
			delete(l.pods, name(l.steps-1))
		}
		first.Insists("wait", "pod", "-n", namespace, name(l.steps), "--for=condition=Ready", "--timeout=180s")
		l.pods[name(l.steps)] = l.running(first)[name(l.steps)]
	}
	testenv.Equal(l.t, len(l.pods), 2*len(l.c.Nodes()), "%s: pods:", what)
}
