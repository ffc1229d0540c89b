//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// mostAfterVerdict is how long it may take from the verdict on a candidate until the version before serves, and
// all nodes are Ready.
const mostAfterVerdict = 15 * time.Second

// host is a machine on which install.sh has installed coracle.
type host struct {
	*installed
	try     func(args ...string) (string, error) // asks the cluster by kubectl
	serving string                               // prints the program that runs, if it serves
}

// newByInstaller installs coracle on a machine by install.sh, without systemd and OpenRC. Trials are short: a minute,
// with conditions that have to hold for 20 s, in which a node that lost its network is no longer Ready.
func newByInstaller(t *testing.T, m *harness.Machine, args ...string) *host {
	t.Helper()
	m.Env = append(m.Env, "PATH=/usr/local/bin:/usr/bin:/bin")
	h := &host{installed: &installed{Machine: m, t: t, versions: slots.Below(filepath.Join(m.Dir, "places/var/lib/coracle"))}}
	h.try = func(args ...string) (string, error) { return h.Run("coracle", append([]string{"kubectl"}, args...)...) }
	h.serving = "readlink /proc/$(cat /run/coracle/coracle.pid)/exe && coracle kubectl get --raw /readyz"
	h.must("mkdir", "-p", "/var/lib/coracle/images")
	harness.WriteBoxImage(t, filepath.Join(m.Dir, "places/var/lib/coracle/images/box.tar"))
	script := filepath.Join(m.Dir, "install.sh")
	testenv.NoError(t, os.WriteFile(script, testenv.Must(os.ReadFile("../../install.sh"))(t), 0o755))
	c := m.Command(t.Context(), script, args...)
	c.Env = append(c.Env, "INSTALL_CORACLE_SERVICE=none", "INSTALL_CORACLE_SYMLINK=force", "INSTALL_CORACLE_SHA256=skip",
		"INSTALL_CORACLE_BINARY="+m.Coracle(), "CORACLE_TRIAL_SOAK=20s", slots.TrialEnv+"=60")
	out, err := c.CombinedOutput()
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := h.Run("tail", "-n", "100", "/var/log/coracle.log") // the log of a failed test
			t.Log(out)
		}
		out, err := h.Run("sh", "-c", "coracle-uninstall --force 2>&1")
		testenv.Check(t, err)
		testenv.Contains(t, out, "coracle is gone", "coracle-uninstall says")
	})
	testenv.NoError(t, err, "%s", out)
	return h
}

// kubectl asks the cluster, and fails the test when that fails.
func (h *host) kubectl(args ...string) string {
	h.t.Helper()
	out, err := h.try(args...)
	testenv.NoError(h.t, err, "kubectl %s:\n%s", strings.Join(args, " "), out)
	return strings.TrimSpace(out)
}

// behind is a program with a text behind its end. None reads it but a version of two levels, whose fault it may be
// (cmd/coracle/faults_two.go).
func (h *host) behind(program, text string) string {
	h.t.Helper()
	path := filepath.Join(h.Dir, "candidate")
	testenv.NoError(h.t, exec.Command("cp", program, path).Run())
	f := testenv.Must(os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0))(h.t)
	testenv.Must(f.WriteString(text))(h.t)
	testenv.NoError(h.t, f.Close())
	return path
}

// faulty is the version of two levels with a fault.
func (h *host) faulty(fault string) string {
	h.t.Helper()
	return h.behind(twoLevels(h.t).program, "\ncoracle-fault="+fault)
}

// workload makes two pods on the machine's node.
func (h *host) workload(node string) {
	h.t.Helper()
	path := filepath.Join(h.Dir, "web.yaml") // every machine sees it
	testenv.NoError(h.t, os.WriteFile(path, []byte(harness.Workload("Deployment", "web", "replicas: 2", `
  nodeName: `+node+`, terminationGracePeriodSeconds: 1,
  containers: [{name: web, image: `+harness.BoxImage+`, imagePullPolicy: Never, command: [sleep, "86397"]}]`)), 0o644))
	h.kubectl("apply", "-f", path)
	h.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	testenv.Equal(h.t, h.podProcesses(), "2", "processes of pods:")
}

// podProcesses is how many processes the workload's containers have on this machine.
func (h *host) podProcesses() string {
	h.t.Helper()
	return h.must("sh", "-c", `n=0
for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' <$p/cmdline 2>/dev/null)" != "sleep 86397 " ] || n=$((n + 1)); done
echo $n`)
}

// running says of each pod of the workload who it is, which container it runs, how often that was restarted, and how
// many processes the containers have.
func (h *host) running() string {
	h.t.Helper()
	return h.kubectl("get", "pods", "-l", "app=web", "--sort-by=.metadata.name", "-o", `jsonpath={range .items[*]}{.metadata.uid} `+
		`{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}`) + "\n" + h.podProcesses()
}

// trialEnds receives the moment at which a trial ends that begins from now on.
func (h *host) trialEnds(ctx context.Context) <-chan time.Time {
	at := make(chan time.Time, 1)
	go func() {
		// Another process changes the links, and the moment counts.
		for began := false; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			s, err := h.versions.State()
			if err == nil && began && s.Trial == "" {
				at <- time.Now()
				return
			}
			began = began || err == nil && s.Trial != ""
		}
	}()
	return at
}

