// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

type host struct {
	name  string
	addrs []string
}

func (h host) Hostname() (string, error) { return h.name, nil }

func (h host) Addresses(except []netip.Prefix) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, a := range h.addrs {
		if ip := netip.MustParseAddr(a); !config.Within(ip, except) {
			out = append(out, ip)
		}
	}
	return out, nil
}

func (h host) Owns(ip netip.Addr) (bool, error) { return slices.Contains(h.addrs, ip.String()), nil }

// load parses flags over files, given by name and content, and environment.
func load(t *testing.T, files map[string]string, environ []string, h config.Host, args ...string) (*config.Server, error) {
	t.Helper()
	dir := t.TempDir()
	files["config.yaml"] += ""
	for name, text := range files {
		path := filepath.Join(dir, name)
		testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		testenv.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	fs := pflag.NewFlagSet("server", pflag.ContinueOnError)
	flags := config.Register(fs, config.ServerCommand)
	testenv.NoError(t, fs.Parse(append([]string{"--config", filepath.Join(dir, "config.yaml")}, args...)))
	return config.LoadServer(config.Sources{Flags: flags, Environ: environ, Host: h})
}

// refused fails the test unless each of these values of a flag is refused, with an error that names the flag.
func refused(t *testing.T, flag string, values ...string) {
	t.Helper()
	for _, value := range values {
		if _, err := load(t, map[string]string{}, nil, board, flag+"="+value); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s=%s: %v", flag, value, err)
		}
	}
}

var board = host{"Board1", []string{"10.42.0.1", "192.0.2.7", "fd00::7"}}

func TestServerHasDefaultsWithoutFlags(t *testing.T) {
	s := testenv.Must(load(t, map[string]string{}, nil, board))(t)
	testenv.True(t, len(s.Node.IPs) == 1 && s.Node.IPs[0].String() == "192.0.2.7", "node addresses %v", s.Node.IPs)
	checks := map[string]struct{ got, want any }{
		"name":       {s.Node.Name, "board1"},
		"advertise":  {s.AdvertiseAddress.String(), "192.0.2.7"},
		"kubelet":    {s.Paths.KubeletRoot, "/var/lib/kubelet"},
		"dns":        {s.Cluster.DNS.String(), "10.43.0.10"},
		"pods":       {s.Cluster.PodCIDRs[0].String(), "10.42.0.0/16"},
		"mode":       {s.Kubeconfig, config.Kubeconfig{"/etc/coracle/coracle.yaml", 0o600, -1}},
		"encrypted":  {s.EncryptResources, []string{"secrets"}},
		"run":        {s.Paths.RunDir, "/run/coracle"},
		"node ports": {s.NodePortRange, "30000-32767"},
		"back end":   {s.Cluster.NetworkBackend, "vxlan"},
	}
	for name, c := range checks {
		testenv.True(t, reflect.DeepEqual(c.got, c.want), "%s: got %v, want %v", name, c.got, c.want)
	}
}

func TestDualStackCIDRsSelectNodeAddresses(t *testing.T) {
	s := testenv.Must(
		load(t, map[string]string{}, nil, board, "--cluster-cidr=10.42.0.0/16,fd42::/56", "--service-cidr=10.43.0.0/16,fd43::/112"))(t)
	testenv.False(t, len(s.Node.IPs) != 2 || s.Node.IPs[1].String() != "fd00::7", "node addresses %v, want one of each family", s.Node.IPs)
	s = testenv.Must(load(t, map[string]string{}, nil, board, "--cluster-cidr=fd42::/56", "--service-cidr=fd43::/112"))(t)
	if len(s.Node.IPs) != 1 || s.Node.IPs[0].String() != "fd00::7" || s.Cluster.DNS.String() != "fd43::a" {
		t.Errorf("node addresses %v, DNS %v", s.Node.IPs, s.Cluster.DNS)
	}
}

