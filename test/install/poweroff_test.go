//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// endingPod is a pod that writes to a file of its machine what happens to it. handler is the shell's for SIGTERM.
func endingPod(namespace, name, handler, lifecycle string, grace int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {namespace: %s, name: %s}
spec:
  terminationGracePeriodSeconds: %d
  volumes: [{name: log, hostPath: {path: /var/log/ending, type: DirectoryOrCreate}}, {name: scratch, emptyDir: {medium: Memory}}]
  containers:
  - name: app
    image: %s
    imagePullPolicy: Never
    command: [sh, -c, 'trap "echo %[2]s TERM >> /log/events; %[5]s" TERM; while true; do sleep 0.1; date +%%s > /log/%[2]s.alive; done']
    volumeMounts: [{name: log, mountPath: /log}, {name: scratch, mountPath: /scratch}]
    lifecycle: {%[6]s}
`, namespace, name, grace, harness.BoxImage, handler, lifecycle)
}

// endingPods are a pod with a preStop hook that needs the cluster's DNS, one that does not end at SIGTERM, and one that
// others need.
var endingPods = endingPod("default", "web", "exit 0",
	`preStop: {exec: {command: [sh, -c, "nslookup kubernetes.default.svc.cluster.local && echo web preStop >> /log/events"]}}`, 20) +
	"---" + endingPod("default", "endless", "", "", 5) +
	"---" + endingPod("kube-system", "needed", "exit 0", "", 20)

// podIDs are the pods' UIDs, and how often their containers were started.
func (h *host) podIDs() (uids, restarts string) {
	const of = `jsonpath={range .items[?(@.spec.containers[0].name=="app")]}{%s} {end}`
	return h.kubectl("get", "pods", "-A", "-o", fmt.Sprintf(of, ".metadata.uid")),
		h.kubectl("get", "pods", "-A", "-o", fmt.Sprintf(of, ".status.containerStatuses[0].restartCount"))
}

// applyEndingPods starts the pods and waits for them.
func (h *host) applyEndingPods() {
	h.t.Helper()
	file := filepath.Join(h.Dir, "pods.yaml")
	h.write(file, endingPods)
	harness.Eventually(h.t, time.Minute, "the pods are accepted", func() error {
		_, err := h.run("kubectl", "apply", "-f", file)
		return err
	})
	h.awaitEndingPods()
}

func (h *host) awaitEndingPods() {
	h.t.Helper()
	h.kubectl("wait", "--for=condition=Ready", "pod/web", "pod/endless", "--timeout=180s")
	h.kubectl("-n", "kube-system", "wait", "--for=condition=Ready", "pod/needed", "--timeout=180s")
}

// events are what the pods wrote.
func (h *host) events() []string {
	h.t.Helper()
	data, err := os.ReadFile(filepath.Join(h.Dir, "places/var/log/ending/events"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	testenv.NoError(h.t, err)
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

// poweroff switches the machine off and waits until its systemd has ended.
func (h *host) poweroff() (took time.Duration) {
	h.t.Helper()
	began := time.Now()
	_, _ = h.run("systemctl", "poweroff") // the connection to systemd may end before the answer
	harness.Eventually(h.t, 3*time.Minute, "the machine is off", func() error {
		if out, err := h.run("true"); err == nil {
			return errors.New("it still runs programs: " + out)
		}
		return nil
	})
	h.inside = nil
	return time.Since(began)
}

// TestPoweroffStopsPods: the service manager stops the pods in order when the machine goes down. When it is back, the
// same pods start again.
func TestPoweroffStopsPods(t *testing.T) {
	h := newHost(t)
	h.bootSystemd()
	h.service = ""
	h.must("mkdir", "-p", "/var/lib/coracle/images")
	harness.WriteBoxImage(t, filepath.Join(h.Dir, "places/var/lib/coracle/images/box.tar"))
	h.mustInstall(nil, "--node-name", "board-1")
	h.applyEndingPods()
	h.must("systemctl", "start", "coracle-pods") // it waits until coracle has reported that it is ready
	h.must("systemctl", "restart", "coracle")
	h.awaitEndingPods()
	testenv.Equal(t, len(h.events()), 0, "a restart of the service has stopped pods: %v;", h.events())
	uids, restarts := h.podIDs()

	took := h.poweroff()
	t.Logf("off after %v", took)
	events := h.events()
	isEndless := func(e string) bool { return e == "endless TERM" } // in the first wave, at any time
	testenv.True(t, slices.ContainsFunc(events, isEndless), "the pod that does not end got no signal: %v", events)
	testenv.EqualSlices(t, slices.DeleteFunc(slices.Clone(events), isEndless), []string{"web preStop", "web TERM", "needed TERM"}, "in this order;")
	testenv.Equal(t, events[len(events)-1], "needed TERM", "the last one of %v:", events)
	log := h.log()
	for _, want := range []string{"all pods were stopped", "coracle has stopped"} {
		testenv.Contains(t, log, want, "the log of the service does not say")
	}
	// endless has five seconds, and nothing else should take long; a busy machine takes longer.
	testenv.True(t, took < time.Minute, "switching off took %v", took)
	mounts := testenv.Must(h.Run("cat", "/proc/self/mounts"))(t)
	testenv.False(t, strings.Contains(mounts, "/var/lib/kubelet/pods/"), "volumes are still mounted:\n%s", mounts)

	h.bootSystemd()
	h.mustInstall(nil)
	h.awaitEndingPods()
	after, restartsAfter := h.podIDs()
	testenv.Equal(t, after, uids, "the pods are")
	for i, n := range strings.Fields(restarts) {
		if again := strings.Fields(restartsAfter)[i]; again <= n {
			t.Errorf("containers were started %s times before, and %s times in all", restarts, restartsAfter)
		}
	}
}

// TestPodsStopOnlyWhenTheMachineGoesDown: the unit that stops pods runs at no other time, whatever happens to the
// service or to the unit.
func TestPodsStopOnlyWhenTheMachineGoesDown(t *testing.T) {
	h := newHost(t)
	h.bootSystemd()
	h.service = ""
	h.must("mkdir", "-p", "/var/lib/coracle/images")
	harness.WriteBoxImage(t, filepath.Join(h.Dir, "places/var/lib/coracle/images/box.tar"))
	h.mustInstall(nil, "--node-name", "board-1")
	h.applyEndingPods()
	h.must("systemctl", "start", "coracle-pods")
	uids, restarts := h.podIDs()
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"the service is stopped and started", func() {
			h.must("systemctl", "stop", "coracle")
			h.must("systemctl", "start", "coracle")
		}},
		{"the installer runs again", func() { h.mustInstall(nil) }},
		{"an upgrade", func() {
			binary := filepath.Join(h.release, slices.MaxFunc(testenv.Must(os.ReadDir(h.release))(t), bySize).Name())
			f := testenv.Must(os.OpenFile(binary, os.O_APPEND|os.O_WRONLY, 0))(t)
			testenv.NoError(t, testenv.Err(f.WriteString("another release")))
			testenv.NoError(t, f.Close())
			h.write(filepath.Join(h.release, "sha256sums.txt"), hash(t, binary)+"  "+filepath.Base(binary)+"\n")
			h.mustInstall(nil)
		}},
		{"other settings", func() { h.mustInstall(nil, "server", "--node-name", "board-1", "--shutdown-grace-period", "50s") }},
		{"the unit is read again and disabled", func() {
			h.must("systemctl", "daemon-reload")
			h.must("systemctl", "disable", "coracle-pods")
			h.must("systemctl", "enable", "coracle-pods")
		}},
	} {
		step.do()
		h.awaitEndingPods()
		now, again := h.podIDs()
		testenv.Equal(t, now+again, uids+restarts, "%s: pods and starts of their containers are", step.name)
		testenv.Equal(t, h.must("systemctl", "is-active", "coracle-pods"), "active", "%s: the unit is", step.name)
	}
	h.must("coracle-uninstall", "--keep-data")
	testenv.False(t, strings.Contains(h.log(), "stopping all pods"), "a log says that pods were stopped for a shutdown:\n%s", h.log())
	testenv.False(t, slices.Contains(h.events(), "web preStop"), "a preStop hook ran: %v", h.events())
	if out, err := h.run("systemctl", "status", "coracle-pods"); exitCode(err) != 4 {
		t.Errorf("systemd still knows the unit (code %d):\n%s", exitCode(err), out)
	}
}

func bySize(a, b os.DirEntry) int {
	x, errX := a.Info()
	y, errY := b.Info()
	if errX != nil || errY != nil {
		return 0
	}
	return int(x.Size() - y.Size())
}
