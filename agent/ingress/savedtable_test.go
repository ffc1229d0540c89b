// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var errOffline = errors.New("connection refused")

// inTmpfs returns a folder in memory.
func inTmpfs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "i")
	if err != nil || inMemory(dir) != nil {
		// The table is kept on a tmpfs alone.
		t.Skip("/dev/shm is no tmpfs that a test may write to")
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// clusterNode is a node of a cluster that has a Service for Ingresses, and one that a host leads to.
func clusterNode(t *testing.T) *testNode {
	t.Helper()
	netns.RequireNFT(t)
	awaitPorts(t)
	t.Cleanup(func() { awaitPorts(t) }) // for the next test; it is called when the processes have ended
	n := newTestNode(t)
	n.o.Dir, n.o.NodeName, n.o.NodeIPs = filepath.Join(inTmpfs(t), "run"), "a", []netip.Addr{netip.MustParseAddr(machineIP)}
	at := netip.MustParseAddrPort(backend(t))
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "s", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		Ports:      []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To(int32(at.Port()))}},
		Endpoints:  []discoveryv1.Endpoint{endpoint(at.Addr().String(), true, true)},
	}
	n.objects = []runtime.Object{
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, slice,
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "s"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}},
	}
	t.Cleanup(func() { _ = nft.Delete(NFTable()) })
	return n
}

// awaitPorts waits until the usual ports are free. A process counts as gone when its first thread is; the sockets are
// closed with the last one.
func awaitPorts(t *testing.T) {
	t.Helper()
	for _, port := range []int{table.NodeHTTPPort, table.NodeHTTPSPort} {
		eventually(t, fmt.Sprintf("port %d is free", port), func() bool {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if err == nil {
				_ = l.Close()
			}
			return err == nil
		})
	}
}

func (n *testNode) fails(err error) {
	if err == nil {
		n.streamFails.Store(nil)
		return
	}
	n.streamFails.Store(&err)
}

// goOffline turns all servers off, before a run of the agent.
func (n *testNode) goOffline() {
	n.offline.Store(true)
	n.fails(errOffline)
	n.o.bridgeDelay = 100 * time.Millisecond
}

func (n *testNode) goOnline() {
	n.offline.Store(false)
	n.fails(nil)
}

func (n *testNode) url() string { return fmt.Sprintf("http://%s:%d/", machineIP, table.NodeHTTPPort) }

// kills ends the proxy, and waits until it has closed its sockets.
func (n *testNode) kills() {
	n.t.Helper()
	for _, pid := range n.processes() {
		testenv.NoError(n.t, syscall.Kill(pid, syscall.SIGKILL))
		eventually(n.t, "the proxy has ended", func() bool { return syscall.Kill(pid, 0) != nil })
	}
}

func (n *testNode) kept() bool {
	_, err := os.Stat(lastPath(n.o.Dir))
	return err == nil
}

// answers waits until a host answers by its Service.
func (n *testNode) answers(when string) {
	n.t.Helper()
	client := fresh()
	client.Timeout = 2 * time.Second // what no proxy accepts waits
	testenv.Eventually(n.t, 2*time.Minute, when, func() error { return ask(client, n.url()) })
}

