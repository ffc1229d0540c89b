//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestSuiteLeavesRunningClusterAlone: on a machine where coracle is installed and runs, the tests neither notice the
// cluster nor touch it. A machine plays the contributor's, and another run of this program on it installs and
// uninstalls.
func TestSuiteLeavesRunningClusterAlone(t *testing.T) {
	source := testenv.Must(os.Getwd())(t)
	site := harness.NewSite(t)
	site.Needs = append(site.Needs, filepath.Dir(filepath.Dir(source))) // the tree, which may be in root's home
	h := newHostOn(t, site)
	h.must("mkdir", "-p", "/var/lib/coracle/images")
	box := filepath.Join(h.Dir, "places/var/lib/coracle/images/box.tar")
	harness.WriteBoxImage(t, box)
	h.mustInstall(nil, "--node-name", "board-1")
	h.write(filepath.Join(h.Dir, "web.yaml"), workload)
	h.kubectl("apply", "-f", filepath.Join(h.Dir, "web.yaml"))
	h.kubectl("rollout", "status", "deployment/web", "--timeout=180s")
	h.awaitAnswer()
	if mounts := h.must("cat", "/proc/self/mounts"); !strings.Contains(mounts, " /run/coracle/") || !strings.Contains(mounts, " /var/lib/kubelet/") {
		t.Fatalf("the cluster has no mounts to be noticed:\n%s", mounts)
	}
	containers, pid := h.containers(), h.pid()
	before := h.settled()

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	self := testenv.Must(os.Executable())(t)
	c := h.Command(ctx, "sh", "-c", `cd "$1" && exec "$2" -test.v -test.count=1 -test.run "$3"`, "inner", source, self, "^TestInstallAndUninstall$")
	// The machine need not have Go: a newer one than the distribution's is in root's home.
	c.Env = append(c.Env, "PATH="+os.Getenv("PATH"), "CORACLE_BIN="+h.Coracle(), innerEnv+"="+box, "TMPDIR="+filepath.Join(h.Dir, "inner"))
	testenv.NoError(t, os.Mkdir(filepath.Join(h.Dir, "inner"), 0o755))
	c.WaitDelay = 5 * time.Second
	out, err := c.CombinedOutput()
	testenv.True(t, err == nil && strings.Contains(string(out), "--- PASS: TestInstallAndUninstall"),
		"a test beside the cluster: %v\n%s", err, out)

	h.awaitAnswer()
	testenv.Equal(t, h.containers(), containers, "containers were\n%s\nand are", containers)
	testenv.Equal(t, h.pid(), pid, "coracle was process %s and is", pid)
	harness.Eventually(t, 3*time.Minute, "the cluster's machine is as before", func() error { // coracle's own work comes and goes
		if d := before.difference(h.cluster()); d != "" {
			return errors.New(d)
		}
		return nil
	})
	h.must("coracle-uninstall")
}

// cluster is what of the machine's state is not subject to the cluster's own work. The marker of the node's start goes
// after a minute.
func (h *host) cluster() state {
	all := h.state()
	return state{
		"mounts": all["mounts"], "devices": all["devices"], "addresses": all["addresses"], "routes": all["routes"],
		"netns": all["netns"], "ports": all["ports"], "cgroups": all["cgroups"],
		"files": lines(h.must("sh", "-c", "find /etc /usr/local/bin /opt /root -xdev; find /var/lib /run -maxdepth 2 ! -path /run/coracle/node-start")),
	}
}

// settled is the cluster's state once two looks in a row have found the same.
func (h *host) settled() state {
	h.t.Helper()
	now := h.cluster()
	harness.Eventually(h.t, 3*time.Minute, "the cluster has settled", func() error {
		before := now
		now = h.cluster()
		if d := before.difference(now); d != "" {
			return errors.New(d)
		}
		return nil
	})
	return now
}

// innerEnv is set where TestSuiteLeavesRunningClusterAlone runs this program: the archive with the image of its pod.
const innerEnv = "CORACLE_TEST_BESIDE"

// TestInstallAndUninstall is what TestSuiteLeavesRunningClusterAlone runs: a short life of an installation, with pods.
func TestInstallAndUninstall(t *testing.T) {
	box := os.Getenv(innerEnv)
	if box == "" {
		t.Skip("TestSuiteLeavesRunningClusterAlone runs this, beside a cluster; TestInstallUpgradeAndUninstall does all of it and more")
	}
	h := newHost(t)
	before := h.state()
	h.must("mkdir", "-p", "/var/lib/coracle/images")
	h.copy(box, filepath.Join(h.Dir, "places/var/lib/coracle/images/box.tar"), 0o644)
	h.mustInstall(nil, "--node-name", "board-2")
	harness.Eventually(t, 3*time.Minute, "pods may be made", func() error { // not before there is a service account for them
		_, err := h.run("kubectl", "get", "serviceaccount", "default")
		return err
	})
	h.kubectl("run", "box", "--image="+harness.BoxImage, "--image-pull-policy=Never", "--", "sleep", "3600")
	h.kubectl("wait", "pod/box", "--for=condition=Ready", "--timeout=180s")
	t.Log(h.must("coracle-uninstall"))
	h.awaitState(before)
}
