// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/coracle-k8s/coracle/proxy"
	"github.com/coracle-k8s/coracle/test/kubeproxy"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// kubeProxy is a mode of the table of cases: upstream's program, in nftables mode, instead of a Proxy.
const kubeProxy = "kube-proxy"

// difference is what is otherwise in a mode: where a case finds it, and why it is.
type difference struct{ mode, in, what, why string }

// differences are all that the table of cases finds between the nftables back end and the two others. A case asks for
// each with differs, and asserts what is so there instead: what is not listed fails as any assertion does, and so does
// what has vanished.
var differences = []difference{
	{kubeProxy, "external IPs and load balancer addresses", "a node's address is served as an external IP",
		"a user who may write Services could take the node's ports: docs/adr/0086"},
	{kubeProxy, "another program flushes the rules", "rules that another program has flushed come back with the next change only",
		"restarts of host firewalls: the kernel says when our tables are deleted"},
	{kubeProxy, "ports that a status gives at an address", "ports that the status does not give are served",
		"a user who may write Services could take any port of the nodes' until the leader has looked"},
	{kubeProxy, "a server that is away", "a server's address is served as an external IP", "a user who may write Services could keep a server off: docs/adr/0086"},
	{proxy.ModeIPVS, "where a policy meets a packet", "a policy meets a packet in the output hook",
		"IPVS sends from there; netpolicy has its rules in both: docs/adr/0021"},
	{proxy.ModeIPVS, "both policies Local", "with both policies Local pods are bound by the external one, too",
		"there is no address of the whole cluster to send them to"},
	{proxy.ModeIPVS, "affinity ends", "affinity outlasts its time, as long as the kernel remembers the client's last connection",
		"IPVS keeps a client's place while it has connections of that client, which TCP's are for two minutes after their end"},
	{proxy.ModeIPVS, "a load balancer's address that is another node's", "a load balancer's address that is another node's leads to that node",
		"on the device of Services it would make that node unreachable from here"},
	{proxy.ModeIPVS, "a Service goes while a connection is open", "a Service that goes ends its connections",
		"IPVS knows them by the virtual server, which goes with the Service"},
}

// differs says that in this bed's mode it is so. What it asks for has to be listed, for the case that asks.
func (b *testbed) differs(t *testing.T, what string) bool {
	t.Helper()
	i := slices.IndexFunc(differences, func(d difference) bool { return d.what == what && d.of(t) })
	testenv.Require(t, i >= 0, "no difference is listed as %q", what)
	b.asked = append(b.asked, what)
	return slices.ContainsFunc(differences, func(d difference) bool { return d.what == what && d.mode == b.mode && d.of(t) })
}

// sayDifferences ends a case: it says what was found to be otherwise, and fails where something is listed that no case
// asked for.
func (b *testbed) sayDifferences(t *testing.T) {
	for _, d := range differences {
		switch {
		case d.mode != b.mode || !d.of(t) || t.Failed():
		case !slices.Contains(b.asked, d.what):
			t.Errorf("it is listed, and was not tried: %s", d.what)
		default:
			t.Logf("with %s %s (%s)", d.mode, d.what, d.why)
		}
	}
}

func (d difference) of(t *testing.T) bool {
	return strings.HasSuffix(t.Name(), "/"+strings.ReplaceAll(d.in, " ", "_"))
}

// TestDifferencesBelongToCases: each difference belongs to a case that exists, as it would never be checked otherwise.
func TestDifferencesBelongToCases(t *testing.T) {
	for _, d := range differences {
		if !slices.ContainsFunc(cases, func(c serviceCase) bool { return c.name == d.in }) {
			t.Errorf("%q is of the case %q, which there is not", d.what, d.in)
		}
	}
}

func requireKubeProxy(t *testing.T) {
	t.Helper()
	netns.RequireNFT(t)
	if os.Getenv(kubeproxy.ProgramVar) == "" {
		testenv.Missing(t, testenv.KubeProxy, "%s names none (make proxy-test)", kubeproxy.ProgramVar)
	}
}

// startKubeProxy runs the program until b.stop. The death signal follows the thread that started it, so that one waits
// for it.
func (b *testbed) startKubeProxy(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	conf := testenv.Must(kubeproxy.Configuration{API: b.url, NodeName: "n1", ClusterCIDR: b.clusterCIDR()}.Write(dir))(t)
	log := testenv.Must(os.Create(filepath.Join(dir, "log")))(t)
	cmd := exec.Command(os.Getenv(kubeproxy.ProgramVar), "--config", conf)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error, 1), make(chan error, 1) // one result each
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	testenv.NoError(t, <-started)
	b.stop = func() {
		select {
		case err := <-ended:
			t.Errorf("kube-proxy ended by itself: %v", err)
		default:
			_ = cmd.Process.Signal(syscall.SIGTERM)
			t.Logf("kube-proxy was terminated: %v", <-ended)
		}
		_ = log.Close()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("the end of kube-proxy's log:\n%s", text[max(0, len(text)-3000):])
		}
		b.stop = func() {}
	}
}
