//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/embedded"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// supervisor starts the starter again and again, as the service of install.sh does on a machine without systemd and
// OpenRC.
const supervisor = `#!/bin/sh
set -u
pid=/run/coracle-service.pid
case $1 in
  stop) p=$(cat $pid 2>/dev/null) || exit 0; kill -TERM "$p" 2>/dev/null; while [ -d "/proc/$p" ]; do sleep 0.1; done ;;
  start) setsid "$0" supervise >>/var/log/coracle.log 2>&1 </dev/null & ;;
  restart) "$0" stop; "$0" start ;;
  supervise)
    echo $$ >$pid
    child= stopping=
    trap 'stopping=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM
    . /etc/coracle-env
    while [ -z "$stopping" ]; do
      /usr/local/bin/coracle-start $CORACLE_TEST_ARGS &
      child=$!
      while kill -0 "$child" 2>/dev/null; do wait "$child"; done
      [ -n "$stopping" ] || sleep 1
    done
    rm -f $pid ;;
esac
`

// installed is a machine on which coracle is installed in slots.
type installed struct {
	*harness.Machine
	t        *testing.T
	versions *slots.Versions // as this process sees them
	program  string          // the current one
}

// newInstalled installs coracle on a machine, and starts it with arguments.
func newInstalled(t *testing.T, m *harness.Machine, args string, env ...string) *installed {
	t.Helper()
	m.Env = append(m.Env, "PATH=/usr/local/bin:/usr/bin:/bin")
	h := &installed{Machine: m, t: t, versions: slots.Below(filepath.Join(m.Dir, "places/var/lib/coracle"))}
	digest := testenv.Must(slots.Digest(m.Coracle()))(t)
	unlock := testenv.Must(h.versions.Lock())(t)
	testenv.NoError(t, h.versions.Stage(m.Coracle(), digest))
	testenv.NoError(t, os.Symlink(digest, filepath.Join(h.versions.Dir, "current")))
	unlock()
	h.program = "/var/lib/coracle/versions/" + digest + "/coracle"
	h.place("/usr/local/bin/"+slots.StarterName, slots.Starter+"# of an earlier version\n", 0o755)
	h.place("/usr/local/bin/coracle-service", supervisor, 0o755)
	h.place("/var/lib/coracle/versions/"+slots.RestartFile, "coracle-service restart\n", 0o600)
	variables := "export " + slots.FolderEnv + "=/var/lib/coracle/versions CORACLE_TRIAL_SOAK=3s CORACLE_TEST_ARGS='" + args + "'"
	h.place("/etc/coracle-env", variables+" "+strings.Join(env, " ")+"\n", 0o644)
	h.must("ln", "-s", "/var/lib/coracle/versions/current/coracle", "/usr/local/bin/coracle")
	h.must("mkdir", "-p", "/var/lib/coracle/images", "/etc/coracle")
	harness.WriteBoxImage(t, filepath.Join(m.Dir, "places/var/lib/coracle/images/box.tar"))
	h.must("coracle-service", "start")
	t.Cleanup(func() {
		h.must("coracle-service", "stop")
		if t.Failed() {
			out, _ := h.Run("tail", "-n", "60", "/var/log/coracle.log") // the log of a failed test
			t.Log(out)
		}
	})
	return h
}

// cutFromTrial drops what the machine sends to an address, from the moment on at which a version is on trial.
func (h *installed) cutFromTrial(address string) (heal func()) {
	h.t.Helper()
	tools := testenv.Must(embedded.Unpack(filepath.Join(h.Dir, "tools")))(h.t)
	h.t.Cleanup(func() { testenv.Check(h.t, tools.Close()) })
	nft := tools.File("nft")
	h.place("/etc/coracle/cut", "table ip cut { chain out { type filter hook output priority -300; ip daddr "+address+" drop; }; }\n", 0o644)
	h.place("/usr/local/bin/cutter", "#!/bin/sh\nuntil [ -L /var/lib/coracle/versions/trial ]; do sleep 0.1; done\nexec "+nft+
		" -f /etc/coracle/cut\n", 0o755)
	h.must("sh", "-c", "setsid cutter >/dev/null 2>&1 </dev/null &")
	return func() { h.must(nft, "delete", "table", "ip", "cut") }
}

