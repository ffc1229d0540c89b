// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/seccomp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/cmd/kubelet/app/options"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func testOptions() Options {
	return Options{
		RootDir: "/var/lib/kubelet", RuntimeSocket: "/run/coracle/containerd/containerd.sock", Kubeconfig: "/k", ServingCertFile: "/s",
		ServingKeyFile: "/s", ClientCAFile: "/ca", NodeName: "node-1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Kubelet:    config.Kubelet{Labels: map[string]string{"rack": "a"}, Taints: []corev1.Taint{{Key: "dedicated", Value: "gpu", Effect: corev1.TaintEffectNoSchedule}}},
		ClusterDNS: []netip.Addr{netip.MustParseAddr("10.43.0.10")}, ClusterDomain: "cluster.local",
	}
}

func mustServer(t *testing.T, o Options) *options.KubeletServer {
	t.Helper()
	return testenv.Must(newServer(o))(t)
}

func TestKubeletConfigurationHasOurDefaults(t *testing.T) {
	s := mustServer(t, testOptions())
	for name, ok := range map[string]bool{
		"anonymous callers are refused":        !s.Authentication.Anonymous.Enabled,
		"tokens are reviewed":                  s.Authentication.Webhook.Enabled,
		"callers are authorized":               s.Authorization.Mode == "Webhook",
		"no read-only port":                    s.ReadOnlyPort == 0,
		"no health port":                       s.HealthzPort == 0,
		"cgroup v1 is no obstacle":             !s.FailCgroupV1,
		"swap is no obstacle":                  !s.FailSwapOn,
		"no iptables":                          !s.MakeIPTablesUtilChains,
		"both addresses":                       s.NodeIP == "192.0.2.1,2001:db8::1",
		"label":                                s.NodeLabels["rack"] == "a",
		"taint":                                len(s.RegisterWithTaints) == 1 && s.RegisterWithTaints[0].Effect == corev1.TaintEffectNoSchedule,
		"lease of ten minutes":                 s.NodeLeaseDurationSeconds == 600,
		"status is written twice an hour":      s.NodeStatusReportFrequency.Duration == 30*time.Minute,
		"eviction":                             s.EvictionHard["nodefs.available"] == "5%",
		"upstream's default where we set none": s.MaxPods == 110,
		"pods are synced as upstream does it":  s.SyncFrequency.Duration == time.Minute, // docs/adr/0055
		"seccomp where the kernel has it":      s.KubeletConfiguration.SeccompDefault == seccomp.IsEnabled(),
		"a pod has so many processes":          s.PodPidsLimit == 4096,
		"no cipher suite in CBC mode":          len(s.TLSCipherSuites) == 6 && !strings.Contains(strings.Join(s.TLSCipherSuites, ","), "CBC"),
		"logs of the machine's services":       s.EnableSystemLogQuery && s.EnableSystemLogHandler,
		"containerd's socket":                  s.ContainerRuntimeEndpoint == "unix:///run/coracle/containerd/containerd.sock",
	} {
		testenv.True(t, ok, "not so: %s", name)
	}
}

// TestHardeningIsOnesOwn: flags and files go before the defaults that pods feel.
func TestHardeningIsOnesOwn(t *testing.T) {
	o := testOptions()
	o.KubeletArgs = []string{"seccomp-default=false", "pod-max-pids=-1", "tls-cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"}
	s := mustServer(t, o)
	if s.KubeletConfiguration.SeccompDefault || s.KubeletFlags.SeccompDefault || s.PodPidsLimit != -1 || len(s.TLSCipherSuites) != 1 {
		t.Errorf("seccompDefault %t, podPidsLimit %d, suites %v", s.KubeletConfiguration.SeccompDefault, s.PodPidsLimit, s.TLSCipherSuites)
	}
}

