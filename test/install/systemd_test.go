//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const systemd = "/lib/systemd/systemd"

// shutdownUnits are the host's units that switch a machine off. They tend to nothing of the host's.
var shutdownUnits = []string{"poweroff.target", "final.target", "umount.target", "systemd-poweroff.service"}

// startSystemd makes systemd the first process of a pid namespace inside the machine. It gets units of its own, since
// the host's would tend to the host's files: a handful of empty targets. In a container systemd takes its own arguments
// for the kernel's: the last one keeps it, on hosts with cgroup v1, from the one hierarchy that the machine has no root
// of its own in.
const startSystemd = `set -eu
mount --make-rprivate /
mount --make-rshared /
for d in /usr/lib/systemd/system /usr/lib/systemd/system-generators /usr/lib/systemd/system-environment-generators /etc/systemd /run/systemd; do
  mkdir -p $d
  mount -t tmpfs -o mode=755 systemd-test $d
done
mkdir -p /etc/systemd/system
cp "$1"/* /usr/lib/systemd/system/
for t in sysinit basic shutdown multi-user network-online; do
  printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' $t > /usr/lib/systemd/system/$t.target
done
mkdir -p /etc/systemd/system/coracle.service.d
printf '[Service]\nStandardOutput=append:/var/log/unit.log\nStandardError=append:/var/log/unit.log\n' > /etc/systemd/system/coracle.service.d/log.conf
exec env -i container=test PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin ` + systemd + ` --system --unit=multi-user.target --log-target=console --show-status=false systemd.legacy_systemd_cgroup_controller=yes
`

// bootSystemd puts systemd in charge of the host and makes every further command run under it.
func (h *host) bootSystemd() {
	h.t.Helper()
	if _, err := os.Stat(systemd); err != nil {
		testenv.Missing(h.t, testenv.Systemd, "this machine has no %s", systemd)
	}
	log := testenv.Must(os.Create(filepath.Join(h.Dir, "systemd.log")))(h.t)
	defer log.Close()
	pidFile, units := filepath.Join(h.Dir, "systemd.pid"), filepath.Join(h.Dir, "units")
	testenv.NoError(h.t, os.MkdirAll(units, 0o755))
	for _, u := range shutdownUnits {
		h.copy("/usr/lib/systemd/system/"+u, filepath.Join(units, u), 0o644)
	}
	_ = os.Remove(pidFile) // of an earlier boot
	c := h.Command(context.Background(), "sh", "-c", `unshare --pid --mount --fork --mount-proc sh -c "$1" boot "$3" & echo $! > "$2"; wait`, "boot",
		startSystemd, pidFile, units)
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	testenv.NoError(h.t, c.Start())
	h.t.Cleanup(func() {
		if h.t.Failed() {
			output, err := os.ReadFile(log.Name())
			h.t.Logf("systemd said (%v):\n%s", err, output)
		}
	})
	harness.Eventually(h.t, harness.Soon, "systemd is up", func() error {
		parent, err := os.ReadFile(pidFile)
		if err != nil {
			return err
		}
		p := strings.TrimSpace(string(parent))
		child, err := h.Run("cat", "/proc/"+p+"/task/"+p+"/children")
		if err != nil {
			return err
		}
		h.inside = []string{"nsenter", "-t", strings.TrimSpace(child), "-m", "-p", "--"}
		if out, err := h.run("systemctl", "is-system-running"); !strings.Contains(out, "running") && !strings.Contains(out, "degraded") {
			return errors.Join(errors.New(out), err)
		}
		return nil
	})
}

// property asks systemd about the service.
func (h *host) property(name string) string {
	h.t.Helper()
	return h.must("systemctl", "show", "-p", name, "--value", "coracle")
}

func TestServiceKeepsItsUnitsPromises(t *testing.T) {
	h := newHost(t)
	h.bootSystemd()
	h.service = "" // let the installer find out
	h.must("mkdir", "-p", "/var/lib/coracle/images")
	harness.WriteBoxImage(t, filepath.Join(h.Dir, "places/var/lib/coracle/images/box.tar"))
	out := h.mustInstall([]string{`CORACLE_NODE_LABEL=a=b`}, "--node-name", "board-1", "--node-label", "c=d")
	testenv.Require(t, !strings.Contains(out, "no systemd"), "the installer did not find systemd")
	testenv.Equal(t, h.property("ActiveState")+" "+h.property("UnitFileState"), "active enabled", "the service is")
	h.write(filepath.Join(h.Dir, "web.yaml"), workload)
	h.kubectl("apply", "-f", filepath.Join(h.Dir, "web.yaml"))
	h.kubectl("rollout", "status", "deployment/web", "--timeout=180s")
	h.awaitAnswer()
	containers := h.containers()

	t.Run("restart", func(t *testing.T) {
		h.must("systemctl", "restart", "coracle") // waits until coracle says that it is ready
		testenv.Equal(t, h.containers(), containers, "containers were\n%s\nand are", containers)
	})
	t.Run("crash", func(t *testing.T) {
		pid := h.property("MainPID")
		h.must("kill", "-9", pid)
		harness.Eventually(t, 3*time.Minute, "systemd starts coracle again", func() error {
			if now := h.property("MainPID"); now == pid || now == "0" || h.property("ActiveState") != "active" {
				return errors.New("main process " + now + ", " + h.property("ActiveState"))
			}
			return nil
		})
		testenv.Equal(t, h.containers(), containers, "containers were\n%s\nand are", containers)
		if n, err := strconv.Atoi(h.property("NRestarts")); err != nil || n != 1 {
			t.Errorf("systemd counts %d restarts, %v", n, err)
		}
	})
	t.Run("stop", func(t *testing.T) {
		h.must("systemctl", "stop", "coracle")
		h.awaitAnswer() // pods go on without
		testenv.Contains(t, h.mustInstall(nil), "ready after", "the installer did not start it again:")
		testenv.Equal(t, h.containers(), containers, "containers were\n%s\nand are", containers)
	})
	t.Run("new settings", func(t *testing.T) {
		pid := h.property("MainPID")
		h.mustInstall(nil, "server", "--node-name", "board-1", "--kubelet-arg", "max-pods=50")
		if now := h.property("MainPID"); now == pid || h.property("ActiveState") != "active" {
			t.Errorf("main process %s became %s, and the service is %s", pid, now, h.property("ActiveState"))
		}
		testenv.Equal(t, h.containers(), containers, "containers were\n%s\nand are", containers)
		harness.Eventually(t, 3*time.Minute, "the node has the new setting", func() error {
			if got := h.kubectl("get", "node", "board-1", "-o", "jsonpath={.status.capacity.pods}"); got != "50" {
				return errors.New("the node takes " + got + " pods")
			}
			return nil
		})
	})
	h.must("coracle-uninstall")
	if out, err := h.run("systemctl", "status", "coracle"); exitCode(err) != 4 {
		t.Errorf("systemd still knows the service (code %d):\n%s", exitCode(err), out)
	}
	testenv.Equal(t, h.must("sh", "-c", "ls -d /var/lib/coracle /var/lib/kubelet /etc/coracle /run/coracle /usr/local/bin/* 2>/dev/null || true"), "", "left behind:")
}