// TestLastTableServesWithoutServers: while all servers are off and the agent has restarted, a proxy that ends is
// replaced by one that serves the same; and when servers are back, theirs is the table.
func TestLastTableServesWithoutServers(t *testing.T) {
	n := clusterNode(t)
	a := startAgent(n)
	n.answers("the host answers")
	eventually(t, "the table is kept", n.kept)
	info := testenv.Must(os.Stat(lastPath(n.o.Dir)))(t)
	testenv.Equal(t, info.Mode().Perm(), os.FileMode(0o600), "the file's mode is")
	testenv.Equal(t, testenv.Must(os.Stat(n.o.Dir))(t).Mode().Perm(), os.FileMode(0o700), "its folder's mode is")
	a.stop()
	testenv.Check(t, ask(fresh(), n.url()), "without an agent")

	n.goOffline()
	a = startAgent(n)
	eventually(t, "the agent knows the proxy of the previous run", func() bool {
		return strings.Contains(a.board.Components()[0].Message, "the proxy of the previous run keeps running")
	})
	for range 2 { // one that an agent adopted, and one that it started
		before := n.processes()
		n.kills()
		n.answers("another proxy answers without a server")
		if now := n.processes(); len(now) != 1 || now[0] == before[0] {
			t.Errorf("after %v the processes are %v", before, now)
		}
	}
	a.stop()
	n.kills()
	a = startAgent(n)
	n.answers("a proxy that ended while the agent was off is replaced")

	n.table = table.Sections{}
	testenv.NoError(t, n.table.Put(table.HostKey(table.SiteIngress, ""), table.Host{Routes: []table.Route{{Path: "/", Kind: table.PathPrefix}}}))
	before := n.processes()
	n.goOnline()
	testenv.Eventually(t, 2*time.Minute, "the servers' table is served", func() error {
		if err := ask(fresh(), n.url()); err == nil || !strings.Contains(err.Error(), "503") {
			return fmt.Errorf("it is the kept one: %w", err)
		}
		return nil
	})
	testenv.EqualSlices(t, n.processes(), before, "when servers are back, the processes are")
}

// TestLastTableServesUntilAServerSendsOne: servers answer, but none sends the table, when the proxy ends.
func TestLastTableServesUntilAServerSendsOne(t *testing.T) {
	n := clusterNode(t)
	a := startAgent(n)
	n.answers("the host answers")
	eventually(t, "the table is kept", n.kept)
	a.stop()
	n.fails(errOffline)
	n.kills()
	startAgent(n)
	n.answers("another proxy answers without the servers' table")
}

// TestUnguardedProxyDoesNotServe: without a server, a proxy whose ports the kernel does not guard serves nothing.
func TestUnguardedProxyDoesNotServe(t *testing.T) {
	n := clusterNode(t)
	a := startAgent(n)
	n.answers("the host answers")
	eventually(t, "the table is kept", n.kept)
	a.stop()
	n.goOffline()
	n.kills()
	testenv.NoError(t, nft.Delete(NFTable()))
	a = startAgent(n)
	eventually(t, "the agent says why it serves nothing", func() bool {
		return strings.Contains(a.board.Components()[0].Message, "the nftables table coracle-ingress is missing")
	})
	client := fresh()
	client.Timeout = 2 * time.Second // what no proxy accepts waits
	testenv.Fails(t, ask(client, n.url()), "an unguarded proxy answers")
}

// TestLastTableGoesWithTheNode: what is kept is removed when the Node is deleted, when a server refuses the node, when
// there is no Ingress any more, and when Ingresses are left to another controller.
func TestLastTableGoesWithTheNode(t *testing.T) {
	unauthorized := apierrors.NewUnauthorized("the node a was revoked")
	for _, c := range []struct {
		name   string
		does   func(n *testNode, a *agentRun)
		serves bool // the proxy goes on
	}{
		{"its Node is deleted", func(n *testNode, a *agentRun) {
			testenv.NoError(n.t, a.client.CoreV1().Nodes().Delete(n.t.Context(), "a", metav1.DeleteOptions{}))
		}, true},
		{"it is revoked", func(n *testNode, a *agentRun) {
			n.fails(unauthorized)
			a.cut()
		}, true},
		{"it is revoked while the agent is off", func(n *testNode, a *agentRun) {
			a.stop()
			n.goOffline()
			n.fails(unauthorized)
			startAgent(n)
		}, true},
		{"there is no Ingress any more", func(n *testNode, a *agentRun) {
			testenv.NoError(n.t, a.client.CoreV1().Services(metav1.NamespaceSystem).Delete(n.t.Context(), table.Service, metav1.DeleteOptions{}))
		}, false},
		{"Ingresses are left to another controller", func(n *testNode, a *agentRun) {
			a.stop()
			testenv.NoError(n.t, Remove(n.o.Dir))
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := clusterNode(t)
			a := startAgent(n)
			n.answers("the host answers")
			eventually(t, "the table is kept", n.kept)
			c.does(n, a)
			eventually(t, "nothing is kept", func() bool { return !n.kept() })
			if c.serves {
				testenv.Check(t, ask(fresh(), n.url()), "the running proxy")
			}
		})
	}
}

