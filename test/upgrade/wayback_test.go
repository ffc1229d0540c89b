//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/test/ha"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// commits runs a command that tries a version, which is committed.
func (h *host) commits(args ...string) {
	h.t.Helper()
	began := time.Now()
	out := h.must("coracle", append([]string{"upgrade"}, args...)...)
	testenv.Contains(h.t, out, "is committed", "coracle upgrade says")
	h.t.Logf("%s: committed within %.1f s", strings.Join(args, " "), time.Since(began).Seconds())
}

// fails is what a command says that ends with an error.
func (h *host) fails(name string, args ...string) string {
	h.t.Helper()
	out, err := h.Run("sh", append([]string{"-c", `exec "$@" 2>&1`, "sh", name}, args...)...)
	testenv.True(h.t, err != nil, "%s %s succeeded:\n%s", name, strings.Join(args, " "), out)
	h.t.Logf("%s %s:\n%s", name, strings.Join(args, " "), out)
	return out
}

// process is the running coracle.
func (h *host) process() string { return h.must("cat", "/run/coracle/coracle.pid") }

// TestSettingOfTheLaterVersion: while a setting is in use that only one of two versions knows, neither is tried in the
// other's place: the command names the setting before anything stops.
func TestSettingOfTheLaterVersion(t *testing.T) {
	harness.ByHand(t)
	later := twoLevels(t)
	h := newByInstaller(t, harness.NewMachine(t), "server", "--node-name", "board", "--disable", "ingress,gateway,console,helm-controller")
	h.kubectl("wait", "--for=condition=Ready", "node/board", "--timeout=120s")
	const config, setting = "/etc/coracle/config.yaml", "later-setting: word\n"
	first := h.state().Current

	h.place(config, setting, 0o644) // too early
	before, pid := h.state(), h.process()
	out := h.fails("coracle", "upgrade", "--here", later.program)
	testenv.Contains(t, out, "later-setting", "a trial of the later version:")
	testenv.Contains(t, out, "would not start again", "a trial of the later version:")
	testenv.Equal(t, h.state(), before, "state:")
	testenv.Equal(t, h.process(), pid, "process:")
	h.must("rm", config)

	h.commits("--here", later.program)
	h.place(config, setting, 0o644)
	h.must("coracle-service", "restart")
	h.serves(h.state().Current)
	before, pid = h.state(), h.process()
	out = h.fails("coracle", "upgrade", "undo")
	testenv.Contains(t, out, "later-setting", "coracle upgrade undo says")
	testenv.Contains(t, out, "Nothing was changed", "coracle upgrade undo says")
	testenv.Equal(t, h.state(), before, "state:")
	testenv.Equal(t, h.process(), pid, "process:")

	h.must("rm", config)
	h.commits("undo")
	testenv.Equal(t, h.state().Current, first, "current:")
	h.serves(first)
}

// born is what is made under the later version: a workload behind an Ingress, and a pod of an image that was imported.
const born = `
apiVersion: v1
kind: Pod
metadata: {name: imported}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: hold, image: "example.test/later:1", imagePullPolicy: IfNotPresent}]}
---
apiVersion: v1
kind: Service
metadata: {name: site}
spec: {selector: {app: site}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: site}
spec: {rules: [{host: site.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: site, port: {number: 80}}}}]}}]}
`

// TestBornUnderTheLaterVersion: the version before takes over pods, an image and the ingress proxy that the later one
// has made. It looks into the pods, restarts and deletes them, and needs no registry.
func TestBornUnderTheLaterVersion(t *testing.T) {
	harness.ByHand(t)
	later := twoLevels(t)
	h := newByInstaller(t, harness.NewMachine(t), "server", "--node-name", "board")
	h.kubectl("wait", "--for=condition=Ready", "node/board", "--timeout=120s")
	first := h.state().Current
	h.commits("--here", later.program)

	archive := filepath.Join(h.Dir, "later.tar")
	harness.WritePauseImage(t, archive, "example.test/later:1")
	h.must("coracle", "ctr", "-n", "k8s.io", "images", "import", archive)
	file := filepath.Join(h.Dir, "born.yaml")
	testenv.NoError(t, os.WriteFile(file, []byte(harness.Workload("Deployment", "site", "replicas: 2",
		"terminationGracePeriodSeconds: 1, containers: ["+harness.BoxYAML+", command: [testbox, serve], ports: [{containerPort: 8080}], "+
			"readinessProbe: {httpGet: {path: /, port: 8080}}}]")+born), 0o644))
	h.kubectl("apply", "-f", file)
	h.kubectl("rollout", "status", "deployment/site", "--timeout=180s")
	h.kubectl("wait", "--for=condition=Ready", "pod/imported", "--timeout=120s")
	h.workload("board")
	site := func() error {
		return harness.Succeeds(h.Run("curl", "-fsS", "--max-time", "5", "-H", "Host: site.example", "http://"+h.IP+"/"))
	}
	harness.Eventually(t, harness.Soon, "the Ingress answers", site)
	images := func() string {
		return h.must("sh", "-c", "coracle ctr -n k8s.io images list -q | grep -c '^example.test/later:1$'")
	}
	pods := func() string {
		return h.running() + h.kubectl("get", "pods", "--sort-by=.metadata.name", "-o",
			`jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} `+
				`{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}`)
	}
	had := pods()
	proxy := func() string { return h.must("sh", "-c", "pidof coracle-ingress || true") }
	t.Logf("the ingress proxy is process %s", proxy())

	h.commits("undo")
	h.serves(first)
	testenv.Equal(t, pods(), had, "pods after the way back:")
	testenv.Equal(t, images(), "1", "images after the way back:")
	harness.Eventually(t, harness.Soon, "the Ingress answers after the way back", site)
	t.Logf("the ingress proxy is process %s after the way back", proxy())
	for name := range strings.FieldsSeq(h.kubectl("get", "pods", "-l", "app=site", "-o", "jsonpath={.items[*].metadata.name}")) {
		testenv.Equal(t, h.kubectl("exec", name, "--", "echo", "here"), "here", "exec in %s:", name)
		h.kubectl("logs", name)
	}
	h.restarts("app=web")
	h.kubectl("delete", "pod", "imported", "--wait", "--timeout=60s")
	h.kubectl("apply", "-f", file)
	h.kubectl("wait", "--for=condition=Ready", "pod/imported", "--timeout=120s") // from the image that is there
	h.kubectl("delete", "pod", "-l", "app=web", "--wait", "--timeout=60s")
	h.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	testenv.Equal(t, h.podProcesses(), "2", "processes of the workload after its pods were replaced:")
	harness.Eventually(t, harness.Soon, "the Ingress answers in the end", site)
}