// TestLogsOfTheMachineCanBeDisabled: each of the two settings alone is valid.
func TestLogsOfTheMachineCanBeDisabled(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubelet.yaml")
	for setting, files := range map[string]bool{"enableSystemLogQuery": true, "enableSystemLogHandler": false} {
		write(t, file, "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"+setting+": false\n")
		o := testOptions()
		o.KubeletArgs = []string{"config=" + file}
		s := mustServer(t, o)
		testenv.True(t, !s.EnableSystemLogQuery && s.EnableSystemLogHandler == files, "%s: query %t, handler %t", setting, s.EnableSystemLogQuery, s.EnableSystemLogHandler)
	}
}

func TestPortsAreThoseOfFinishedConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubelet.yaml")
	testenv.NoError(t,
		os.WriteFile(file, []byte("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nreadOnlyPort: 10255\n"), 0o600))
	for _, c := range []struct {
		args []string
		want []uint16
	}{
		{nil, []uint16{10250}},
		{[]string{"port=10350", "healthz-port=10248", "config=" + file}, []uint16{10350, 10255, 10248}},
	} {
		o := testOptions()
		o.KubeletArgs = c.args
		testenv.EqualSlices(t, testenv.Must(Ports(o))(t), c.want, "%v:", c.args)
	}
}

func TestFlagBeatsDropInBeatsFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "kubelet.yaml")
	write(t, file, "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 20\npodsPerCore: 3\nevictionHard: {memory.available: 50Mi}\nfeatureGates: {EventedPLEG: false}\n")
	write(t, filepath.Join(dir, "d", "10-a.conf"), "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\npodsPerCore: 4\n")
	write(t, filepath.Join(dir, "d", "ignored.yaml"), "podsPerCore: 5\n")
	o := testOptions()
	o.KubeletArgs = []string{"config=" + file, "config-dir=" + filepath.Join(dir, "d"), "max-pods=30", "--image-gc-high-threshold=70", "image-gc-low-threshold=60",
		"node-labels=disk=ssd,rack=b", "register-with-taints=x=y:NoExecute", "feature-gates=GracefulNodeShutdown=true"}
	s := mustServer(t, o)
	testenv.Equal(t, s.MaxPods, 30, "a flag does not beat the file: maxPods")
	testenv.Equal(t, s.PodsPerCore, 4, "a drop-in does not beat the file: podsPerCore")
	if s.EvictionHard["memory.available"] != "50Mi" || s.EvictionHard["nodefs.available"] != "5%" {
		t.Errorf("the file is not merged over the defaults: %v", s.EvictionHard)
	}
	testenv.False(t, s.FailSwapOn, "the file undid a default that it does not name")
	testenv.False(t, s.NodeLabels["disk"] != "ssd" || s.NodeLabels["rack"] != "b", "labels: %v", s.NodeLabels)
	testenv.True(t, len(s.RegisterWithTaints) == 2, "taints: %v", s.RegisterWithTaints)
	if _, ok := s.FeatureGates["EventedPLEG"]; !ok || !s.FeatureGates["GracefulNodeShutdown"] {
		t.Errorf("feature gates: %v", s.FeatureGates)
	}
	testenv.Equal(t, s.ImageGCHighThresholdPercent, 70, "image gc:")
	o.KubeletArgs = []string{"config_dir=" + filepath.Join(dir, "d")}
	testenv.Equal(t, mustServer(t, o).PodsPerCore, 4, "drop-ins of a folder that is named by config_dir do not count: podsPerCore")
}

