// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/seccomp"
	"golang.org/x/sys/unix"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubelet/config/v1beta1"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	kubeletscheme "k8s.io/kubernetes/pkg/kubelet/apis/config/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/resolvconf"
)

const (
	// reportEvery is how often an unchanged status is reported.
	reportEvery = 30 * time.Minute

	// podPIDs limits the processes and threads of a pod.
	podPIDs = 4096

	// dropInExtension is the ending of the files that upstream reads from a --config-dir.
	dropInExtension = ".conf"
)

// defaults returns the settings that differ from upstream's. All others are upstream's defaults. A user's configuration
// file is merged over them.
func defaults(o Options) *v1beta1.KubeletConfiguration {
	resolvConf := o.ResolvConf
	if resolvConf == "" {
		resolvConf = resolvconf.Choose(resolvconf.HostFiles)
	}
	return &v1beta1.KubeletConfiguration{
		TypeMeta:                 metav1.TypeMeta{APIVersion: v1beta1.SchemeGroupVersion.String(), Kind: "KubeletConfiguration"},
		ContainerRuntimeEndpoint: runtimeEndpoint(o.RuntimeSocket),
		StaticPodPath:            o.StaticPodDir,
		PodLogsDir:               o.PodLogsDir,
		ClusterDNS:               convert.Slice(o.ClusterDNS, netip.Addr.String),
		ClusterDomain:            o.ClusterDomain,
		ResolverConfig:           &resolvConf,
		RegisterWithTaints:       o.Taints,

		// The kubelet's port: certificates in files that are renewed in place; clients are verified, and none is
		// anonymous.
		TLSCertFile:       o.ServingCertFile,
		TLSPrivateKeyFile: o.ServingKeyFile,
		TLSMinVersion:     "VersionTLS12",
		TLSCipherSuites:   clusterconfig.CipherSuiteNames(),
		Authentication: v1beta1.KubeletAuthentication{
			X509:      v1beta1.KubeletX509Authentication{ClientCAFile: o.ClientCAFile},
			Anonymous: v1beta1.KubeletAnonymousAuthentication{Enabled: ptr.To(false)},
			Webhook:   v1beta1.KubeletWebhookAuthentication{Enabled: ptr.To(true)},
		},
		Authorization: v1beta1.KubeletAuthorization{Mode: v1beta1.KubeletAuthorizationModeWebhook},
		ReadOnlyPort:  0,
		// Logs of the machine's services, for clients that may already read all files of /var/log by this port.
		EnableSystemLogQuery: ptr.To(true),
		HealthzPort:          ptr.To[int32](0), // it would report on the whole process, and no client uses it

		// Hosts of all ages are supported: cgroup v1 is still common on boards, and swap is normal there. The driver is
		// cgroupfs because containerd's is (agent/containerd gives the reason).
		CgroupDriver: "cgroupfs",
		FailCgroupV1: ptr.To(false),
		FailSwapOn:   ptr.To(false),
		MaxOpenFiles: openFiles(),
		// The host needs no iptables program, and the kubelet makes no chains: proxy/ has its own table.
		MakeIPTablesUtilChains: ptr.To(false),

		// Limits of pods that set none themselves: the runtime's list of system calls, where the kernel supports that
		// (containerd refuses the profile elsewhere), and a number of processes with which a fork bomb cannot use up
		// the node's.
		SeccompDefault: ptr.To(seccomp.IsEnabled()),
		PodPidsLimit:   ptr.To[int64](podPIDs),

		// What an idle node costs. Status is computed every ten seconds, but written only when it has changed, or after
		// the report frequency, which is five minutes upstream: all nodes receive each report, and none uses it as a
		// sign of life (ADR 0040). The lease is written four times per duration.
		NodeStatusUpdateFrequency:   metav1.Duration{Duration: 10 * time.Second},
		NodeStatusReportFrequency:   metav1.Duration{Duration: reportEvery},
		NodeLeaseDurationSeconds:    int32(clusterconfig.LeaseDuration.Seconds()),
		ContainerLogMonitorInterval: &metav1.Duration{Duration: 30 * time.Second},
		CPUManagerReconcilePeriod:   metav1.Duration{Duration: time.Minute},

		// Upstream keeps a tenth of the disk free, 15% for images: gigabytes on a large disk, and more than a small one
		// has. These are k3s's numbers.
		EvictionHard: map[string]string{
			"memory.available": "100Mi", "nodefs.available": "5%", "nodefs.inodesFree": "5%",
			"imagefs.available": "5%", "imagefs.inodesFree": "5%",
		},
	}
}

