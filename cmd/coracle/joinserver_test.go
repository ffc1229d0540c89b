// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/server"
	"github.com/coracle-k8s/coracle/server/admission"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestJoiningServerMustAgreeWithTheCluster: what a server was given has to be what its cluster has; what it was not
// given does not matter.
func TestJoiningServerMustAgreeWithTheCluster(t *testing.T) {
	network := func(text string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(text)} }
	c := func(pods string, given ...string) *config.Server {
		return &config.Server{
			Cluster:        clusterconfig.Settings{PodCIDRs: network(pods), ServiceCIDRs: network("10.43.0.0/16"), DNS: netip.MustParseAddr("10.43.0.10"), Domain: "cluster.local"},
			ServerSettings: clusterconfig.ServerSettings{NodePortRange: "30000-32767", EncryptResources: []string{"secrets"}}, Given: given,
		}
	}
	joined := &admission.Joined{Settings: c("10.42.0.0/16").Cluster, ServerSettings: c("10.42.0.0/16").ServerSettings}
	for _, own := range []*config.Server{c("10.42.0.0/16", "cluster-cidr", "disable"), c("10.99.0.0/16"), c("10.99.0.0/16", "cluster-dns")} {
		testenv.Check(t, conflictingSettings(own, joined))
	}
	err := conflictingSettings(c("10.99.0.0/16", "cluster-cidr"), joined)
	testenv.WantError(t, err, `"10.99.0.0/16"`, `"10.42.0.0/16"`)
	own := c("10.42.0.0/16", "default-toleration-seconds")
	if own.Cluster.TolerationSeconds = 60; conflictingSettings(own, joined) != nil { // the default, however it is said
		t.Error(conflictingSettings(own, joined))
	}
	own.Cluster.NetworkBackend = clusterconfig.NetworkHostGateway
	testenv.Check(t, conflictingSettings(own, joined))
	own.Given = append(own.Given, "network-backend")
	testenv.WantError(t, conflictingSettings(own, joined), `--network-backend: this server was given "host-gw", but its cluster has "vxlan"`)
	own.Cluster.NetworkBackend = clusterconfig.NetworkVXLAN // the default, however it is said
	if own.Cluster.TolerationSeconds = 10; conflictingSettings(own, joined) == nil {
		t.Error("another toleration is taken")
	}
	own = c("10.42.0.0/16", "secrets-encryption", "disable")
	own.EncryptResources, own.Cluster.Disabled = nil, clusterconfig.Disabled{clusterconfig.PartDNS}
	testenv.WantError(t, conflictingSettings(own, joined), "--secrets-encryption", "--disable")
	own = c("10.42.0.0/16", "load-balancer-pool")
	own.Cluster.Balancer.Pool = []string{"192.0.2.1-192.0.2.9"}
	testenv.WantError(t, conflictingSettings(own, joined), `--load-balancer-pool: this server was given "192.0.2.1-192.0.2.9", but its cluster has ""`)
	own.Given, own.Cluster.Disabled = []string{"disable"}, []string{clusterconfig.PartServiceLB}
	testenv.WantError(t, conflictingSettings(own, joined), `--disable: this server was given "servicelb", but its cluster has ""`)
	for _, part := range []string{clusterconfig.PartMetrics, clusterconfig.PartHelm, clusterconfig.PartManifests, clusterconfig.PartIngress, clusterconfig.PartGateway, clusterconfig.PartConsole, clusterconfig.PartRuntimes} {
		own.Cluster.Disabled = []string{part}
		want := fmt.Sprintf(`--disable: this server was given %q, but its cluster has ""`, part)
		testenv.WantError(t, conflictingSettings(own, joined), want)
	}
	own = c("10.42.0.0/16", "load-balancer-reserved-ports")
	if own.LBReserved = []string{"22", "80/TCP"}; conflictingSettings(own, joined) != nil { // it may change
		t.Error(conflictingSettings(own, joined))
	}
}