// place writes a file on the machine.
func (h *installed) place(path, text string, mode os.FileMode) {
	h.t.Helper()
	path = filepath.Join(h.Dir, "places", path)
	testenv.NoError(h.t, os.MkdirAll(filepath.Dir(path), 0o755))
	testenv.NoError(h.t, os.WriteFile(path, []byte(text), mode))
}

func (h *installed) must(name string, args ...string) string {
	h.t.Helper()
	out, err := h.Run(name, args...)
	testenv.NoError(h.t, err, "%s", out)
	return strings.TrimSpace(out)
}

// candidate is a program with another digest: the same one with something behind its end, which no program reads.
func (h *installed) candidate(name string) string {
	h.t.Helper()
	path := filepath.Join(h.Dir, name)
	testenv.NoError(h.t, exec.Command("cp", h.Coracle(), path).Run())
	f := testenv.Must(os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0))(h.t)
	testenv.Must(f.WriteString(name))(h.t)
	testenv.NoError(h.t, f.Close())
	return path
}

// script is a candidate that knows all settings, and does something else than a server.
func (h *installed) script(name, does string) string {
	h.t.Helper()
	path := filepath.Join(h.Dir, name)
	text := fmt.Sprintf("#!/bin/sh\n[ \"$1\" != upgrade ] || exec %s \"$@\"\n%s\n", h.program, does)
	testenv.NoError(h.t, os.WriteFile(path, []byte(text), 0o755))
	return path
}

// pods says of each pod of the workload who it is, and how often it was restarted.
func (h *installed) pods() string {
	h.t.Helper()
	return h.must("coracle", "kubectl", "get", "pods", "-l", "app=web", "--sort-by=.metadata.name", "-o",
		`jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount}{"\n"}{end}`)
}

func (h *installed) state() slots.State {
	h.t.Helper()
	return testenv.Must(h.versions.State())(h.t)
}

// serves waits until the API of a version answers.
func (h *installed) serves(digest string) {
	h.t.Helper()
	harness.Eventually(h.t, time.Minute, "the version serves", func() error {
		out, err := h.Run("sh", "-c", "readlink /proc/$(cat /run/coracle/coracle.pid)/exe && coracle kubectl get --raw /readyz")
		if err == nil && !strings.Contains(out, digest) {
			err = errors.New(out)
		}
		return err
	})
}

