//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var workload = harness.Workload("Deployment", "web", "replicas: 2", `
  terminationGracePeriodSeconds: 1,
  volumes: [{name: host, hostPath: {path: /var/lib/precious}}, {name: scratch, emptyDir: {medium: Memory}}],
  containers: [{name: web, image: `+harness.BoxImage+`, imagePullPolicy: Never,
  command: [sh, -c, "echo hello > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"], ports: [{containerPort: 8080}],
  volumeMounts: [{name: host, mountPath: /host}, {name: scratch, mountPath: /scratch}]}]`) + `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
`

// TestInstallUpgradeAndUninstall takes a machine from nothing to a cluster with a workload, over a second run and an
// upgrade, to nothing.
func TestInstallUpgradeAndUninstall(t *testing.T) {
	h := newHost(t)
	precious := filepath.Join(h.Dir, "places/var/lib/precious")
	testenv.NoError(t, os.MkdirAll(precious, 0o755))
	h.write(filepath.Join(precious, "file"), "keep me")
	before := h.state()

	h.must("mkdir", "-p", "/var/lib/coracle/images")
	harness.WriteBoxImage(t, filepath.Join(h.Dir, "places/var/lib/coracle/images/box.tar"))
	out := h.mustInstall([]string{"CORACLE_NODE_LABEL=from=environment"}, "--node-name", "board-1")
	for _, want := range []string{"ready after", "kubectl get pods", "coracle status"} {
		testenv.Contains(t, out, want, "the installer does not say")
	}
	testenv.Equal(t, h.kubectl("get", "node", "board-1", "-o", "jsonpath={.metadata.labels.from}"), "environment", "label from the environment is")
	h.write(filepath.Join(h.Dir, "web.yaml"), workload)
	h.kubectl("apply", "-f", filepath.Join(h.Dir, "web.yaml"))
	h.kubectl("rollout", "status", "deployment/web", "--timeout=180s")
	h.awaitAnswer()
	containers := h.containers()

	t.Run("again", func(t *testing.T) {
		pid := h.pid()
		if out := h.mustInstall(nil); !strings.Contains(out, "nothing has changed") || !strings.Contains(out, "--node-name board-1") {
			t.Errorf("the second run does not say that it changes nothing:\n%s", out)
		}
		testenv.Equal(t, h.pid(), pid, "the second run restarted coracle: process %s is now", pid)
	})
	t.Run("new settings", func(t *testing.T) {
		pid := h.pid()
		h.mustInstall(nil, "server", "--node-name", "board-1", "--node-label", "from=arguments")
		testenv.True(t, h.pid() != pid, "new arguments did not restart coracle")
		testenv.Equal(t, h.containers(), containers, "containers were\n%s\nand are", containers)
	})
	t.Run("crash", func(t *testing.T) {
		pid := h.pid()
		h.must("kill", "-9", pid)
		harness.Eventually(t, harness.Soon, "coracle is started again", func() error {
			if now := h.pid(); now == pid || now == "" {
				return errors.New("no new process")
			}
			_, err := h.run("kubectl", "get", "nodes")
			return err
		})
	})
	t.Run("keep data", func(t *testing.T) {
		t.Log(h.must("coracle-uninstall", "--keep-data"))
		if _, err := h.run("test", "-d", "/var/lib/coracle/server"); err != nil {
			t.Fatal("the data is gone")
		}
		testenv.Fails(t, h.ask(), "a pod still answers")
		h.mustInstall(nil)
		h.awaitAnswer()
	})

	t.Log(h.must("coracle-uninstall"))
	h.awaitState(before)
	testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(precious, "file")))(t)), "keep me", "a file that pods had mounted from the host:")
}

// awaitAnswer waits until the workload's node port answers.
func (h *host) awaitAnswer() {
	h.t.Helper()
	harness.Eventually(h.t, 3*time.Minute, "the node port answers", h.ask)
}

// ask asks the workload by its node port, and gives up soon: a connection that was tried while the Service still knew
// the earlier pod stays with that pod's address for ever. (Debian's static busybox crashes on its own time-out.)
func (h *host) ask() error {
	_, err := h.run("timeout", "3", "busybox", "wget", "-qO-", "http://10.77.0.2:30080/index.html")
	return err
}

// pid is the process id of the running coracle on its machine.
func (h *host) pid() string {
	out, err := h.run("cat", "/run/coracle/coracle.pid")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(out)
}

// containers names the workload's containers.
func (h *host) containers() string {
	return h.kubectl("get", "pods", "-l", "app=web", "--sort-by=.metadata.name", "-o",
		`jsonpath={range .items[*]}{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}`)
}

// TestInstallerRefusesWhatCannotWork: what cannot work says so and installs nothing.
func TestInstallerRefusesWhatCannotWork(t *testing.T) {
	h := newHost(t)
	before := h.state()
	sums := filepath.Join(h.release, "sha256sums.txt")
	good := testenv.Must(os.ReadFile(sums))(t)
	for _, tt := range []struct {
		name string
		sums string
		env  []string
		args []string
		want string
	}{
		{name: "wrong sum", sums: strings.Repeat("0", 64) + strings.TrimLeft(string(good), "0123456789abcdef"), want: "is not what was released"},
		{name: "not listed", sums: "00  other\n", want: "does not list"},
		{name: "no file", sums: string(good), env: []string{"INSTALL_CORACLE_BINARY=/nowhere"}, want: "is no file"},
		{name: "unknown service", sums: string(good), env: []string{"INSTALL_CORACLE_SERVICE=runit"}, want: "may be systemd, openrc or none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h.write(sums, tt.sums)
			out, err := h.install(tt.env, tt.args...)
			testenv.False(t, exitCode(err) == 0 || !strings.Contains(out, tt.want), "got %v and:\n%s\nwant %q", err, out, tt.want)
		})
	}
	h.write(sums, string(good))
	t.Run("not root", func(t *testing.T) {
		script := filepath.Join(h.release, "install.sh")
		_, err := h.run("sh", "-c", "exec setpriv --reuid 65534 --clear-groups sh -s < "+script)
		testenv.WantError(t, err, "takes root")
	})
	h.awaitState(before)
}

// TestOccupiedPortIsFoundBeforeStart: the check before the start looks at the port that is asked for, and says who has
// it. Afterwards what is not coracle's stays, and everything else goes.
func TestOccupiedPortIsFoundBeforeStart(t *testing.T) {
	h := newHost(t)
	before := h.state()
	pidFile := filepath.Join(h.Dir, "nc.pid")
	c := h.Command(t.Context(), "sh", "-c", "echo $$ > "+pidFile+"; exec busybox nc -l -p 7443")
	testenv.NoError(t, c.Start())
	testenv.Until(t, harness.Soon, "the port is taken",
		func() bool { return strings.Contains(h.must("cat", "/proc/net/tcp", "/proc/net/tcp6"), ":1D13 ") })
	out, err := h.install(nil, "server", "--https-listen-port", "7443", "-o", "/etc/coracle/admin.yaml")
	testenv.True(t, exitCode(err) != 0 && strings.Contains(out, "7443") && strings.Contains(out, "lacks something"),
		"got %v and:\n%s", err, out)
	h.must("sh", "-c", "kill $(cat "+pidFile+")")
	_ = c.Wait() // it was killed

	// Another kubelet's folder, and a file system of the operator's in the data directory.
	const mine = "/var/lib/coracle/images/stick"
	h.must("sh", "-c", "mkdir -p /var/lib/kubelet "+mine+" && echo theirs > /var/lib/kubelet/config.yaml && mount -t tmpfs mine "+mine+" && touch "+mine+"/archive.tar")
	out, err = h.run("sh", "-c", "coracle-uninstall 2>&1")
	if exitCode(err) != 3 {
		t.Errorf("exit code %d, want 3: %v\n%s", exitCode(err), err, out)
	}
	for _, want := range []string{"coracle is gone\n", "/var/lib/kubelet was kept: it holds files of another kubelet (config.yaml)", mine + " was kept: something is mounted there"} {
		testenv.Contains(t, out, want, "")
	}
	testenv.Equal(t, h.must("sh", "-c", "find /var/lib/coracle -mindepth 1 | sort; cat /var/lib/kubelet/config.yaml"), "/var/lib/coracle/images\n"+mine+"\n"+mine+"/archive.tar\ntheirs", "left:")
	h.must("sh", "-c", "umount "+mine+" && rm -r /var/lib/coracle /var/lib/kubelet")
	h.awaitState(before)
}