// TestClustersBackendOverridesRecordedOne: what the cluster has changed to counts, over what a server was given when it
// joined and where it is alone.
func TestClustersBackendOverridesRecordedOne(t *testing.T) {
	c := &config.Server{
		Cluster: clusterconfig.Settings{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}, Domain: "cluster.local", NetworkBackend: clusterconfig.NetworkVXLAN},
	}
	c.Paths.AgentDir = t.TempDir()
	serverDir := t.TempDir()
	c.ServerDir = serverDir
	write := func(dir, name, text string) {
		t.Helper()
		testenv.NoError(t, errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)))
	}
	for _, joined := range []bool{false, true} {
		for _, known := range []string{"", clusterconfig.NetworkHostGateway} {
			write(filepath.Join(c.Paths.AgentDir, "cni"), "network.json", `{"podCIDRs": ["10.42.0.0/24"], "backend": "`+known+`"}`)
			if joined {
				data := testenv.Must(json.Marshal(&admission.Joined{Settings: c.Cluster, ServerSettings: clusterconfig.ServerSettings{NodePortRange: "30000-32767"}}))(t)
				write(serverDir, "joined.json", string(data))
			}
			has := cmp.Or(known, clusterconfig.NetworkVXLAN)
			for _, flag := range clusterconfig.NetworkBackends {
				own := *c
				own.Cluster.NetworkBackend, own.Given = flag, []string{"network-backend"}
				want := "" // the flag of a server that is alone says what its cluster begins with
				switch {
				case flag == has || !joined && (known == "" || flag == clusterconfig.NetworkNone):
				case flag == clusterconfig.NetworkNone:
					want = `has "` + has + `"; remove the flag` // and no command changes it
				default:
					want = `has "` + has + `"; remove the flag. To change the cluster's back end while it runs: coracle network-backend set ` + flag
				}
				_, err := joinedOptions(t.Context(), server.Options{Server: own})
				if (want == "") != (err == nil) || err != nil && !strings.HasSuffix(err.Error(), want) {
					t.Errorf("joined %v, the cluster has %q, --network-backend=%s: %v, want %q", joined, known, flag, err, want)
				}
			}
			testenv.Equal(t, testenv.Must(joinedOptions(t.Context(), server.Options{Server: *c}))(t).Cluster.NetworkBackend, has, "joined %v, known %q:", joined, known)
		}
	}
}

// TestJoinedServerTakesClustersOptions: a server whose flags say nothing of load balancers, metrics, charts and
// manifests takes what its cluster has.
func TestJoinedServerTakesClustersOptions(t *testing.T) {
	c := &config.Server{
		Cluster: clusterconfig.Settings{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}, Domain: "cluster.local"},
	}
	joined := &admission.Joined{Settings: c.Cluster, ServerSettings: clusterconfig.ServerSettings{NodePortRange: "30000-32767"}}
	dir := t.TempDir()
	options := func() server.Options {
		data, err := json.Marshal(joined)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "joined.json"), data, 0o600)
		}
		testenv.NoError(t, err)
		return testenv.Must(joinedOptions(t.Context(), server.Options{Server: *c}))(t)
	}
	joined.Settings.Balancer = clusterconfig.Balancer{Disabled: true, Pool: []string{"192.0.2.1-192.0.2.9", "fd00::1"}}
	c.ServerDir, c.LBReserved, c.LBPool = dir, []string{"22"}, []loadbalancer.Range{{First: netip.MustParseAddr("192.0.2.99"), Last: netip.MustParseAddr("192.0.2.99")}}
	joined.Settings.Disabled = clusterconfig.Disabled{clusterconfig.PartManifests, clusterconfig.PartMetrics, clusterconfig.PartHelm}
	if o := options(); strings.Join(o.Cluster.Disabled, ",") != "coredns,manifests,servicelb,metrics-server,helm-controller" || strings.Join(clusterconfig.Strings(o.LBPool), ",") != "192.0.2.1-192.0.2.9,fd00::1" {
		t.Errorf("disabled %v, the pool %v", o.Cluster.Disabled, o.LBPool)
	}
	joined.Settings.Balancer.ReservedPorts = []string{"none"}
	if o := options(); strings.Join(o.LBReserved, ",") != "none" {
		t.Errorf("the ports are %v", o.LBReserved)
	}
	c.Given = []string{"load-balancer-reserved-ports"}
	if o := options(); strings.Join(o.LBReserved, ",") != "22" {
		t.Errorf("those that it was given became %v", o.LBReserved)
	}
}

// TestJoinedServerFollowsClustersConsoleSetting: a server does not serve a console that its cluster does not have, and
// keeps no history of metrics that it does not have.
func TestJoinedServerFollowsClustersConsoleSetting(t *testing.T) {
	c := &config.Server{
		Cluster: clusterconfig.Settings{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}, Domain: "cluster.local"},
	}
	joined := &admission.Joined{Settings: c.Cluster, ServerSettings: clusterconfig.ServerSettings{NodePortRange: "30000-32767"}}
	joined.Settings.Disabled = clusterconfig.Disabled{clusterconfig.PartMetrics, clusterconfig.PartConsole}
	dir := t.TempDir()
	data, err := json.Marshal(joined)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "joined.json"), data, 0o600)
	}
	testenv.NoError(t, err)
	c.ServerDir = dir
	if o, err := joinedOptions(t.Context(), server.Options{Server: *c}); err != nil || !o.Cluster.Disabled.Has(clusterconfig.PartConsole) {
		t.Errorf("the cluster's console is disabled: %v, %v", o.Cluster.Disabled, err)
	}
	c.ConsoleListen = ":8443"
	testenv.WantError(t, testenv.Err(joinedOptions(t.Context(), server.Options{Server: *c})), "--disable console")
	c.ConsoleListen, c.MetricsHistory = "", true
	testenv.WantError(t, testenv.Err(joinedOptions(t.Context(), server.Options{Server: *c})), "--disable metrics-server")
}