// TestTrialsOfServer takes one machine through trials: versions that work are committed and undone, and each that does
// not is refused with its reason. The pods of the machine run on.
func TestTrialsOfServer(t *testing.T) {
	harness.ByHand(t)
	h := newInstalled(t, harness.NewMachine(t), "server --node-name board --node-ip 10.77.0.2", slots.TrialEnv+"=60")
	harness.Eventually(t, 3*time.Minute, "the node is Ready", func() error {
		_, err := h.Run("coracle", "kubectl", "wait", "--for=condition=Ready", "node/board", "--timeout=1s")
		return err
	})
	web := harness.Workload("Deployment", "web", "replicas: 2", `
  containers: [{name: web, image: `+harness.BoxImage+`, imagePullPolicy: Never, command: [sleep, "86400"]}]`)
	h.place("/root/web.yaml", web, 0o644)
	h.must("coracle", "kubectl", "apply", "-f", "/root/web.yaml")
	h.must("coracle", "kubectl", "rollout", "status", "deployment/web", "--timeout=120s")
	pods, first := h.pods(), h.state().Current

	refused := func(name, file string, within time.Duration, want ...string) {
		t.Run(name, func(t *testing.T) {
			h.t = t
			current, began := h.state().Current, time.Now()
			out, err := h.Run("sh", "-c", "exec coracle upgrade --here "+file+" 2>&1")
			t.Logf("%s\n%s", time.Since(began), out)
			var exit *exec.ExitError
			testenv.True(t, errors.As(err, &exit) && exit.ExitCode() == 3, "the command ended with %v", err)
			for _, w := range append(want, "The version before runs again") {
				testenv.Contains(t, out, w, "the command does not say")
			}
			s := h.state()
			testenv.True(t, s.Current == current && s.Trial == "" && s.Refused != nil, "%+v", s)
			h.serves(current)
			testenv.Equal(t, h.pods(), pods, "pods:")
			harness.Eventually(t, time.Minute, "an Event", func() error {
				out, err := h.Run("coracle", "kubectl", "get", "events", "--field-selector", "reason=UpgradeRefused", "-o",
					"jsonpath={.items[*].message}")
				if err == nil && !strings.Contains(out, want[0]) {
					err = errors.New(out)
				}
				return err
			})
			testenv.True(t, time.Since(began) < within, "that took %s", time.Since(began))
			again, err := h.Run("sh", "-c", "exec coracle upgrade --here "+file+" 2>&1")
			testenv.True(t, err != nil && strings.Contains(again, "was tried and refused") && strings.Contains(again, "--retry"), "%v %s", err,
				again)
		})
	}
	refused("exits", h.script("exits", "echo 'no-such-key: 1' >/etc/coracle/config.yaml; exit 1"), 2*time.Minute, "3 starts without a commit")
	t.Run("settings of a version that is refused", func(t *testing.T) {
		h.t = t
		status := func() string { return h.must("coracle", "upgrade", "status") }
		testenv.Contains(t, status(), `- /etc/coracle/config.yaml:1: unknown key "no-such-key"`, "status")
		h.must("rm", "/etc/coracle/config.yaml")
		h.must("coracle-service", "restart")
		h.serves(first)
		harness.Eventually(t, time.Minute, "the refusal is settled", func() error {
			if out := status(); strings.Contains(out, "no-such-key") || testenv.Err(os.Stat(h.versions.Slot(h.state().Refused.Digest, ""))) == nil {
				return errors.New(out)
			}
			return nil
		})
	})
	refused("hangs", h.script("hangs", "exec sleep 86400"), 3*time.Minute, "no commit within 60 s")

	h.place("/etc/coracle/upgrade-check", "#!/bin/sh\n[ ! -L /var/lib/coracle/versions/trial ] || { echo the shop is closed; exit 4; }\n",
		0o755)
	refused("fails the own check", h.candidate("own"), 3*time.Minute, "no commit within 60 s",
		"/etc/coracle/upgrade-check: exit status 4: the shop is closed")
	h.must("rm", "/etc/coracle/upgrade-check")

	dns := h.must("coracle", "kubectl", "get", "service", "-n", "kube-system", "kube-dns", "-o", "jsonpath={.spec.clusterIP}")
	heal := h.cutFromTrial(dns)
	refused("breaks DNS", h.candidate("dns"), 3*time.Minute, "no commit within 60 s", "cluster DNS: "+dns)
	heal()

	t.Run("is ended by hand", func(t *testing.T) {
		h.t = t
		h.must("sh", "-c", "setsid coracle upgrade --here "+h.script("ended", "exec sleep 86400")+" >/dev/null 2>&1 </dev/null &")
		testenv.Until(t, time.Minute, "the start", func() bool { return h.state().Tries == 1 })
		testenv.Contains(t, h.must("coracle", "upgrade", "status"), "has only been started", "status")
		out, err := h.Run("sh", "-c", "exec coracle upgrade undo 2>&1")
		testenv.NoError(t, err, "%s", out)
		s := h.state()
		testenv.True(t, s.Current == first && s.Trial == "" && s.Refused.Reason == "ended by coracle upgrade undo", "%+v %+v", s, s.Refused)
		h.serves(first)
	})
	t.Run("commits", func(t *testing.T) {
		h.t = t
		out := h.must("coracle", "upgrade", "--here", h.candidate("next"))
		t.Log(out)
		testenv.Contains(t, out, "is committed", "the command does not say")
		testenv.Contains(t, out, "before-upgrade-", "no snapshot")
		s := h.state()
		testenv.True(t, s.Current != first && s.Previous == first && s.Trial == "" && s.Refused == nil, "%+v", s)
		h.serves(s.Current)
		testenv.Equal(t, h.pods(), pods, "pods:")
		harness.Eventually(t, time.Minute, "an Event", func() error {
			out, err := h.Run("coracle", "kubectl", "get", "events", "--field-selector", "reason=UpgradeCommitted", "-o", "name")
			if err == nil && out == "" {
				err = errors.New("none")
			}
			return err
		})
		testenv.True(t, h.must("cat", "/usr/local/bin/"+slots.StarterName) == strings.TrimSpace(slots.Starter), "the starter was not replaced")
		out = h.must("coracle", "upgrade", "--here", filepath.Join(h.Dir, "next"))
		testenv.Contains(t, out, "there is nothing to do", "")
	})
	t.Run("undo is refused for a setting", func(t *testing.T) {
		h.t = t
		before := h.state()
		h.place("/etc/coracle/config.yaml", "no-such-key: 1\n", 0o644)
		out, err := h.Run("sh", "-c", "exec coracle upgrade undo 2>&1")
		h.must("rm", "/etc/coracle/config.yaml")
		t.Log(out)
		testenv.True(t, err != nil && strings.Contains(out, "no-such-key"), "%v %s", err, out)
		testenv.Equal(t, h.state(), before, "state:")
	})
	t.Run("undo", func(t *testing.T) {
		h.t = t
		before := h.state()
		t.Log(h.must("coracle", "upgrade", "undo"))
		s := h.state()
		testenv.True(t, s.Current == first && s.Previous == before.Current && s.Trial == "", "%+v", s)
		h.serves(first)
		testenv.Equal(t, h.pods(), pods, "pods:")
		var shown struct{ Current, Previous string }
		testenv.NoError(t, json.Unmarshal([]byte(h.must("coracle", "upgrade", "status", "-o", "json")), &shown))
		testenv.True(t, shown.Current == first && shown.Previous == before.Current, "%+v", shown)
	})
}

