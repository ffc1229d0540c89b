// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmconfig "k8s.io/kubernetes/cmd/kube-controller-manager/app/config"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	"k8s.io/kubernetes/pkg/controller/apis/config"
	netutils "k8s.io/utils/net"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// component is upstream's name for the program that this package runs.
const component = "kube-controller-manager"

// stopTimeout limits the wait for controllers after the end of a term. They take a few milliseconds.
const stopTimeout = 15 * time.Second

const (
	// maxTerminatedPods is how many ended pods are kept at most. Upstream keeps 12,500.
	maxTerminatedPods = 1000
	// terminatedPodBytes is about what one takes of the store and of each cache, in bytes. They may take
	// 1/terminatedPodsShare of the store's quota.
	terminatedPodBytes, terminatedPodsShare = 8 << 10, 20
)

// terminatedPods returns how many ended pods are kept. quota is the store's in bytes, 0 for none.
func terminatedPods(quota int64) int32 {
	if quota == 0 {
		return maxTerminatedPods
	}
	return int32(max(1, min(maxTerminatedPods, quota/terminatedPodsShare/terminatedPodBytes))) // 0 would keep all
}

// upstream is the configuration made from kube-controller-manager's own options.
type upstream struct {
	config          config.KubeControllerManagerConfiguration
	shutdownTimeout time.Duration
	// qps and burst limit each controller's client. By default there is no limit: the API server's priority and
	// fairness distributes its capacity already, and identifies each controller by its own name.
	qps   float32
	burst int
}

// upstream maps the options to upstream's and applies the extra arguments.
func (o Options) upstream() (upstream, error) {
	s, err := kcmoptions.NewKubeControllerManagerOptions()
	if err != nil {
		return upstream{}, fmt.Errorf("%s: make default options: %w", component, err)
	}
	// Not the process-wide registry: adding flags to it closes its feature gates, which belong to the API server.
	s.ComponentGlobalsRegistry = basecompatibility.NewComponentGlobalsRegistry()
	if err := s.ComponentGlobalsRegistry.Set(); err != nil {
		return upstream{}, fmt.Errorf("%s: %w", component, err)
	}
	all, off, aliases := app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()
	cmd := kubecompat.Component{Name: component, Sets: s.Flags(all, off, aliases)}
	cmd.Refused = kubecompat.RefusedInProcess(cmd.Sets)
	o.apply(s) // after Flags, which sets some fields to upstream's defaults, and before the extra arguments
	if err := cmd.Parse(o.ExtraArgs); err != nil {
		return upstream{}, err
	}
	s.Generic.Controllers = withBootstrap(s.Generic.Controllers, aliases)
	if err := s.Validate(all, off, aliases); err != nil {
		return upstream{}, fmt.Errorf("%s: %w", component, err)
	}
	var c kcmconfig.Config
	if err := s.ApplyTo(&c, all, off, aliases); err != nil {
		return upstream{}, fmt.Errorf("%s: apply options: %w", component, err)
	}
	if err := checkRanges(c.ComponentConfig); err != nil {
		return upstream{}, err
	}
	u := upstream{config: c.ComponentConfig, shutdownTimeout: c.ControllerShutdownTimeout, qps: -1}
	if f := cmd.Sets.FlagSet("generic"); f.Changed("kube-api-qps") || f.Changed("kube-api-burst") {
		u.qps, u.burst = s.Generic.ClientConnection.QPS, int(s.Generic.ClientConnection.Burst)
	}
	return u, nil
}

// checkRanges returns an error for address ranges that upstream would ignore, or reject only when the node IPAM
// controller starts.
func checkRanges(c config.KubeControllerManagerConfiguration) error {
	if c.KubeCloudShared.AllocateNodeCIDRs {
		ranges, err := netutils.ParseCIDRs(strings.Split(c.KubeCloudShared.ClusterCIDR, ","))
		if err != nil {
			return fmt.Errorf("%s: cluster CIDR %q: %w", component, c.KubeCloudShared.ClusterCIDR, err)
		}
		if dual, _ := netutils.IsDualStackCIDRs(ranges); len(ranges) > 2 || len(ranges) == 2 && !dual {
			return fmt.Errorf("%s: cluster CIDR %q: want one range, or one of each family", component, c.KubeCloudShared.ClusterCIDR)
		}
	}
	for _, r := range []string{c.NodeIPAMController.ServiceCIDR, c.NodeIPAMController.SecondaryServiceCIDR} {
		if _, _, err := netutils.ParseCIDRSloppy(r); r != "" && err != nil {
			return fmt.Errorf("%s: service CIDR %q: %w", component, r, err)
		}
	}
	return nil
}

// withBootstrap adds the two controllers for bootstrap tokens to a list that contains the default controllers and does
// not name these two. Upstream disables them by default, and join tokens need them.
func withBootstrap(list []string, aliases map[string]string) []string {
	if !slices.Contains(list, "*") {
		return list
	}
	for _, name := range []string{names.BootstrapSignerController, names.TokenCleanerController} {
		named := slices.ContainsFunc(list, func(s string) bool {
			s = strings.TrimPrefix(s, "-")
			return s == name || aliases[s] == name
		})
		if !named {
			list = append(list, name)
		}
	}
	return list
}

// apply sets coracle's values over upstream's defaults. Extra arguments have precedence over both.
func (o Options) apply(s *kcmoptions.KubeControllerManagerOptions) {
	s.SecureServing.BindPort = 0 // no listener
	setAttachPeriod()
	s.Generic.LeaderElection.LeaderElect = false
	s.ControllerShutdownTimeout = stopTimeout

	s.KubeCloudShared.AllocateNodeCIDRs = o.ClusterCIDR != ""
	s.KubeCloudShared.ClusterCIDR = o.ClusterCIDR
	s.KubeCloudShared.ClusterName = "coracle"
	s.KubeCloudShared.UseServiceAccountCredentials = true
	s.NodeIPAMController.ServiceCIDR = o.ServiceCIDR // ApplyTo splits it

	s.CSRSigningController.ClusterSigningCertFile = o.ClusterSigningCertFile
	s.CSRSigningController.ClusterSigningKeyFile = o.ClusterSigningKeyFile
	s.PodGCController.TerminatedPodGCThreshold = terminatedPods(o.StoreQuota)
	s.SAController.RootCAFile = o.RootCAFile
	s.SAController.ServiceAccountKeyFile = o.ServiceAccountPrivateKeyFile
	if o.FlexVolumePluginDir != "" {
		s.PersistentVolumeBinderController.VolumeConfiguration.FlexVolumePluginDir = o.FlexVolumePluginDir
	}
	if o.Small {
		applySmall(s)
	}
}

// limit returns a copy of a client configuration with this component's request limits.
func (u upstream) limit(c *rest.Config) *rest.Config {
	c = rest.CopyConfig(c)
	c.QPS, c.Burst = u.qps, u.burst
	return c
}
