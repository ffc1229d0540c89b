//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

func TestMain(m *testing.M) { harness.Main(m) }

const (
	// patience is how long something may take that takes a minute or two.
	patience = 15 * time.Minute
	// shellPort is where a machine has a shell for the test.
	shellPort = "10"
	// nfsVar names the folder that packaging/guest-nfs.sh made.
	nfsVar = "CORACLE_GUEST_NFS"
)

// lab is a cluster whose nodes are such machines. Its server has no node, and is on an ordinary machine of their site:
// on a slow one it takes minutes to begin.
type lab struct {
	t      *testing.T // of the step that runs
	shared string
	nfs    string
	server *harness.Server
	kube   *harness.Kube
	nodes  []*node
}

// node is a machine of the cluster.
type node struct {
	*harness.Guest
	lab *lab
}

func newLab(t *testing.T) *lab {
	t.Helper()
	modules := uml.ModuleFiles(t, "bridge", "vxlan", "overlay")
	nfs := os.Getenv(nfsVar)
	if nfs != "" {
		modules = uml.ModuleFiles(t, "bridge", "vxlan", "overlay", "nfsv4", "nfsd")
	}
	dir := harness.GuestFolder(t)
	harness.WriteBoxImage(t, filepath.Join(dir, "box.tar"))
	for name, text := range map[string]string{"machine.sh": MachineScript, "modules": strings.Join(modules, "\n") + "\n"} {
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	server := harness.NewMachine(t).NewServer("--disable-agent", "--disable", "helm-controller,metrics-server,servicelb")
	server.StartAPI()
	kube := server.In(t)
	kube.NS = "default"
	return &lab{t: t, shared: dir, nfs: nfs, server: server, kube: kube}
}

// add switches on a machine whose agent joins the cluster. args are the agent's.
func (l *lab) add(args ...string) *node {
	l.t.Helper()
	n := &node{lab: l}
	n.Guest = l.server.Site.NewGuest(l.shared, harness.GuestOptions{
		Number: len(l.nodes) + 1, Init: filepath.Join(l.shared, "machine.sh"), Disk: 4 << 30, Memory: 1200,
		Env: []string{"CORACLE=" + l.server.Coracle(), "SHARED=" + l.shared, "NFS=" + l.nfs},
	})
	l.nodes = append(l.nodes, n)
	n.settings(args...)
	n.Boot()
	t := l.server.T
	t.Cleanup(func() {
		if t.Failed() {
			text := n.log()
			t.Logf("%s: its console:\n%s\nits coracle:\n%s", n.Name, n.Console(), text[max(0, len(text)-6000):])
		}
	})
	return n
}

// settings are what coracle on the machine is started with from now on.
func (n *node) settings(args ...string) {
	n.lab.t.Helper()
	token := testenv.Must(os.ReadFile(n.lab.server.Seen("server", "agent-token")))(n.lab.t)
	text := fmt.Sprintf("agent --server https://%s:6443 --token %s --data-dir /run/disk/data --node-name %s --node-ip %s %s\n",
		n.lab.server.IP, strings.TrimSpace(string(token)), n.Name, n.IP, strings.Join(args, " "))
	testenv.NoError(n.lab.t, os.WriteFile(filepath.Join(n.lab.shared, "args-"+n.Name), []byte(text), 0o600))
}

// log is what coracle on the machine has written so far.
func (n *node) log() string {
	text, err := os.ReadFile(filepath.Join(n.lab.shared, "log-"+n.Name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// try runs a shell script on the machine and returns what it printed, without the last newline.
func (n *node) try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c, err := n.lab.server.Dial(ctx, "tcp", n.IP+":"+shellPort)
	if err != nil {
		return "", err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	const end = "ended with "
	if _, err := fmt.Fprintf(c, "exec 2>&1\n(\n%s\n) < /dev/null\necho '%s'$?\nexit\n", script, end); err != nil {
		return "", err
	}
	output, err := io.ReadAll(c)
	if err != nil {
		return "", err
	}
	text, code, ok := strings.Cut(string(output), end)
	text = strings.TrimRight(text, "\n")
	switch {
	case !ok:
		return text, errors.New("the shell ended early")
	case strings.TrimSpace(code) != "0":
		return text, fmt.Errorf("ended with %s: %s", strings.TrimSpace(code), text)
	}
	return text, nil
}

// sh runs a shell script on the machine, which has to end well.
func (n *node) sh(script string) string {
	n.lab.t.Helper()
	out, err := n.try(script)
	testenv.NoError(n.lab.t, err, "%s: %s", n.Name, script)
	return out
}

// await waits until f returns no error, as long as all machines run.
func (l *lab) await(t *testing.T, what string, f func() error) {
	t.Helper()
	began := time.Now()
	harness.Eventually(t, patience, what, func() error {
		for _, n := range l.nodes {
			n.Running()
		}
		return f()
	})
	t.Logf("%s: after %v", what, time.Since(began).Round(time.Second))
}

// restart ends coracle on the machine and waits for the next one, which is to say that it serves Services by that back
// end and why.
func (n *node) restart(t *testing.T, backend string) {
	t.Helper()
	old := n.sh("cat /run/coracle.pid")
	n.sh("kill " + old)
	n.lab.await(t, n.Name+": coracle was started again", func() error {
		now, err := n.try("cat /run/coracle.pid")
		if err == nil && now == old {
			err = errors.New("it is the same process")
		}
		return err
	})
	n.serves(t, backend)
}

// serves waits until coracle status says by which back end the machine serves Services, and why.
func (n *node) serves(t *testing.T, backend string) {
	t.Helper()
	var line string
	n.lab.await(t, fmt.Sprintf("%s serves Services: %s", n.Name, backend), func() error {
		out, err := n.try(fmt.Sprintf("%s status --data-dir /run/disk/data", n.lab.server.Coracle()))
		for l := range strings.Lines(out) {
			if strings.Contains(l, "service proxy") {
				line = strings.TrimSpace(l)
			}
		}
		if !strings.Contains(line, backend) {
			return fmt.Errorf("%v, and coracle status says %q in:\n%s", err, line, out)
		}
		return nil
	})
	t.Logf("%s: coracle status says: %s", n.Name, line)
}

// ready waits until the machine's node is ready, and pods may run there.
func (n *node) ready(t *testing.T) {
	t.Helper()
	n.lab.prints(t, "True ", "get", "node", n.Name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status} {.spec.taints[*].key}`)
}

// prints waits until kubectl prints exactly that.
func (l *lab) prints(t *testing.T, want string, args ...string) {
	t.Helper()
	l.await(t, fmt.Sprintf("kubectl %s prints %q", strings.Join(args, " "), want), func() error {
		return harness.Exactly(want)(l.kube.Try(args...))
	})
}

// exec runs a program in a pod, again until it ends well.
func (l *lab) exec(t *testing.T, pod string, command ...string) (out string) {
	t.Helper()
	harness.Eventually(t, patience, fmt.Sprintf("%s in %s", strings.Join(command, " "), pod), func() (err error) {
		out, err = l.kube.Try(append([]string{"exec", pod, "--"}, command...)...)
		return err
	})
	return out
}

// needNFS ends the test where the machines have no programs for NFS.
func (l *lab) needNFS(t *testing.T) {
	t.Helper()
	if l.nfs == "" {
		testenv.Missing(t, testenv.GuestNFS, "%s names none (make guest-nodes)", nfsVar)
	}
}