func kept(text string) *savedTable {
	return &savedTable{Ports: []int{10054, 10055}, Sections: table.Sections{"host/ingress/a": json.RawMessage(strconv.Quote(text))}}
}

// TestKeptTableIsRefused: a file that is damaged, half written, or of another version or cluster is not used.
func TestKeptTableIsRefused(t *testing.T) {
	dir := inTmpfs(t)
	f := &savedTableFile{dir: dir, cluster: "c", log: slog.New(slog.DiscardHandler)}
	got, err := readLast(dir, "c")
	testenv.True(t, got == nil && err == nil, "without a file there is %v, %v", got, err)
	f.save(kept("x"))
	got = testenv.Must(readLast(dir, "c"))(t)
	testenv.True(t, got.equal(f.written), "it is %+v, written was %+v", got, f.written)
	whole := testenv.Must(os.ReadFile(lastPath(dir)))(t)
	_, text, _ := strings.Cut(string(whole), "\n")
	write := func(text string) {
		testenv.NoError(t, os.WriteFile(lastPath(dir), []byte(text), 0o600))
	}
	for _, c := range []struct{ name, text, cluster, want string }{
		{"empty", "", "c", "damaged"},
		{"half written", string(whole[:len(whole)/2]), "c", "damaged"},
		{"with another byte", strings.Replace(string(whole), "10054", "10056", 1), "c", "damaged"},
		{"of a newer version", string(withChecksum([]byte(strings.Replace(text, `"format":1`, `"format":2`, 1)))), "c", "its format is 2, and this version reads 1"},
		{"of another version altogether", string(withChecksum([]byte("[]"))), "c", "another version of coracle"},
		{"of another cluster", string(whole), "d", "another cluster"},
	} {
		write(c.text)
		if got, err := readLast(dir, c.cluster); got != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("a file %s gives %v, %v; want %q", c.name, got, err, c.want)
		}
	}
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, ".table.tmp123"), nil, 0o600))
	f.forget()
	left := testenv.Must(os.ReadDir(dir))(t)
	testenv.Equal(t, len(left), 0, "files left:")
}

// TestTableIsKeptInMemoryOnly: on a disk nothing is written, which is logged once.
func TestTableIsKeptInMemoryOnly(t *testing.T) {
	var log strings.Builder
	f := &savedTableFile{dir: "/proc", log: slog.New(slog.NewTextHandler(&log, nil))} // of another kind than a tmpfs on every machine
	for i := range 3 {
		f.nextWrite = time.Time{}
		f.save(kept(strconv.Itoa(i)))
	}
	testenv.Equal(t, strings.Count(log.String(), "is on no tmpfs"), 1, "in %s, so often", log.String())
}

// TestTableIsKeptSeldom: on changes only, once in five seconds, and what was put off is written at the end.
func TestTableIsKeptSeldom(t *testing.T) {
	dir := inTmpfs(t)
	synctest.Test(t, func(t *testing.T) {
		f := &savedTableFile{dir: dir, cluster: "c", log: slog.New(slog.DiscardHandler)}
		has := func() string {
			l := testenv.Must(readLast(dir, "c"))(t)
			return string(l.Sections["host/ingress/a"])
		}
		testenv.Equal(t, f.save(kept("1")), 0, "after the first, to be called after")
		testenv.Equal(t, f.save(kept("2")), lastEvery, "after a change, to be called after")
		testenv.Equal(t, has(), `"1"`, "the file has")
		testenv.Equal(t, f.save(kept("1")), 0, "after the change back, to be called after")
		f.save(kept("3"))
		time.Sleep(lastEvery) // fake time
		testenv.Equal(t, f.save(kept("4")), 0, "after the pause, to be called after")
		testenv.Equal(t, has(), `"4"`, "the file has")
		testenv.NoError(t, os.Remove(lastPath(dir)))
		time.Sleep(lastEvery) // fake time
		testenv.Equal(t, f.save(kept("4")), 0, "without a change, to be called after")
		_, err := os.Stat(lastPath(dir))
		testenv.True(t, os.IsNotExist(err), "a table that did not change is written")
		f.save(kept("5"))
		f.save(kept("6"))
		f.flush()
		testenv.Equal(t, has(), `"6"`, "at the end the file has")
	})
}