func TestDropInsAndLists(t *testing.T) {
	files := map[string]string{
		"config.yaml":              "kubelet-arg:\n  - v=2\ntls-san: a.example.com, b.example.com\ndisable: [dns]\nnode-taint:\n",
		"config.yaml.d/20-b.yaml":  "kubelet-arg+: max-pods=20\ntls-san: [c.example.com]\n",
		"config.yaml.d/10-a.yaml":  "# nothing but a comment\n",
		"config.yaml.d/readme.txt": "not: read\n",
	}
	s := testenv.Must(load(t, files, []string{"CORACLE_KUBE_CONTROLLER_MANAGER_ARG=v=1,a=b\\,c", "CORACLE_KUBE_PROXY_ARG=nodeport-addresses=192.0.2.0/24\\,fd00::/64"}, board))(t)
	checks := map[string]struct{ got, want []string }{
		"appended":   {s.Node.KubeletArgs, []string{"v=2", "max-pods=20"}},
		"replaced":   {s.TLSSANs, []string{"c.example.com"}},
		"other name": {s.Cluster.Disabled, clusterconfig.Disabled{"coredns"}},
		"comma":      {s.ControllerManagerArgs, []string{"v=1", "a=b,c"}},
		"node ports": {s.Node.NodePortAddresses, []string{"192.0.2.0/24", "fd00::/64"}},
	}
	for name, c := range checks {
		testenv.True(t, reflect.DeepEqual(c.got, c.want), "%s: got %q, want %q", name, c.got, c.want)
	}
}

func TestArgsKeepTheirCommas(t *testing.T) {
	s := testenv.Must(
		load(t, map[string]string{}, nil, board, "--kubelet-arg=--feature-gates=A=true,B=false", "--kubelet-arg", "protect-kernel-defaults"))(t)
	if want := []string{"feature-gates=A=true,B=false", "protect-kernel-defaults=true"}; !reflect.DeepEqual(s.Node.KubeletArgs, want) {
		t.Errorf("got %q, want %q", s.Node.KubeletArgs, want)
	}
}

func TestTokenIsReadFromFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	testenv.NoError(t, os.WriteFile(file, []byte("secret\n"), 0o600))
	testenv.Equal(t, testenv.Must(load(t, map[string]string{}, nil, board, "--token-file", file))(t).Token, "secret", "token:")
	testenv.Fails(t, testenv.Err(load(t, map[string]string{}, nil, board, "--token-file", file, "--token", "other")), "two tokens are accepted")
}

func TestMachineWithoutAddressIsRefused(t *testing.T) {
	_, err := load(t, map[string]string{}, nil, host{"a", []string{"10.42.0.1"}})
	var p config.Problems
	testenv.True(t, errors.As(err, &p) && len(p) == 1 && strings.Contains(p[0], "--node-ip: this machine has no address but loopback"),
		"got %v", err)
}

func TestUnknownProfileIsRefused(t *testing.T) {
	for profile, want := range map[string]string{"": "", "cis": "", "cis-1.10": `--profile: "cis-1.10" is none of cis`, "CIS": "--profile"} {
		s, err := load(t, map[string]string{}, nil, board, "--profile="+profile)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) || err == nil && s.Profile != profile {
			t.Errorf("%q: %v", profile, err)
		}
	}
}

func TestAddressesAreThisMachines(t *testing.T) {
	_, err := load(t, map[string]string{}, nil, board, "--node-ip=192.0.2.99", "--bind-address=192.0.2.98")
	var p config.Problems
	if !errors.As(err, &p) || len(p) != 2 || !strings.Contains(p[0], "--node-ip: 192.0.2.99 is not an address of this machine") || !strings.Contains(p[1], "--bind-address: 192.0.2.98") {
		t.Errorf("got %v", err)
	}
	s, err := load(t, map[string]string{}, nil, board, "--node-ip=fd00::7,192.0.2.7", "--bind-address=0.0.0.0", "--cluster-cidr=10.42.0.0/16,fd42::/56", "--service-cidr=10.43.0.0/16,fd43::/112")
	testenv.False(t, err != nil || len(s.Node.IPs) != 2, "got %v", err)
	if ok, err := (config.LocalHost{}).Owns(netip.MustParseAddr("127.0.0.1")); !ok || err != nil {
		t.Errorf("this machine has no loopback address: %v", err)
	}
}

