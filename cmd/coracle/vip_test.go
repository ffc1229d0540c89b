// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/server"
	"github.com/coracle-k8s/coracle/server/virtualip"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestVIPIsChecked: a flag that is not what the cluster has counts for nothing, and is reported with both; what the
// cluster has is not looked for on the network, where a server answers for it; and what no network of this machine
// holds is refused when the cluster begins with it.
func TestVIPIsChecked(t *testing.T) {
	one, two := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2") // a network for documentation: no machine has it
	o := server.Options{}
	o.ServerDir = t.TempDir()
	testenv.Check(t, checkVIPs(t.Context(), o))
	o.VIPs = []netip.Addr{one}
	testenv.WantError(t, checkVIPs(t.Context(), o), "in no network", "Nothing was changed")
	o.Join = []string{"192.0.2.1:6443"}
	testenv.Check(t, checkVIPs(t.Context(), o), "with other servers it is checked when the cluster was asked")
	o.Join = nil
	for kept, warned := range map[string]bool{one.String(): false, two.String(): true, "": true} {
		addresses, err := virtualip.Parse(kept, nil)
		if err == nil {
			err = clusterconfig.WriteVIPs(o.ServerDir, addresses)
		}
		testenv.NoError(t, err)
		var output bytes.Buffer
		o.Logger = slog.New(slog.NewTextHandler(&output, nil))
		testenv.Check(t, checkVIPs(t.Context(), o), "the cluster has %q", kept)
		if got := strings.Contains(output.String(), one.String()) && strings.Contains(output.String(), kept); got != warned {
			t.Errorf("the cluster has %q: it is said %q", kept, output.String())
		}
	}
}
