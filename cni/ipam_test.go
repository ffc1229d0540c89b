// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNoLockIsInherited: a program that is started while addresses are in use gets no descriptor of their folder. A
// shim that kept a lock of a killed process would keep the node from ever giving an address again.
func TestNoLockIsInherited(t *testing.T) {
	dir := t.TempDir()
	a := testenv.Must(openIPAM(dir))(t)
	network := netip.MustParsePrefix("10.42.7.0/24")
	testenv.Must(a.allocate(key{"pod", "eth0"}, []netip.Prefix{network}))(t)
	out := testenv.Must(exec.Command("ls", "-l", "/proc/self/fd/").Output())(t)
	testenv.False(t, strings.Contains(string(out), dir), "a program that is started has\n%s", out)
}

// TestAddressesOfTheNode: neither the node's own address nor that of its ingress proxy is given to a pod.
func TestAddressesOfTheNode(t *testing.T) {
	for _, text := range []string{"10.42.7.0/29", "fd00:42::8/125"} {
		t.Run(text, func(t *testing.T) {
			a := testenv.Must(openIPAM(t.TempDir()))(t)
			network := netip.MustParsePrefix(text)
			for i := range 6 {
				got, err := a.allocate(key{fmt.Sprint("pod", i), "eth0"}, []netip.Prefix{network})
				if i == 5 {
					testenv.ErrorIs(t, err, errExhausted, "a sixth pod has the address %v, error", got)
					continue
				}
				testenv.NoError(t, err)
				if got[0] == clusterconfig.NodeSource(network) || got[0] == clusterconfig.IngressSource(network) || got[0] == network.Addr() {
					t.Errorf("a pod has the node's address %v", got[0])
				}
			}
		})
	}
}