// TestACMEOptionsAreCheckedAtStart: certificates are ordered when there is an e-mail address, and mistakes are found at
// the start.
func TestACMEOptionsAreCheckedAtStart(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.pem")
	testenv.NoError(t, os.WriteFile(none, []byte("none"), 0o600))
	for given, want := range map[string]string{
		"": "", "--ingress-acme-email=a@example.org": "", "--ingress-acme-email=a@example.org --ingress-acme-server=https://ca.example/dir": "",
		"--ingress-acme-email=example.org":                                   "is not an e-mail address",
		"--ingress-acme-email=A<a@example.org>":                              "is not an e-mail address",
		"--ingress-acme-server=https://ca.example/dir":                       "needs --ingress-acme-email",
		"--ingress-acme-email=a@b.example --ingress-acme-server=http://ca":   "is not a URL such as",
		"--ingress-acme-email=a@b.example --ingress-acme-ca-file=" + none:    "holds no certificate in PEM",
		"--ingress-acme-email=a@b.example --ingress-acme-ca-file=/no/such/x": "cannot be read",
	} {
		s, err := load(t, map[string]string{}, nil, board, strings.Fields(given)...)
		switch {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want %q", given, err, want)
		case err == nil && (s.ACME.Directory == "" || (s.ACME.Email == "") != (given == "")):
			t.Errorf("%q: %+v", given, s.ACME)
		}
	}
}

