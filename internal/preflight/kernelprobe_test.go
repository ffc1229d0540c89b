// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"net"
	"os"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestListenersOfAPortAreFound(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:192B 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000 100 0 0 10 0
`
	if got := listeningSockets(table, 6443); len(got) != 1 || got[0] != "4711" {
		t.Errorf("got %v", got)
	}
}

func TestPortInUseNamesTheProcess(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.NoError(t, err)
	defer l.Close()
	addr := l.Addr().(*net.TCPAddr)
	err = kernelProbe{}.Listen(Port{Network: "tcp", Address: addr.AddrPort().Addr(), Number: addr.Port})
	testenv.WantError(t, err, "used by ")
}

// TestKernelProbeLeavesNothingBehind tries what needs the kernel, and that a trial leaves nothing behind.
func TestKernelProbeLeavesNothingBehind(t *testing.T) {
	testenv.RequireRoot(t, "it makes namespaces")
	dir := t.TempDir()
	before := testenv.Must(net.Interfaces())(t)
	p := kernelProbe{}
	testenv.Fails(t, p.Link("nonsense"), "an unknown kind of interface could be made")
	for _, err := range []error{p.Link("bridge"), p.Link("veth"), p.NAT()} {
		if err != nil {
			t.Log("this kernel lacks something:", err)
		}
	}
	if err := p.Overlay(dir); err != nil {
		t.Log("no overlayfs here:", err)
	}
	if d, err := p.SyncTime(dir); err != nil || d <= 0 {
		t.Errorf("sync time %v, %v", d, err)
	}
	if s, err := p.Space(dir + "/not/there/yet"); err != nil || s.Total == 0 {
		t.Errorf("space %+v, %v", s, err)
	}
	after := testenv.Must(net.Interfaces())(t)
	for _, i := range after {
		if i.Name == "coracle-check" || i.Name == "coracle-peer" {
			t.Errorf("interface %s is left in this namespace (there were %d, there are %d)", i.Name, len(before), len(after))
		}
	}
	entries, err := os.ReadDir(dir)
	testenv.False(t, err != nil || len(entries) > 0, "left behind: %v %v", entries, err)
}
