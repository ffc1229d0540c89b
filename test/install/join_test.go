//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package install

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestJoinAndLeave adds a node and a server with the lines that coracle token print gives to paste, and takes both away
// with coracle-uninstall: the cluster forgets them.
func TestJoinAndLeave(t *testing.T) {
	site := harness.NewSite(t)
	first, node, server := newHostOn(t, site), newHostOn(t, site), newHostOn(t, site)
	first.mustInstall(nil, "--node-name", "first")
	node.joins(first.must("sh", "-c", "coracle token print 2>&1"), "node")
	server.joins(first.must("sh", "-c", "coracle token print --server 2>&1"), "server")
	harness.Eventually(t, 3*time.Minute, "all three nodes are ready", func() error { return first.hasReady("first", "node", "server") })
	harness.Eventually(t, 3*time.Minute, "there are two servers", func() error { return first.hasServers(2) })

	for _, h := range []*host{node, server} {
		out, err := h.run("coracle-uninstall")
		testenv.NoError(t, err, "%s", out)
		t.Log(out)
		if !strings.Contains(out, "of the cluster any more") || !strings.Contains(out, "coracle is gone") {
			t.Errorf("coracle-uninstall did not say that the machine left:\n%s", out)
		}
	}
	harness.Eventually(t, 3*time.Minute, "one node is left", func() error { return first.hasReady("first") })
	harness.Eventually(t, 3*time.Minute, "one server is left", func() error { return first.hasServers(1) })
	first.kubectl("create", "configmap", "after")
	testenv.Contains(t, first.must("coracle-uninstall"), "only server", "the only server left something:")
}

// TestForcedUninstallRemovesEverything: coracle-uninstall on a server that cannot leave its cluster removes nothing and
// says how to go on; with --force it removes everything. On a node that cannot leave it removes everything, and says
// what is left in the cluster and how that is removed.
func TestForcedUninstallRemovesEverything(t *testing.T) {
	site := harness.NewSite(t)
	first, server, node := newHostOn(t, site), newHostOn(t, site), newHostOn(t, site)
	before := server.state()
	first.mustInstall(nil, "--node-name", "first")
	server.joins(first.must("sh", "-c", "coracle token print --server 2>&1"), "server")
	nodeBefore := node.state()
	node.joins(first.must("sh", "-c", "coracle token print 2>&1"), "node")
	harness.Eventually(t, 3*time.Minute, "there are two servers", func() error { return first.hasServers(2) })
	harness.Eventually(t, 3*time.Minute, "all three nodes are ready", func() error { return first.hasReady("first", "node", "server") })

	first.must("coracle-service", "stop") // of the two it alone has a vote
	out, err := node.run("sh", "-c", "coracle-uninstall 2>&1")
	if want := "What is left in the cluster is the node node; on a server: coracle node remove node"; err != nil || !strings.Contains(out, want) || !strings.Contains(out, "coracle is gone") {
		t.Errorf("coracle-uninstall on a node whose cluster does not answer: %v, want %q\n%s", err, want, out)
	}
	node.awaitState(nodeBefore)
	stays := func(when string) {
		t.Helper()
		had := server.must("sh", "-c", everythingOfCoracle)
		out, err := server.run("sh", "-c", "coracle-uninstall 2>&1")
		if exitCode(err) != 1 {
			t.Errorf("%s: exit code %d, want 1: %v\n%s", when, exitCode(err), err, out)
		}
		for _, want := range []string{"this machine is still one of the cluster's servers", "Nothing was removed", "coracle-uninstall --force"} {
			testenv.Contains(t, out, want, "%s: no %q in:", when, want)
		}
		testenv.Equal(t, server.must("sh", "-c", everythingOfCoracle), had, "%s: something was removed; there is", when)
	}
	pid := server.pid()
	stays("no other server answers")
	if now := server.pid(); pid == "" || now != pid {
		t.Errorf("coracle's process was %q and is %q", pid, now)
	}
	server.must("coracle-service", "stop")
	stays("it does not run")
	testenv.Contains(t, server.must("coracle-uninstall", "--force"), "coracle is gone", "coracle-uninstall --force said:")
	server.awaitState(before)
	first.must("coracle-uninstall", "--force") // it is stopped, and knows of another server
}

// everythingOfCoracle lists what an uninstallation removes, apart from what a server that runs writes by itself.
const everythingOfCoracle = `ls -d /usr/local/bin/coracle* /usr/local/bin/kubectl /etc/coracle /etc/coracle/* /var/lib/coracle/server/tls /var/lib/coracle/server/store /var/lib/coracle/server/token /var/lib/coracle/agent`

// joins runs the line to paste that coracle token print gave, as it stands but for sudo.
func (h *host) joins(printed, name string) {
	h.t.Helper()
	lines := strings.Split(strings.TrimSpace(printed), "\n")
	line, found := strings.CutPrefix(strings.TrimSpace(lines[len(lines)-1]), "sudo ")
	testenv.Require(h.t, found && strings.HasSuffix(line, "./install.sh"), "no line to paste:\n%s", printed)
	out, err := h.run("sh", "-c", fmt.Sprintf("cd %s && INSTALL_CORACLE_SERVICE=none INSTALL_CORACLE_SYMLINK=force CORACLE_NODE_NAME=%s %s", h.release, name, line))
	testenv.NoError(h.t, err, "%s\n%s", out, h.log())
	h.t.Log(out)
}

// hasServers says whether the cluster has so many servers. The command's exit code says whether one of them may fail.
func (h *host) hasServers(want int) error {
	out, err := h.run("coracle", "member", "list")
	if strings.Count(out, ":6443 ") != want {
		return fmt.Errorf("want %d servers: %v\n%s", want, err, out)
	}
	return nil
}

// hasReady says whether the cluster has these nodes, all of them ready, and no others.
func (h *host) hasReady(names ...string) error {
	out, err := h.run("kubectl", "get", "nodes", "--no-headers", "-o", `custom-columns=N:.metadata.name,R:.status.conditions[?(@.type=="Ready")].status`)
	if err != nil {
		return err
	}
	var want []string
	for _, n := range names {
		want = append(want, n+" True")
	}
	if got := strings.Join(strings.Fields(out), " "); got != strings.Join(want, " ") {
		return fmt.Errorf("nodes are %q, want %q", got, want)
	}
	return nil
}
