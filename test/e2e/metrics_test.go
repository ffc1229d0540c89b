//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// burner uses as much of a processor as it may until there is a file named stop in the machine's folder %s, and holds
// memory.
var burner = harness.Workload("Deployment", "burner", "", `
  terminationGracePeriodSeconds: 1, containers: [`+boxYAML+`, command: [sh, -c,
  'head -c `+strconv.Itoa(burnerHolds)+` /dev/zero > /dev/shm/held; while [ ! -e /host/stop ]; do :; done; exec testbox hold'],
  resources: {requests: {cpu: 100m}, limits: {cpu: 150m}}, volumeMounts: [{name: host, mountPath: /host}]},
  {name: idle, image: `+harness.BoxImage+`, imagePullPolicy: Never, command: [testbox, hold], resources: {requests: {cpu: 1m}}}],
  volumes: [{name: host, hostPath: {path: %s}}]`) + `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: burner}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: burner}
  minReplicas: 1
  maxReplicas: 2
  metrics:
  - type: Resource
    resource: {name: cpu, target: {type: Utilization, averageUtilization: 15}} # a machine that has much else to do gives the burner a third of its limit
  - type: ContainerResource
    containerResource: {name: cpu, container: box, target: {type: Utilization, averageUtilization: 15}}
  behavior: {scaleDown: {stabilizationWindowSeconds: 0}}
`

// autoscaling: a Deployment that works gets another pod, and loses it when it does not work any more; meanwhile kubectl
// top says what the control groups say, to whom may look at the namespace.
func autoscaling(k *harness.Kube) {
	dir := hostDir(k)
	k.Apply(fmt.Sprintf(burner, dir))
	k.Kubectl("rollout", "status", "deployment/burner", "--timeout=300s")
	topAgrees(k)
	nodeMemoryAgrees(k)
	k.Await(longer, "hpa/burner", "{.status.desiredReplicas}", "2")
	// Of the pod as a whole and of its one container that works, against what each asks for.
	k.Prints([]string{"Resource ContainerResource", "box"}, "get", "hpa", "burner", "-o", "jsonpath={.status.currentMetrics[*].type} {.status.currentMetrics[*].containerResource.container}")
	k.Kubectl("rollout", "status", "deployment/burner", "--timeout=300s")

	// A busy kubelet may leave out a container, or a node, at one time or another.
	k.Prints([]string{"POD", "box", "idle", "m ", "Mi"}, "top", "pod", "-l", "app=burner", "--containers")
	k.Prints([]string{"node-1", "%"}, "top", "node")
	k.Prints([]string{"usage"}, "explain", "podmetrics.containers", "--api-version=metrics.k8s.io/v1beta1")
	k.Prints([]string{"burner-"}, "top", "pod", "-A", "--sort-by=cpu")
	k.Kubectl("create", "serviceaccount", "viewer")
	k.Kubectl("create", "rolebinding", "viewer", "--clusterrole=view", "--serviceaccount="+k.NS+":viewer")
	viewer := "--as=system:serviceaccount:" + k.NS + ":viewer"
	harness.Eventually(k.T, soon, "a viewer sees the namespace", func() error {
		_, err := k.Try("top", "pod", viewer)
		return err
	})
	k.Refused("orbidden", "top", "node", "--as=system:serviceaccount:"+k.NS+":default")

	testenv.NoError(k.T, os.WriteFile(filepath.Join(dir, "stop"), nil, 0o644))
	k.Await(longer, "deployment/burner", "{.spec.replicas}", "1")
	harness.Eventually(k.T, soon, "the events of both changes", func() error { // they are written after the change
		out, err := k.Try("describe", "hpa", "burner")
		if err == nil && (!strings.Contains(out, "New size: 2") || !strings.Contains(out, "New size: 1")) {
			err = errors.New(out)
		}
		return err
	})
}

// memoryScaler wants another pod of the Deployment d as soon as it knows what the ones that there are use.
const memoryScaler = `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: d}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: d}
  minReplicas: 2
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 1Ki}}}]
`

// scaled waits until memoryScaler has had its way.
func scaled(t *testing.T, s *harness.Server) {
	t.Helper()
	harness.Eventually(t, longer, "the Deployment d is scaled by what its pods use", func() error {
		out, err := s.TryKubectl("get", "deployment", "d", "-o", "jsonpath={.spec.replicas}")
		if err == nil && out != "3" {
			out, _ = s.TryKubectl("describe", "hpa", "d")
			err = errors.New(out)
		}
		return err
	})
}