// TestTrialsOfAgent: an agent is judged with the rights of its node, through a server.
func TestTrialsOfAgent(t *testing.T) {
	harness.ByHand(t)
	site := harness.NewSite(t)
	server := site.NewMachine().NewServer()
	server.StartNode()
	token := strings.TrimSpace(string(testenv.Must(os.ReadFile(server.Seen("server", "agent-token")))(t)))
	m := site.NewMachine()
	h := newInstalled(t, m, "agent --node-name board --node-ip "+m.IP+" --server https://"+server.IP+":6443 --token "+token,
		slots.TrialEnv+"=45")
	k := server.In(t)
	k.Becomes(3*time.Minute, "True", "get", "node", "board", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	events := func(reason, want string) {
		t.Helper()
		harness.Eventually(t, time.Minute, "an Event", func() error {
			out, err := k.Try("get", "events", "--field-selector", "reason="+reason, "-o", "jsonpath={.items[*].message}")
			if err == nil && !strings.Contains(out, want) {
				err = errors.New(out)
			}
			return err
		})
	}
	first := h.state().Current

	heal := h.cutFromTrial("10.43.0.1")
	out, err := h.Run("sh", "-c", "exec coracle upgrade --here "+h.candidate("services")+" 2>&1")
	heal()
	t.Log(out)
	testenv.True(t, err != nil && strings.Contains(out, "Services: the kubernetes Service does not answer at 10.43.0.1"), "%v %s", err, out)
	testenv.Equal(t, h.state().Current, first, "current:")
	events("UpgradeRefused", "the kubernetes Service does not answer")

	out = h.must("coracle", "upgrade", "--here", h.candidate("next"))
	t.Log(out)
	testenv.True(t, !strings.Contains(out, "snapshot") && !strings.Contains(out, "does not hold before"), "%s", out)
	testenv.True(t, h.state().Current != first && h.state().Previous == first, "%+v", h.state())
	events("UpgradeCommitted", "is committed")
}
