// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/agent"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNoStartWithoutIPVS: a node whose flag asks for IPVS does not start on a kernel without, and the error says what
// is missing and what to do.
func TestNoStartWithoutIPVS(t *testing.T) {
	lacking := func(string, string, []netip.Prefix) error {
		return errors.New("the kernel lacks the module dummy (no)")
	}
	for _, c := range []struct {
		mode    string
		noProxy bool
		refused bool
	}{{"ipvs", false, true}, {"ipvs", true, false}, {"auto", false, false}, {"nftables", false, false}} {
		err := checkProxyMode(config.Node{ProxyMode: c.mode}, clusterconfig.Settings{NoServiceProxy: c.noProxy}, lacking)
		testenv.False(t, (err != nil) != c.refused, "%+v: %v", c, err)
		for _, part := range []string{
			"--proxy-mode=ipvs: the kernel lacks the module dummy", "modprobe -a ip_vs ip_vs_rr dummy", "--proxy-mode=auto",
		} {
			testenv.False(t, err != nil && !strings.Contains(err.Error(), part), "%q does not say %q", err, part)
		}
	}
	found := func(string, string, []netip.Prefix) error { return nil }
	testenv.Check(t, checkProxyMode(config.Node{ProxyMode: "ipvs"}, clusterconfig.Settings{}, found))
}

// TestKernelIsAskedForIPVS: what the start and coracle check find of this machine's kernel is the same, and names the
// module.
func TestKernelIsAskedForIPVS(t *testing.T) {
	pods := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
	err := agent.MissingForIPVS("ipvs", "", pods)
	refused := checkProxyMode(config.Node{ProxyMode: "ipvs"}, clusterconfig.Settings{PodCIDRs: pods}, agent.MissingForIPVS)
	found := checkHost().IPVS("auto", "rr", pods)
	testenv.False(t, err == nil && (refused != nil || found != nil),
		"this kernel has IPVS, and the start says %v, the check %v", refused, found)
	if err != nil && (refused == nil || found == nil || !strings.Contains(refused.Error(), found.Error())) {
		t.Errorf("this kernel says %v, the start %v, the check %v", err, refused, found)
	}
}