// topShows waits until kubectl top says something of all that is wanted, through each server.
func topShows(t *testing.T, servers []*harness.Server, what string, want ...string) {
	t.Helper()
	for _, s := range servers {
		harness.Eventually(t, soon, fmt.Sprintf("kubectl top %s through server %d", what, s.Number), func() error {
			out, err := s.TryKubectl("top", what)
			for _, name := range want {
				if err == nil && !strings.Contains(out, name) {
					err = fmt.Errorf("nothing of %s in\n%s", name, out)
				}
			}
			return err
		})
	}
}

// sample is what a container had used of the processor at some time between two.
type sample struct {
	after, before time.Time
	used          time.Duration
}

// topAgrees compares what the API says of a pod with the counter of its control group, which is read all the while.
func topAgrees(k *harness.Kube) {
	k.T.Helper()
	pod := k.Kubectl("get", "pods", "-l", "app=burner", "-o", "jsonpath={.items[0].metadata.name}")
	var samples []sample
	harness.Eventually(k.T, longer, "the API's figures of a time that was watched", func() error {
		s, err := usedUntilNow(k, pod)
		if err != nil {
			return err
		}
		samples = append(samples, s)
		out, err := k.Try("get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/"+k.NS+"/pods/"+pod)
		if err != nil {
			return err
		}
		var m struct {
			Timestamp  time.Time
			Window     string
			Containers []struct {
				Name  string
				Usage struct{ CPU, Memory string }
			}
		}
		if err := json.Unmarshal([]byte(out), &m); err != nil {
			return err
		}
		window, err := time.ParseDuration(m.Window)
		if err != nil {
			return err
		}
		if window == 10*time.Second {
			return errors.New("it is the kubelet's own figure, which says nothing of its time")
		}
		// The API cuts fractions of a second off.
		from, to := m.Timestamp.Add(-window), m.Timestamp.Add(time.Second)
		least, most, ok := usedBetween(samples, from, to)
		if !ok {
			return fmt.Errorf("no client watched from %s to %s", from, to)
		}
		for _, c := range m.Containers {
			if c.Name != "box" {
				continue
			}
			rate, err := resource.ParseQuantity(c.Usage.CPU) // of billionths, or of millionths where it is a number of these
			testenv.NoError(k.T, err, "the pod uses %q of a processor", c.Usage.CPU)
			cpuTime := time.Duration(float64(rate.ScaledValue(resource.Nano)) * window.Seconds())
			k.T.Logf("top: %s in %s, which is %v; its control group: %v to %v", c.Usage.CPU, window, cpuTime, least, most)
			const late = 200 * time.Millisecond // a busy machine reads a counter later than it says
			if cpuTime < least*9/10-late || cpuTime > most*11/10+late {
				// Between the time that cAdvisor notes and its reading of the counter it may have been without a
				// processor for longer: the next figures are asked for.
				return fmt.Errorf("the API says that %v of a processor were used; the control group, between %v and %v", cpuTime, least, most)
			}
			return memoryAgrees(k, pod, c.Usage.Memory)
		}
		return fmt.Errorf("no figures of the container: %s", out)
	})
}

// usedUntilNow reads the counter, in either version of control groups.
func usedUntilNow(k *harness.Kube, pod string) (sample, error) {
	s := sample{after: time.Now()}
	out, err := k.Try("exec", pod, "-c", "box", "--", "sh", "-c", "cat /sys/fs/cgroup/cpuacct/cpuacct.usage || sed -n 's/^usage_usec \\(.*\\)/\\1000/p' /sys/fs/cgroup/cpu.stat")
	s.before = time.Now()
	if err != nil {
		return s, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	s.used = time.Duration(n)
	return s, err
}

// usedBetween bounds what was used between two times at least, and at most from a second before to a second after.
func usedBetween(samples []sample, from, to time.Time) (least, most time.Duration, ok bool) {
	var start, end, first, last *sample // outside of the time; inside
	for i := range samples {
		s := &samples[i]
		if !s.before.After(from) {
			start = s
		}
		if end == nil && !s.after.Before(to) {
			end = s
		}
		if first == nil && !s.after.Before(from) {
			first = s
		}
		if !s.before.After(to.Add(-time.Second)) {
			last = s
		}
	}
	if start == nil || end == nil {
		return 0, 0, false
	}
	if first != nil && last != nil {
		least = max(0, last.used-first.used)
	}
	return least, end.used - start.used, true
}

// scrapes is each part's metrics by what stands for them, with the path and port at which a scraper asks. It is what
// docs/metrics.md says. What the dashboard needs of a job (docs/dashboards/metrics.txt) is wanted as well.
var scrapes = []struct {
	job, port, path string
	want            []string
}{
	{"apiserver", "6443", "/metrics", []string{"apiserver_request_total", "etcd_server_has_leader 1", "coracle_store_voters 1", "scheduler_schedule_attempts_total"}},
	{"kubelet", "10250", "/metrics", []string{"kubelet_running_pods", "kubeproxy_sync_proxy_rules_endpoint_changes_total", "coredns_dns_requests_total"}},
	{"cadvisor", "10250", "/metrics/cadvisor", []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "machine_cpu_cores"}},
	{"", "10250", "/metrics/resource", []string{"node_cpu_usage_seconds_total", "pod_memory_working_set_bytes"}},
	{"", "10250", "/metrics/probes", []string{"process_start_time_seconds"}},
}