// configuration merges the defaults with the operator's file and drop-ins, each a JSON merge patch (RFC 7386) as
// upstream does it, and converts the result. Unknown keys are errors.
func configuration(o Options, file, dropIns string) (*kubeletconfig.KubeletConfiguration, error) {
	base := defaults(o)
	merged, err := json.Marshal(base)
	if err != nil {
		return nil, fmt.Errorf("encode the defaults: %w", err)
	}
	_, codecs, err := kubeletscheme.NewSchemeAndCodecs(serializer.EnableStrict)
	if err != nil {
		return nil, fmt.Errorf("set up the configuration's types: %w", err)
	}
	decode := func(data []byte) (*kubeletconfig.KubeletConfiguration, error) {
		out := &kubeletconfig.KubeletConfiguration{}
		return out, runtime.DecodeInto(codecs.UniversalDecoder(), data, out)
	}
	files, err := configFiles(file, dropIns)
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read the configuration file: %w", err)
		}
		patch, err := yaml.YAMLToJSON(data)
		if err != nil {
			return nil, fmt.Errorf("configuration file %s: %w", path, err)
		}
		if err := checkHead(patch, base.TypeMeta); err != nil {
			return nil, fmt.Errorf("configuration file %s: %w", path, err)
		}
		if _, err := decode(data); err != nil { // separately, so that its mistakes are not reported as mistakes of the merged configuration
			return nil, fmt.Errorf("configuration file %s: %w", path, err)
		}
		if merged, err = jsonpatch.MergePatch(merged, patch); err != nil {
			return nil, fmt.Errorf("configuration file %s: merge: %w", path, err)
		}
	}
	config, err := decode(merged)
	if err != nil {
		return nil, fmt.Errorf("the merged configuration: %w", err)
	}
	return config, nil
}

// checkHead finds mistakes that decoding does not report, but misunderstands or panics over.
func checkHead(data []byte, want metav1.TypeMeta) error {
	var head struct {
		metav1.TypeMeta
		FeatureGates map[string]bool
	}
	if err := json.Unmarshal(data, &head); err != nil || head.TypeMeta != want {
		return errors.Join(fmt.Errorf("it has to say apiVersion: %s and kind: %s", want.APIVersion, want.Kind), err)
	}
	return utilfeature.DefaultMutableFeatureGate.DeepCopy().SetFromMap(head.FeatureGates)
}

// configFiles lists the files to read, in order.
func configFiles(file, dropIns string) ([]string, error) {
	var files []string
	if file != "" {
		files = append(files, file)
	}
	if dropIns == "" {
		return files, nil
	}
	err := filepath.WalkDir(dropIns, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, dropInExtension) {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the configuration folder: %w", err)
	}
	return files, nil
}

// openFiles returns upstream's number, or less where the process may not raise its limit that far.
func openFiles() int64 {
	const want = 1_000_000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Max >= want {
		return want
	}
	raised := unix.Rlimit{Cur: want, Max: want}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
		return want
	}
	return int64(limit.Max)
}

// runtimeEndpoint returns a runtime's socket in the syntax of the kubelet's flags.
func runtimeEndpoint(socket string) string { return "unix://" + socket }
