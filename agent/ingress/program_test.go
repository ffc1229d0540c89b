// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// In namespaces of their own, so that no other test has the ports, and the kernel's table guards nothing else.
func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

// machineIP is the node's address in tests that need one that is not loopback's.
const machineIP = "192.0.2.1"

// build makes the real program once for all tests.
var build = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "ingress")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "program")
	out, err := exec.Command("go", "build", "-tags", "no_btrfs,no_zfs,no_devmapper,grpcnotrace", "-o", path, "../../cmd/coracle-ingress").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("building the proxy: %w: %s", err, out)
	}
	return os.ReadFile(path)
})

// testNode is a folder with a program and a control group that does not limit anything.
type testNode struct {
	t     *testing.T
	o     Options
	table table.Sections
	http3 bool // the Service has its port
	// objects are those of the API. offline says that no server answers, streamFails that none sends the table.
	objects     []runtime.Object
	offline     atomic.Bool
	streamFails atomic.Pointer[error]
	seen        map[int]uint64 // when each process started that was seen to run the program
}

func newTestNode(t *testing.T) *testNode {
	t.Helper()
	dir, err := os.MkdirTemp("", "i") // a socket's path has to be short; t.TempDir's is closed to the proxy's user
	testenv.NoError(t, err)
	testenv.NoError(t, os.Chmod(dir, 0o755))
	n := &testNode{t: t, seen: map[int]uint64{}, o: Options{
		Program: filepath.Join(dir, "coracle-ingress"), Dir: filepath.Join(dir, "run"), NodeIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), cgroups: filepath.Join(dir, "no-cgroups"),
	}}
	t.Cleanup(func() {
		for _, pid := range n.processes() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		eventually(t, "no proxy is left", func() bool { return len(n.processes()) == 0 })
		if t.Failed() {
			for _, name := range []string{"log.old", "log"} {
				text, _ := os.ReadFile(filepath.Join(n.o.Dir, name))
				t.Logf("%s: %s", name, text)
			}
		}
		_ = os.RemoveAll(dir)
	})
	n.install("v0")
	n.table = n.to(backend(t))
	return n
}

// install makes the program one with another content.
func (n *testNode) install(version string) {
	n.t.Helper()
	program := testenv.Must(build())(n.t)
	n.installFile(version, append(program[:len(program):len(program)], version...))
}

func (n *testNode) installFile(version string, content []byte) {
	n.t.Helper()
	path := n.o.Program + "-" + version
	syscall.ForkLock.RLock() // a child that another test starts meanwhile would have the file open for writing: "text file busy"
	err := os.WriteFile(path, content, 0o755)
	syscall.ForkLock.RUnlock()
	testenv.NoError(n.t, err)
	testenv.NoError(n.t, os.Symlink(path, path+".new"))
	testenv.NoError(n.t, os.Rename(path+".new", n.o.Program))
}

// to is a table that sends everything to one address.
func (n *testNode) to(address string) table.Sections {
	s := table.Sections{}
	b := table.Backend{Namespace: "n", Service: "s", Port: "80"}
	h := table.Host{Routes: []table.Route{{Path: "/", Kind: table.PathPrefix, Backends: []table.Backend{b}}}}
	for key, value := range map[string]any{table.HostKey(table.SiteIngress, ""): h, b.Key(): table.Endpoints{Addresses: []string{address}}} {
		testenv.NoError(n.t, s.Put(key, value))
	}
	return s
}

// backend answers requests with "hello" and echoes on websockets, at an address that is not loopback's, which the proxy
// refuses.
func backend(t *testing.T) string {
	t.Helper()
	if os.Geteuid() == 0 { // the namespace of these tests has no other
		if err := netns.AddAddress("lo", machineIP+"/32"); err != nil && !errors.Is(err, syscall.EEXIST) {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", machineIP+":0")
	if err != nil {
		t.Skip("this machine has no address but loopback, and is not ours to give one")
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			_, _ = io.WriteString(w, "hello")
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, rw.Reader)
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

// processes are those that run a program of this node's.
func (n *testNode) processes() []int {
	var out []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink("/proc/" + e.Name() + "/exe")
		started, gone := startTime(pid)
		if gone != nil {
			continue
		}
		// One that ends has no program any more before its sockets are closed.
		if err == nil && strings.HasPrefix(exe, n.o.Program) || n.seen[pid] == started {
			n.seen[pid] = started
			out = append(out, pid)
		}
	}
	return out
}

// listening are the processes that hold a listening socket for TCP, thus accept from it once they have a table.
func (n *testNode) listening() []int {
	var out []int
	for _, pid := range n.processes() {
		inodes := map[string]bool{}
		for _, file := range []string{"tcp", "tcp6"} {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, file))
			for line := range strings.Lines(string(text)) {
				if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" {
					inodes["socket:["+f[9]+"]"] = true
				}
			}
		}
		fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		for _, fd := range fds {
			link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
			if inodes[link] {
				out = append(out, pid)
				break
			}
		}
	}
	return out
}

func eventually(t *testing.T, what string, met func() bool) {
	t.Helper()
	testenv.Until(t, 2*time.Minute, what, met)
}

// keeper is that of a run of the agent.
func (n *testNode) keeper() *supervisor {
	n.t.Helper()
	k := testenv.Must(newSupervisor(n.o, (&Node{o: n.o}).groups()))(n.t)
	n.t.Cleanup(k.release)
	k.setHTTP3(n.http3)
	return k
}

// run is what an agent does at its start: it goes on with a proxy or starts one, gives it the table, and has another
// version take over.
func (n *testNode) run() *supervisor {
	n.t.Helper()
	k := n.keeper()
	testenv.NoError(n.t, k.startProxy())
	n.serve(k)
	return k
}

func (n *testNode) serve(k *supervisor) {
	n.t.Helper()
	if _, err := k.sendTable(n.t.Context(), n.table); err != nil { // it was ending when it was found, as one without a table does
		n.t.Log(k.giveUp(err))
		testenv.NoError(n.t, k.start(true))
		testenv.Must(k.sendTable(n.t.Context(), n.table))(n.t)
	}
	if !k.outdated() {
		return
	}
	testenv.Must(k.takeOver(n.t.Context(), n.table))(n.t)
}

func (k *supervisor) url() string {
	return fmt.Sprintf("http://127.0.0.1:%d/", k.sockets.ports()[table.HTTP])
}

// ask asks once, on a connection of its own, and never a second time.
func ask(client *http.Client, url string) error {
	res, err := client.Post(url, "text/plain", strings.NewReader("a body, so that nothing is sent again"))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != http.StatusOK || string(text) != "hello") {
		err = fmt.Errorf("%s: %q", res.Status, text)
	}
	return err
}

func fresh() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Minute}
}

// websocket is a connection on which the backend echoes.
func websocket(t *testing.T, url string) func() error {
	t.Helper()
	conn := testenv.Must(net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")))(t)
	t.Cleanup(func() { _ = conn.Close() })
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(conn)
	if res, err := http.ReadResponse(r, nil); err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(res, err)
	}
	return func() error {
		if _, err := io.WriteString(conn, "echo"); err != nil {
			return err
		}
		_, err := io.ReadFull(r, make([]byte, 4))
		return err
	}
}