// measured is what some numbers are of, beside a pod: a Service, and an autoscaler that finds nothing.
const measured = `
apiVersion: v1
kind: Service
metadata: {name: measured}
spec: {selector: {app: measured}, ports: [{port: 80}]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: measured}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: nobody}
  maxReplicas: 2
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 30}}}]
`

// scraped: a ServiceAccount with the rights that docs/metrics.md gives it reads every part's metrics by HTTPS, and the
// dashboard's are among them.
func scraped(k *harness.Kube) {
	k.Apply(measured)
	k.Apply(pod("measured", "[testbox, hold]", "", "")) // without a pod there is nothing to say of pods
	k.Kubectl("wait", "--for=condition=Ready", "pod/measured", "--timeout=180s")
	harness.Eventually(k.T, soon, "a name", func() error {
		_, err := k.Try("exec", "measured", "--", "nslookup", "kubernetes.default.svc.cluster.local")
		return err
	})
	token := scraper(k)
	transport := &http.Transport{DialContext: k.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport, Timeout: soon}
	needs := testenv.Must(os.ReadFile("../../docs/dashboards/metrics.txt"))(k.T)
	for _, s := range scrapes {
		url := "https://" + k.IP + ":" + s.port + s.path
		harness.Eventually(k.T, soon, url, func() error {
			body, err := scrape(c, url, token)
			if err != nil {
				return err
			}
			for _, want := range s.want {
				if !strings.Contains(body, "\n"+want) {
					return fmt.Errorf("no %s among %d bytes", want, len(body))
				}
			}
			for line := range strings.Lines(string(needs)) {
				if f := strings.Fields(line); f[0] == s.job && !hasSeries(body, f[1], f[2:]) {
					return fmt.Errorf("the dashboard needs %s with the labels %v, and there is none among %d bytes", f[1], f[2:], len(body))
				}
			}
			return nil
		})
		if resp, err := c.Get(url); err != nil || resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden {
			k.T.Errorf("%s without a token: %v, %v", url, resp, err)
		} else {
			resp.Body.Close()
		}
	}
}

// scraper makes an account with the rights that the page gives to Prometheus, and returns its token.
func scraper(k *harness.Kube) string {
	k.Apply(fmt.Sprintf(`
{apiVersion: v1, kind: ServiceAccount, metadata: {name: prometheus}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: %[1]s-scraper}
rules:
- {nonResourceURLs: [/metrics], verbs: [get]}
- {apiGroups: [""], resources: [nodes/metrics], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %[1]s-scraper}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %[1]s-scraper}
subjects: [{kind: ServiceAccount, name: prometheus, namespace: %[1]s}]
`, k.NS))
	k.T.Cleanup(func() {
		_, _ = k.TryKubectl("delete", "clusterrole/"+k.NS+"-scraper", "clusterrolebinding/"+k.NS+"-scraper", "--wait=false")
	})
	return k.Kubectl("create", "token", "prometheus")
}

func scrape(c *http.Client, url, token string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s, %w: %.200s", resp.Status, err, body)
	}
	return string(body), nil
}

// hasSeries says whether there is a number of this name with all of these labels.
func hasSeries(body, name string, labels []string) bool {
	for line := range strings.Lines(body) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		if !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(rest, "{"+l+`="`) && !strings.Contains(rest, ","+l+`="`) }) {
			return true
		}
	}
	return false
}
