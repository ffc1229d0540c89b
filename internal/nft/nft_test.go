// SPDX-License-Identifier: Apache-2.0

package nft_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

func TestMain(m *testing.M) { os.Exit(uml.Main(m, netns.Main)) }

func TestTableIsEnsuredAndDeletedByFamily(t *testing.T) {
	netns.Require(t)
	table := nft.Table{Family: nft.INet, Name: "x"}
	for _, want := range []bool{false, true, true} {
		if got, err := nft.Exists(table); got != want || err != nil {
			t.Errorf("exists: %v, %v; want %v", got, err, want)
		}
		testenv.NoError(t, nft.Ensure(table))
	}
	if got, err := nft.Exists(nft.Table{Family: nft.IPv4, Name: "x"}); got || err != nil {
		t.Errorf("exists in another family: %v, %v", got, err)
	}
	testenv.Check(t, nft.Delete(nft.Table{Family: nft.IPv4, Name: "x"}), "deleting what is not there")
	if got, err := nft.Exists(table); !got || err != nil {
		t.Errorf("the table of another family was deleted too: %v, %v", got, err)
	}
	testenv.NoError(t, nft.Delete(table))
	if got, err := nft.Exists(table); got || err != nil {
		t.Errorf("exists after deleting: %v, %v", got, err)
	}
}

// TestProtocolsWithoutTheHostsFile: the embedded nft knows names of protocols by itself. Minimal systems have no
// /etc/protocols; nft then refuses some names, and lists numbers, which who compares a list with the rules takes for
// something else.
func TestProtocolsWithoutTheHostsFile(t *testing.T) {
	netns.RequireNFT(t)
	const script = `if [ -e /etc/protocols ]; then mount --bind /dev/null /etc/protocols; fi
nft 'add table inet x; add chain inet x c; add map inet x m { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 192.0.2.1 . sctp . 80 : drop, 192.0.2.2 . tcp . 80 : drop }; };
add rule inet x c meta l4proto != { ipv6-icmp, tcp } drop; add rule inet x c meta l4proto udp drop'
nft list ruleset`
	out, err := exec.Command("unshare", "--mount", "sh", "-ec", script).CombinedOutput()
	testenv.NoError(t, err, "%s", out)
	for _, want := range []string{"192.0.2.1 . sctp . 80", "192.0.2.2 . tcp . 80", "{ tcp, ipv6-icmp }", "l4proto udp"} {
		testenv.True(t, strings.Contains(string(out), want), "no %q in:\n%s", want, out)
	}
}