// restarts ends the containers of the workload, whose pods start them again.
func (h *host) restarts(label string) {
	h.t.Helper()
	h.must("sh", "-c", `for p in /proc/[0-9]*; do
  [ "$(tr '\0' ' ' <$p/cmdline 2>/dev/null)" != "sleep 86397 " ] || kill -9 "${p#/proc/}"
done`)
	harness.Eventually(h.t, harness.Soon, "the containers run again", func() error {
		got := h.kubectl("get", "pods", "-l", label, "-o",
			"jsonpath={range .items[*]}{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready};{end}")
		if got != "1 true;1 true;" {
			return fmt.Errorf("restarts: %s", got)
		}
		return nil
	})
	testenv.Equal(h.t, h.podProcesses(), "2", "processes of the workload after restarts:")
}

// TestLastServerIsRefused: of three servers the first two commit a version of a higher level, and the third one's is
// refused. All three go back: each opens its store, joins and serves, and no acknowledged write is lost.
func TestLastServerIsRefused(t *testing.T) {
	harness.ByHand(t)
	later := twoLevels(t)
	site := harness.NewSite(t)
	const without = "ingress,gateway,console,helm-controller"
	servers := []*host{newByInstaller(t, site.NewMachine(), "server", "--node-name", "first", "--disable", without)}
	first := servers[0]
	token := first.must("cat", "/var/lib/coracle/server/token")
	for _, name := range []string{"second", "board"} {
		servers = append(servers, newByInstaller(t, site.NewMachine(), "server", "--node-name", name, "--disable", without,
			"--server", "https://"+first.IP+":6443", "--token", token))
	}
	whole := func(what string) {
		t.Helper()
		for _, h := range servers {
			harness.Eventually(t, harness.Soon, what+": three servers, and all nodes are Ready", func() error {
				out, err := h.Run("sh", "-c", "coracle member list && coracle kubectl wait --for=condition=Ready node --all --timeout=1s")
				if err == nil && strings.Count(out, ":6443 ") != 3 {
					err = errors.New(out)
				}
				return err
			})
			data := filepath.Join(h.Dir, "places/var/lib/coracle/server")
			testenv.Equal(t, numbers(t, data), "IDENTITY format 2, identity.json 1", "%s: formats:", what)
		}
	}
	whole("before")
	n := first.state().Current
	last := servers[2]
	last.workload("board")
	first.kubectl("create", "namespace", namespace)
	writes := startWriters(t, servers)

	for _, h := range servers[:2] {
		h.commits("--here", later.program)
		whole("after a commit")
	}
	last.refuses("the last one", last.faulty("no-network"), "its node was not Ready for so long", "node: it is not Ready")
	whole("after the refusal")
	for _, h := range servers[:2] {
		h.commits("undo")
		whole("after a way back")
	}
	for _, h := range servers {
		testenv.Equal(t, h.state().Current, n, "current:")
		h.serves(n)
	}
	writes()
}

// startWriters has a writer write at each server. The function that it returns ends them, and fails the test unless
// each server has each write that was acknowledged.
func startWriters(t *testing.T, servers []*host) (check func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		writing.Wait()
	})
	var apis []*kubernetes.Clientset
	var writers []*ha.Writer
	for _, h := range servers {
		config := testenv.Must(clientcmd.BuildConfigFromFlags("", filepath.Join(h.Dir, "places/etc/coracle/coracle.yaml")))(t)
		config.QPS, config.Timeout, config.Host = -1, writeTimeout, "https://"+own
		config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			return h.Dial(ctx, network, address)
		}
		apis = append(apis, testenv.Must(kubernetes.NewForConfig(config))(t))
		w := ha.NewWriter(fmt.Sprintf("at-%d", h.Number), apis[len(apis)-1], namespace)
		writers = append(writers, w)
		writing.Go(func() { w.Run(ctx) })
	}
	return func() {
		t.Helper()
		cancel()
		writing.Wait()
		for i, api := range apis {
			list := testenv.Must(api.CoreV1().ConfigMaps(namespace).List(t.Context(), metav1.ListOptions{}))(t)
			there := map[string]bool{}
			for _, c := range list.Items {
				there[c.Name] = true
			}
			for _, w := range writers {
				acked, errs := w.Acked()
				var longest time.Duration
				for j, a := range acked {
					testenv.True(t, there[a.Name], "server %d lost the acknowledged write %s", servers[i].Number, a.Name)
					if j > 0 {
						longest = max(longest, a.At.Sub(acked[j-1].At))
					}
				}
				testenv.True(t, len(acked) > 100, "%s: %d writes, %v", w.Name, len(acked), errs)
				t.Logf("server %d has all of %d acknowledged writes of %s, whose longest gap was %.1f s", servers[i].Number,
					len(acked), w.Name, longest.Seconds())
			}
		}
	}
}