func TestMistakenKubeletConfigurationIsRefused(t *testing.T) {
	dir := t.TempDir()
	unknown := filepath.Join(dir, "unknown.yaml")
	write(t, unknown, "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPodz: 20\n")
	broken := filepath.Join(dir, "broken.yaml")
	write(t, broken, "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: [\n")
	kind := filepath.Join(dir, "kind.yaml")
	write(t, kind, "maxPods: 20\n")
	gate := filepath.Join(dir, "gate.yaml")
	write(t, gate, "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfeatureGates: {Nonsense: true}\n")
	for name, tc := range map[string]struct {
		change func(*Options)
		want   []string
	}{
		"unknown flag":        {func(o *Options) { o.KubeletArgs = []string{"max-podz=3"} }, []string{"max-podz", `"max-pods"`}},
		"bad value":           {func(o *Options) { o.KubeletArgs = []string{"max-pods=many"} }, []string{"max-pods", "many"}},
		"ours to set":         {func(o *Options) { o.KubeletArgs = []string{"hostname-override=x"} }, []string{"hostname-override", "--node-name"}},
		"unknown key":         {func(o *Options) { o.KubeletArgs = []string{"config=" + unknown} }, []string{unknown, "maxPodz"}},
		"broken file":         {func(o *Options) { o.KubeletArgs = []string{"config=" + broken} }, []string{broken, "line"}},
		"no kind":             {func(o *Options) { o.KubeletArgs = []string{"config=" + kind} }, []string{kind, "apiVersion"}},
		"missing file":        {func(o *Options) { o.KubeletArgs = []string{"config=/does/not/exist"} }, []string{"/does/not/exist"}},
		"unknown gate":        {func(o *Options) { o.KubeletArgs = []string{"config=" + gate} }, []string{gate, "Nonsense"}},
		"unknown gate's flag": {func(o *Options) { o.KubeletArgs = []string{"feature-gates=Nonsense=true"} }, []string{"Nonsense"}},
		"no path":             {func(o *Options) { o.KubeletArgs = []string{"config"} }, []string{"config=PATH"}},
		"invalid combination": {func(o *Options) { o.KubeletArgs = []string{"image-gc-low-threshold=99"} }, []string{"imageGCLowThresholdPercent"}},
		"loopback":            {func(o *Options) { o.NodeIPs = []netip.Addr{netip.MustParseAddr("127.0.0.1")} }, []string{"127.0.0.1", "--node-ip"}},
		"name":                {func(o *Options) { o.NodeName = "Node_1" }, []string{"Node_1"}},
		"reserved label":      {func(o *Options) { o.Labels = map[string]string{"node-role.kubernetes.io/x": ""} }, []string{"node-role.kubernetes.io/x"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions()
			tc.change(&o)
			_, err := newServer(o)
			testenv.Require(t, err != nil, "no error")
			for _, want := range tc.want {
				testenv.True(t, strings.Contains(err.Error(), want), "the message does not name %s: %v", want, err)
			}
		})
	}
}

// TestMistakenKubeletArgsAreFound looks for mistakes as before a start, when nothing else is known of the node.
func TestMistakenKubeletArgsAreFound(t *testing.T) {
	for args, want := range map[string]string{
		"":                            "",
		"max-pods=30":                 "",
		"max-podz=30":                 `kubelet has no flag "max-podz"; did you mean "max-pods"?`,
		"max-pods=many":               `kubelet flag "max-pods"`,
		"feature-gates=Nonsense=true": "Nonsense",
		"config=/does/not/exist":      "/does/not/exist",
	} {
		var list []string
		if args != "" {
			list = []string{args}
		}
		err := CheckArgs(list)
		testenv.False(t, (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want),
			"%s: error %v, want one with %q", args, err, want)
	}
}

func TestPreflightNamesEveryObstacle(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.NoError(t, err)
	defer l.Close()
	dir := t.TempDir()
	o := testOptions()
	o.RootDir = filepath.Join(dir, strings.Repeat("deep/", 30))
	o.KubeletArgs = []string{"address=127.0.0.1", "port=" + strconv.Itoa(l.Addr().(*net.TCPAddr).Port)}
	err = preflight(mustServer(t, o))
	testenv.Require(t, err != nil, "no obstacle found")
	for _, want := range []string{"taken by another program", "shorter data directory", "its credentials", "its serving certificate"} {
		testenv.True(t, strings.Contains(err.Error(), want), "%q is not mentioned: %v", want, err)
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	testenv.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}
