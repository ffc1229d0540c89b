// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/proxy"
	proxyipvs "github.com/coracle-k8s/coracle/proxy/ipvs"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

// longOnes are connections through a Service that stay open, by who has opened them and to which address.
type longOnes map[string]net.Conn

// openLong opens connections from a machine outside, the node and a pod, to the cluster address and to the node port.
func (b *testbed) openLong(t *testing.T) longOnes {
	t.Helper()
	all := longOnes{}
	for who, from := range map[string]netns.Doer{"outside": b.outside, "the node": here{}, "a pod": b.pods[two]} {
		for _, at := range []string{clusterIP + ":80", nodeAddr + ":30080"} {
			name := who + " to " + at
			eventually(t, name, func() error {
				return from.Do(func() error {
					c, err := net.DialTimeout("tcp", at, time.Minute)
					if err != nil {
						return err
					}
					if _, err := echoName(c); err != nil {
						c.Close()
						return err
					}
					all[name] = c
					return nil
				})
			})
			c := all[name]
			t.Cleanup(func() { c.Close() })
		}
	}
	return all
}

// goOn fails unless all of them are answered, or with want false none is.
func (all longOnes) goOn(t *testing.T, when string, want bool) {
	t.Helper()
	for name, c := range all {
		patience := time.Minute
		if !want {
			patience = 10 * time.Second // what an address in the client's place receives is dropped, not refused
		}
		who, err := netns.Say(c, patience)
		t.Logf("%s: %s: %q, %v", when, name, who, err)
		if (err == nil) != want {
			t.Errorf("%s, a connection from %s goes on: %v, want %v (%v)", when, name, err == nil, want, err)
		}
	}
}

// becomes ends the proxy and starts one in another mode, and waits until nothing of the first one is left.
func (b *testbed) becomes(t *testing.T, mode, asked, other string) {
	t.Helper()
	b.stop()
	b.mode, b.options = mode, func(o *proxy.Options) { o.Mode = asked }
	b.start(t)
	if got, why := b.proxy.Backend(); got != mode {
		t.Fatalf("%s: the back end is %s: %s", asked, got, why)
	}
	eventually(t, "the other mode's tables are removed", func() error {
		if tables := netns.NFT(t, "list", "tables"); strings.Contains(tables, other) {
			return fmt.Errorf("there are:\n%s", tables)
		}
		return nil
	})
}

// TestServiceModeChanges runs in a guest's kernel: from nftables to IPVS, as an upgrade has it that brings IPVS, and
// back. What conntrack translates goes on, and what IPVS has ends with it, if an address of the node's stands in for
// the client's.
func TestServiceModeChanges(t *testing.T) {
	t.Run("ipvs", func(t *testing.T) { // by that name it is among those of make guest-test
		if !uml.Inside() {
			uml.Run(t, uml.WithNFTables(t, 40*time.Minute))
			return
		}
		testModeChange(t)
	})
}

func testModeChange(t *testing.T) {
	b := newTestbed(t, proxy.ModeNFTables)
	serveLong(t, b.pods[one], one)
	b.port = 9090
	b.service(t, nil)
	b.endpoints(t, one)
	first := b.openLong(t)
	b.becomes(t, proxy.ModeIPVS, proxy.ModeAuto, "kube-proxy")
	first.goOn(t, "with IPVS instead of nftables", true)
	second := b.openLong(t)
	b.becomes(t, proxy.ModeNFTables, proxy.ModeNFTables, "coracle-ipvs")
	first.goOn(t, "with nftables again", true)
	// A pod's connection to the cluster address has no source of the node's: conntrack picks it up, and nftables leads
	// it to the only endpoint.
	delete(second, "a pod to "+clusterIP+":80")
	second.goOn(t, "with nftables instead of IPVS", false)
	b.openLong(t)

	// The kernel loses IPVS while a node uses it, and cannot load it again.
	b.becomes(t, proxy.ModeIPVS, proxy.ModeAuto, "kube-proxy")
	unloadIPVS(t)
	b.becomes(t, proxy.ModeNFTables, proxy.ModeAuto, "coracle-ipvs")
	if _, why := b.proxy.Backend(); !strings.Contains(why, "the module ip_vs") {
		t.Errorf("the reason for nftables is %q", why)
	}
	testenv.Fails(t, testenv.Err(netlink.LinkByName(nft.IPVSDevice)), "the device of IPVS' addresses is still there")
	b.openLong(t)
}

// unloadIPVS removes all virtual servers and the module, as another program may, and keeps it from being loaded again.
func unloadIPVS(t *testing.T) {
	t.Helper()
	h := testenv.Must(ipvs.New(""))(t)
	defer h.Close()
	testenv.NoError(t, h.Flush())
	testenv.NoError(t, os.WriteFile("/proc/sys/kernel/modprobe", []byte("/nonexistent\n"), 0))
	programs := t.TempDir() // nft alone: no modprobe
	found, err := exec.LookPath("nft")
	if err == nil {
		err = os.Symlink(found, filepath.Join(programs, "nft"))
	}
	testenv.NoError(t, err)
	t.Setenv("PATH", programs)
	for _, s := range proxyipvs.Schedulers {
		if err := unix.DeleteModule("ip_vs_"+s, unix.O_NONBLOCK); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
	}
	// Network namespaces of trials release the module a moment after they have ended.
	eventually(t, "the module ip_vs is unloaded", func() error { return unix.DeleteModule("ip_vs", unix.O_NONBLOCK) })
}
