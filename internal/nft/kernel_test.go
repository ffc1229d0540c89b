// SPDX-License-Identifier: Apache-2.0

package nft_test

import (
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/hostfirewall"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

// TestKernelWithoutNFTables: a kernel without nftables holds no tables and takes none, whichever part of it is missing.
// Debian's User-Mode Linux has neither netfilter's part of netlink nor nf_tables until they are loaded, and nf_tables
// for no family that matters.
func TestKernelWithoutNFTables(t *testing.T) {
	if !uml.Inside() {
		uml.Run(t, uml.Options{Within: 5 * time.Minute})
		return
	}
	for _, module := range []string{"", "nfnetlink", "nf_tables"} {
		t.Run("with "+module, func(t *testing.T) {
			if module != "" {
				uml.Load(t, module)
			}
			for _, family := range []nft.Table{{Family: nft.INet, Name: "x"}, {Family: nft.IPv4, Name: "x"}, {Family: nft.IPv6, Name: "x"}} {
				if there, err := nft.Exists(family); there || err != nil {
					t.Errorf("a table is there: %v, %v", there, err)
				}
				testenv.Check(t, nft.Delete(family), "deleting what cannot be there")
				if n, err := nft.Count(family); len(n.Rules)+len(n.Elements) > 0 || err != nil {
					t.Errorf("there are %v, %v", n, err)
				}
				testenv.Fails(t, nft.Ensure(family), "a table was made")
			}
			if found, err := hostfirewall.Find(); len(found) > 0 || err != nil {
				t.Errorf("firewalls: %v, %v", found, err)
			}
		})
	}
}