func TestK3sSettingsAreExplained(t *testing.T) {
	page, err := os.ReadFile("../../docs/coming-from-k3s.md")
	testenv.NoError(t, err)
	listed := 0
	for _, row := range regexp.MustCompile(`(?m)^\| (`+"`--[^|]*"+`)\|`).FindAllStringSubmatch(string(page), -1) {
		for _, flag := range regexp.MustCompile("--([a-z0-9-]+)").FindAllStringSubmatch(row[1], -1) {
			listed++
			if strings.HasPrefix(flag[1], "cluster-reset") {
				continue // a flag of the command alone: it has no place in a file
			}
			if config.Lookup(flag[1]) == nil && config.K3sHint(flag[1]) == "" {
				t.Errorf("k3s' --%s is on the page, but is no setting and has no hint", flag[1])
			}
		}
	}
	testenv.True(t, listed >= 80, "the page lists %d flags of k3s, too few: did its tables change?", listed)
	for name := range config.K3sOnly {
		testenv.True(t, config.Lookup(name) == nil, "--%s is in the table by now", name)
	}
	_, err = load(t, map[string]string{"config.yaml": "flannel-backend: vxlan\n"}, nil, board)
	testenv.WantError(t, err, `config.yaml:1: unknown key "flannel-backend"; coracle does not have this setting of k3s: it is called --network-backend here`)
	// Newer ones, which a user who comes from there may have.
	for _, name := range []string{"node-internal-dns", "node-external-dns", "tls-san-security", "egress-selector-mode", "write-kubeconfig-name", "etcd-snapshot-reconcile-interval",
		"helm-controller-arg", "airgap-extra-registry", "kine-tls", "supervisor-port", "apiserver-port", "apiserver-bind-address", "kube-controller-arg", "kube-cloud-controller-arg"} {
		if _, err := load(t, map[string]string{"config.yaml": name + ": x\n"}, nil, board); err == nil || !strings.Contains(err.Error(), `unknown key "`+name+`"; coracle does not have this setting of k3s: `) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestK3sFlagsHaveTheirEffect: a flag that coracle takes by k3s' name does what it does there.
func TestK3sFlagsHaveTheirEffect(t *testing.T) {
	dir := t.TempDir()
	s, err := load(t, map[string]string{}, nil, board, "--protect-kernel-defaults", "--image-credential-provider-bin-dir="+dir, "--image-credential-provider-config="+dir,
		"--disable-default-registry-endpoint", "--nonroot-devices", "--kubelet-arg=protect-kernel-defaults=false")
	testenv.NoError(t, err)
	want := []string{"protect-kernel-defaults=true", "image-credential-provider-bin-dir=" + dir, "image-credential-provider-config=" + dir, "protect-kernel-defaults=false"}
	testenv.True(t, slices.Equal(s.Node.KubeletArgs, want), "the kubelet's arguments, the operator's own last: %q", s.Node.KubeletArgs)
	testenv.True(t, s.Node.DisableDefaultEndpoint && s.Node.NonrootDevices, "%+v", s.Node)
}

// TestVariablesOfK3sAreNamed: they have no effect, since k3s may run on the same machine, and that is said.
func TestVariablesOfK3sAreNamed(t *testing.T) {
	s, err := load(t, map[string]string{}, []string{"K3S_TOKEN=x", "K3S_KUBECONFIG_MODE=644", "K3S_CLUSTER_INIT=1", "K3S_NOTHING=1", "K3S_NODE_NAME="}, board)
	testenv.NoError(t, err)
	want := []string{
		"environment variable K3S_TOKEN is one of k3s and has no effect; it is called CORACLE_TOKEN here",
		"environment variable K3S_KUBECONFIG_MODE is one of k3s and has no effect; it is called CORACLE_WRITE_KUBECONFIG_MODE here",
		"environment variable K3S_CLUSTER_INIT is one of k3s and has no effect; coracle does not have this setting of k3s: every first server starts a cluster, with a store that others can join",
		"environment variable K3S_NOTHING is one of k3s and has no effect",
	}
	testenv.True(t, slices.Equal(s.Warnings, want), "the warnings are %q", s.Warnings)
}

func TestExternalNetworkNeedsExternalAddress(t *testing.T) {
	for _, c := range []struct {
		args []string
		bad  bool
	}{
		{[]string{"--node-external-ip=203.0.113.7"}, false},
		{[]string{"--node-external-ip=203.0.113.7,2001:db8::7"}, false},
		{nil, true},
		{[]string{"--node-external-ip=2001:db8::7"}, true},
		{[]string{"--node-external-ip=2001:db8::7", "--network-iface=wg*"}, false},
	} {
		s, err := load(t, map[string]string{}, nil, board, append(c.args, "--network-external-ip")...)
		if c.bad && (err == nil || !strings.Contains(err.Error(), "--network-external-ip")) || !c.bad && (err != nil || !s.Node.NetworkExternal) {
			t.Errorf("%v: %v", c.args, err)
		}
	}
}

func TestBadExternalAddressesAreRefused(t *testing.T) {
	s, err := load(t, map[string]string{}, []string{"CORACLE_NODE_EXTERNAL_IP=203.0.113.7,2001:db8::7"}, board)
	testenv.False(t, err != nil || len(s.Node.ExternalIPs) != 2 || s.Node.ExternalIPs[1].String() != "2001:db8::7", "%v, %v", err, s)
	refused(t, "--node-external-ip", "127.0.0.1", "10.42.0.9", "203.0.113.7,203.0.113.8", "a")
}

func TestBadNodeTaintsAreRefused(t *testing.T) {
	s, err := load(t, map[string]string{}, nil, board, "--node-taint=a=b:NoSchedule,a:NoExecute")
	if err != nil || len(s.Node.Taints) != 2 || s.Node.Taints[0].ToString() != "a=b:NoSchedule" || s.Node.Taints[1].ToString() != "a:NoExecute" {
		t.Errorf("%v, %v", err, s)
	}
	refused(t, "--node-taint", "a=b", "a=b:Never", "a b:NoSchedule", "a:NoSchedule-", "a-", "a=b:NoSchedule,a=c:NoSchedule")
}

func TestLocalStoragePathsAreParsed(t *testing.T) {
	s, err := load(t, map[string]string{}, nil, board)
	if want := []string{"/var/lib/coracle/storage"}; err != nil || !reflect.DeepEqual(s.Node.StoragePaths, want) || s.Paths.StorageDir != want[0] {
		t.Errorf("%v, %v", err, s)
	}
	s, err = load(t, map[string]string{"config.yaml": "default-local-storage-path: [/srv/volumes/, /mnt/ssd/volumes, /srv/volumes]\ndisable: [local-storage]\n"}, nil, board)
	if want := []string{"/srv/volumes", "/mnt/ssd/volumes"}; err != nil || !reflect.DeepEqual(s.Node.StoragePaths, want) || !s.Cluster.Disabled.Has(clusterconfig.PartLocalStorage) {
		t.Errorf("%v, %v", err, s)
	}
	// It would be closed to everybody else.
	refused(t, "--default-local-storage-path", "/", "/srv", "/srv/volumes,/home/", "/srv/..")
}

func TestBadVirtualAddressesAreRefused(t *testing.T) {
	s, err := load(t, map[string]string{"config.yaml": "vip: [192.0.2.100, fd00::100]\nvip-interface: eth1\n"}, nil, board)
	testenv.False(t, err != nil || len(s.VIPs) != 2 || s.VIPs[1].String() != "fd00::100" || s.VIPInterface != "eth1", "%v, %v", err, s)
	refused(t, "--vip", "127.0.0.1", "10.42.0.9", "10.43.0.9", "224.0.0.1", "192.0.2.100,192.0.2.101", "192.0.2.100/24", "a")
}

func TestLoadBalancerPool(t *testing.T) {
	s, err := load(t, map[string]string{"config.yaml": "load-balancer-pool: [192.0.2.200-192.0.2.210, 'fd00::100/124']\n"}, nil, board)
	if err != nil || len(s.LBPool) != 2 || s.LBPool[0].Last.String() != "192.0.2.210" || s.LBPool[1].First.String() != "fd00::100" {
		t.Errorf("%v, %v", err, s)
	}
	refused(t, "--load-balancer-pool", "127.0.0.1", "10.42.0.9", "10.43.0.9-10.43.0.20", "10.0.0.0-10.255.0.0", "224.0.0.1", "192.0.2.9-192.0.2.5", "a")
}

func TestIngressFlagsAreParsed(t *testing.T) {
	s, err := load(t, map[string]string{}, nil, board, "--ingress-trusted-proxies=192.0.2.0/24,2001:db8::1", "--ingress-proxy-protocol", "--ingress-host-owner=namespace")
	if want := []string{"192.0.2.0/24", "2001:db8::1/128"}; err != nil || !slices.Equal(s.Ingress.TrustedProxies, want) ||
		!s.Ingress.ProxyProtocol || !s.Ingress.HostOwner {
		t.Errorf("%+v, %v", s.Ingress, err)
	}
	if s, err := load(t, map[string]string{}, nil, board); err != nil || len(s.Ingress.TrustedProxies) > 0 || s.Ingress.ProxyProtocol || s.Ingress.HostOwner {
		t.Errorf("the default is %+v, %v", s.Ingress, err)
	}
	for _, bad := range []string{"trusted-proxies=all", "trusted-proxies=192.0.2.1/24", "trusted-proxies=0.0.0.0/0", "trusted-proxies=::ffff:192.0.2.0/120", "proxy-protocol", "host-owner=host"} {
		name, _, _ := strings.Cut("--ingress-"+bad, "=")
		if _, err := load(t, map[string]string{}, nil, board, "--ingress-"+bad); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestSharedFlags lists the flags that each server has for itself, and that have to be the same on all.
func TestSharedFlags(t *testing.T) {
	s, err := load(t, map[string]string{}, nil, board, "--ingress-trusted-proxies=192.0.2.0/24,2001:db8::1", "--ingress-proxy-protocol", "--ingress-host-owner=namespace")
	testenv.NoError(t, err)
	if got, want := fmt.Sprint(s.SharedFlags()), "map[ingress-acme-email: ingress-acme-server:https://acme-v02.api.letsencrypt.org/directory "+
		"ingress-host-owner:namespace ingress-proxy-protocol:true ingress-trusted-proxies:192.0.2.0/24,2001:db8::1/128 profile:]"; got != want {
		t.Errorf("servers that join are compared by %s, want %s", got, want)
	}
	again, err := load(t, map[string]string{}, nil, board, "--ingress-trusted-proxies=2001:db8:0::1/128,192.0.2.0/24,2001:db8::1",
		"--ingress-proxy-protocol", "--ingress-host-owner=namespace")
	if err != nil || !maps.Equal(again.SharedFlags(), s.SharedFlags()) {
		t.Errorf("the same networks, one of them twice, are compared by %v, want %v; %v", again.SharedFlags(), s.SharedFlags(), err)
	}
}

func TestLoadBalancerReservedPorts(t *testing.T) {
	for given, want := range map[string]string{"": "22", "--load-balancer-reserved-ports=22/TCP,9100": "22/TCP,9100", "--load-balancer-reserved-ports=none": "none"} {
		args := []string{given}
		if given == "" {
			args = nil
		}
		if s, err := load(t, map[string]string{}, nil, board, args...); err != nil || strings.Join(s.LBReserved, ",") != want {
			t.Errorf("%q: %v, want %s", given, err, want)
		}
	}
	refused(t, "--load-balancer-reserved-ports", "ssh", "0", "22/ICMP", "none,22")
}

// TestNameWithID: a machine's name stays what it is, and another machine of the same host name has another one.
func TestNameWithID(t *testing.T) {
	s, err := load(t, map[string]string{"config.yaml": "with-node-id: true\n"}, nil, board)
	testenv.Require(t, err == nil && s.Node.WithID, "%v, %v", err, s)
	dir := filepath.Join(t.TempDir(), "agent")
	first, err := config.NameWithID("board1", dir)
	testenv.Require(t, err == nil && len(first) == len("board1-00000000") && strings.HasPrefix(first, "board1-"), "%q, %v", first, err)
	testenv.Equal(t, testenv.Must(config.NameWithID("board1", dir))(t), first, "a second start:")
	if other, err := config.NameWithID("board1", t.TempDir()); err != nil || other == first {
		t.Errorf("another machine: %q, %v", other, err)
	}
	testenv.WantError(t, testenv.Err(config.NameWithID(strings.Repeat("a", 60), dir)), "--with-node-id")
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "node-id"), []byte("Not An Id"), 0o600))
	testenv.WantError(t, testenv.Err(config.NameWithID("board1", dir)), "node-id")
}

func TestConsoleListenAddressIsChecked(t *testing.T) {
	for _, good := range []string{"", ":8443", "192.0.2.1:8443", "[2001:db8::1]:8443"} {
		testenv.Equal(t, testenv.Must(load(t, map[string]string{}, nil, board, "--console-listen="+good))(t).ConsoleListen, good, "")
	}
	_, err := load(t, map[string]string{}, nil, board, "--console-listen=:8443", "--disable=console")
	testenv.WantError(t, err, "contradicts --disable console")
	refused(t, "--console-listen", "8443", "192.0.2.1", ":0", ":65536", "example.com:8443", ":http")
}

func TestMetricsHistoryNeedsMetrics(t *testing.T) {
	testenv.True(t, !testenv.Must(load(t, map[string]string{}, nil, board))(t).MetricsHistory, "it is off where nobody asks for it")
	testenv.True(t, testenv.Must(load(t, map[string]string{}, nil, board, "--metrics-history"))(t).MetricsHistory, "by a flag")
	testenv.True(t, testenv.Must(load(t, map[string]string{}, []string{"CORACLE_METRICS_HISTORY=true"}, board))(t).MetricsHistory, "by the environment")
	_, err := load(t, map[string]string{}, nil, board, "--metrics-history", "--disable=metrics-server")
	testenv.WantError(t, err, "contradicts --disable metrics-server")
}

func TestConsoleOIDCOptionsAreChecked(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	testenv.NoError(t, os.WriteFile(secret, []byte("hidden\n"), 0o600))
	s, err := load(t, map[string]string{}, []string{"CORACLE_CONSOLE_OIDC_CLIENT_ID=console"}, board,
		"--console-listen=:8443", "--console-oidc-client-secret-file="+secret, "--console-oidc-scopes=openid,groups")
	if err != nil || s.ConsoleOIDC.ClientID != "console" || s.ConsoleOIDC.ClientSecret != "hidden" || strings.Join(s.ConsoleOIDC.Scopes, " ") != "openid groups" {
		t.Errorf("%+v, %v", s.ConsoleOIDC, err)
	}
	for want, args := range map[string][]string{
		"needs --console-listen": {"--console-oidc-client-id=console"},
		"lacks openid":           {"--console-listen=:8443", "--console-oidc-scopes=groups"},
		"cannot be read":         {"--console-listen=:8443", "--console-oidc-client-secret-file=" + secret + "x"},
	} {
		if _, err := load(t, map[string]string{}, nil, board, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestRuntimesAreOfKnownNames(t *testing.T) {
	s := testenv.Must(load(t, map[string]string{}, nil, board))(t)
	testenv.Equal(t, s.Node.DefaultRuntime, "runc", "the default runtime")
	s = testenv.Must(load(t, map[string]string{}, nil, board, "--default-runtime=crun", "--disable=runtimes"))(t)
	testenv.True(t, s.Node.DefaultRuntime == "crun" && s.Cluster.Disabled.Has(clusterconfig.PartRuntimes), "%q, %v", s.Node.DefaultRuntime, s.Cluster.Disabled)
	refused(t, "--default-runtime", "podman", "/usr/bin/crun", "")
}

// TestContentRate: it has no limit by default, and none below which no machine would take anything.
func TestContentRate(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "0": 0, "1Mi": 1 << 20, "20M": 20_000_000} {
		args := []string{"--content-rate=" + text}
		if text == "" {
			args = nil
		}
		testenv.Equal(t, testenv.Must(load(t, map[string]string{}, nil, board, args...))(t).Node.ContentRate, want, "%q:", text)
	}
	refused(t, "--content-rate", "1023Ki", "-1Mi", "1", "fast", "1Mi/s", "999999Ti", "")
}

// TestIngressProxySettings: they have the defaults that docs name, and bounds that messages name.
func TestIngressProxySettings(t *testing.T) {
	for _, c := range []struct {
		args []string
		want config.IngressProxy
		flaw string
	}{
		{nil, config.IngressProxy{Memory: 256 << 20, MaxConnections: 4000}, ""},
		{[]string{"--ingress-memory=1Gi", "--ingress-max-connections=20000"}, config.IngressProxy{Memory: 1 << 30, MaxConnections: 20000}, ""},
		{[]string{"--ingress-memory=64Mi"}, config.IngressProxy{Memory: 64 << 20, MaxConnections: 4000}, ""},
		{[]string{"--ingress-memory=63Mi"}, config.IngressProxy{}, `"63Mi" is no memory from 64Mi to 16384Gi; write it like 512Mi`},
		{[]string{"--ingress-memory=512"}, config.IngressProxy{}, "is no memory"},
		{[]string{"--ingress-memory=-1Gi"}, config.IngressProxy{}, "is no memory"},
		{[]string{"--ingress-memory=9999999999Gi"}, config.IngressProxy{}, "is no memory"},
		{[]string{"--ingress-memory=much"}, config.IngressProxy{}, "is no memory"},
		{[]string{"--ingress-max-connections=99"}, config.IngressProxy{}, `"99" is not a number from 100 to 1000000`},
	} {
		s, err := load(t, map[string]string{}, nil, board, c.args...)
		switch {
		case c.flaw != "" && (err == nil || !strings.Contains(err.Error(), c.flaw)):
			t.Errorf("%v: %v", c.args, err)
		case c.flaw == "" && err != nil:
			t.Errorf("%v: %v", c.args, err)
		case c.flaw == "":
			testenv.Equal(t, s.Node.Ingress, c.want, "%v:", c.args)
		}
	}
}