// refuses tries a candidate that does not work: the version before serves again soon after the verdict, everything says
// why, and pods were not touched.
func (h *host) refuses(name, candidate string, want ...string) {
	h.t.Run(name, func(t *testing.T) {
		outer := h.t
		h.t = t
		defer func() { h.t = outer }()
		current, pods, began := h.state().Current, h.running(), time.Now()
		end := h.trialEnds(t.Context())
		out, err := h.Run("sh", "-c", "exec coracle upgrade --here "+candidate+" 2>&1")
		ready := time.Now()
		t.Logf("%s", out)
		var exit *exec.ExitError
		testenv.True(t, errors.As(err, &exit) && exit.ExitCode() == 3, "the command ended with %v", err)
		testenv.Contains(t, out, "The version before runs again", "the command says")
		harness.Eventually(t, time.Minute, "the version before serves", func() error {
			out, err := h.Run("sh", "-c", h.serving)
			if err == nil && !strings.Contains(out, current) {
				err = errors.New(out)
			}
			return err
		})
		served := time.Now()
		h.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=90s")
		// The Node may still say Ready from before, and the kubelet takes a moment until it knows its pods.
		harness.Eventually(t, time.Minute, "a command runs in a pod", func() error {
			return harness.Succeeds(h.try("exec", "deployment/web", "--", "true"))
		})
		healthy := time.Now()
		var verdict time.Time
		select {
		case verdict = <-end:
		case <-time.After(time.Second):
			t.Fatal("no trial began")
		}
		t.Logf("%s: the verdict came after %.1f s; the version before was ready within %.1f s of it, had replied to a request "+
			"within %.1f s, and had looked into a pod of a Ready node within %.1f s", name, verdict.Sub(began).Seconds(),
			ready.Sub(verdict).Seconds(), served.Sub(verdict).Seconds(), healthy.Sub(verdict).Seconds())
		testenv.True(t, healthy.Sub(verdict) <= mostAfterVerdict,
			"the node was Ready, and a command ran in a pod, %s after the verdict", healthy.Sub(verdict))

		s := h.state()
		testenv.True(t, s.Current == current && s.Trial == "" && s.Refused != nil, "%+v", s)
		says := map[string]string{"the command": out, "coracle upgrade status": h.must("coracle", "upgrade", "status")}
		says["coracle status"], _ = h.Run("sh", "-c", "coracle status 2>&1") // its exit code says whether anything is in trouble
		harness.Eventually(t, time.Minute, "an Event on the Node", func() error {
			says["the Event"] = h.kubectl("get", "events", "--field-selector",
				"reason=UpgradeRefused,involvedObject.kind=Node,involvedObject.name=board",
				"-o", `jsonpath={range .items[*]}{.message}{"\n"}{end}`)
			if !strings.Contains(says["the Event"], slots.Short(s.Refused.Digest)) {
				return fmt.Errorf("events: %s", says["the Event"])
			}
			return nil
		})
		for where, text := range says {
			for _, w := range want {
				testenv.Contains(t, text, w, "%s says", where)
			}
		}
		testenv.Equal(t, h.running(), pods, "pods:")
	})
}

// TestFaultyServersGoBack: on a machine that install.sh has set up, versions that do not work are refused by the gate
// and the starter, and the version before serves again within 15 s of the verdict.
func TestFaultyServersGoBack(t *testing.T) {
	harness.ByHand(t)
	twoLevels(t)
	h := newByInstaller(t, harness.NewMachine(t), "server", "--node-name", "board")
	h.kubectl("wait", "--for=condition=Ready", "node/board", "--timeout=120s")
	h.workload("board")
	h.refuses("exits at once", h.faulty("exits"), "3 starts without a commit")
	h.refuses("hangs", h.faulty("hangs"), "no commit within 60 s")
	h.refuses("is never Ready", h.faulty("no-network"), "its node was not Ready for so long", "node: it is not Ready")
	h.refuses("breaks DNS", h.faulty("no-dns"), "no commit within 60 s", "cluster DNS: 10.43.0.10: ")
	h.refuses("writes no Service rules", h.faulty("no-rules"), "no commit within 60 s",
		"Services: the kubernetes Service does not answer at 10.43.0.1")
}

// TestFaultyAgentsGoBack: the same as TestFaultyServersGoBack on an agent, whose server has the version before.
func TestFaultyAgentsGoBack(t *testing.T) {
	harness.ByHand(t)
	twoLevels(t)
	site := harness.NewSite(t)
	server := site.NewMachine().NewServer("--disable-agent")
	server.StartAPI()
	token := strings.TrimSpace(string(testenv.Must(os.ReadFile(server.Seen("server", "agent-token")))(t)))
	h := newByInstaller(t, site.NewMachine(), "agent", "--node-name", "board", "--server", "https://"+server.IP+":6443", "--token", token)
	h.try = server.TryKubectl
	h.serving = "readlink /proc/$(cat /run/coracle/coracle.pid)/exe" // that it is ready, the command has awaited
	h.kubectl("wait", "--for=condition=Ready", "node/board", "--timeout=120s")
	h.workload("board")
	h.refuses("exits at once", h.faulty("exits"), "3 starts without a commit")
	h.refuses("hangs", h.faulty("hangs"), "no commit within 60 s")
	h.refuses("is never Ready", h.faulty("no-network"), "its node was not Ready for so long", "node: it is not Ready")
	h.refuses("breaks DNS", h.faulty("no-dns"), "no commit within 60 s", "cluster DNS: 10.43.0.10: ")
}
