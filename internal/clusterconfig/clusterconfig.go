// SPDX-License-Identifier: Apache-2.0

// Package clusterconfig holds the settings in which all machines of a cluster have to agree. Servers and agents use the
// same settings. An agent gets them from the server that it joins. The package reads no flags. Its only files are a
// server's copies of settings that may change while the cluster runs.
package clusterconfig

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Settings are the settings of a cluster.
type Settings struct {
	// PodCIDRs and ServiceCIDRs hold one network each, or one of each family in the same order.
	PodCIDRs     []netip.Prefix `json:"podCIDRs"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	// DNS is the address of the Service of the cluster's DNS. It is the zero Addr where the DNS is disabled.
	DNS netip.Addr `json:"dns,omitzero"`
	// Domain is the cluster domain: cluster.local, or what the operator chose.
	Domain string `json:"domain"`
	// NoServiceProxy means that Services are left to another proxy, which the operator installs on every node.
	NoServiceProxy bool `json:"noServiceProxy,omitempty"`
	// Disabled are the parts that the cluster does without. It is encoded by MarshalJSON.
	Disabled Disabled `json:"-"`
	// NetworkBackend is how packets reach the pods of other nodes. Empty means the default (see Backend).
	NetworkBackend string `json:"networkBackend,omitempty"`
	// Balancer holds the settings for Services of type LoadBalancer.
	Balancer Balancer `json:"balancer,omitzero"`
	// TolerationSeconds is for how long pods stay on a node that is not ready or unreachable, unless they have
	// tolerations of their own. 0 means DefaultTolerationSeconds.
	TolerationSeconds int `json:"tolerationSeconds,omitempty"`
	// VIPs are the cluster's virtual addresses at the time when a server joins, at most one of each family. They may
	// change later, see VIPConfigMap.
	VIPs []netip.Addr `json:"vips,omitempty"`
}

// ServerSettings are the settings in which a cluster's servers have to agree, and that its agents do not need.
type ServerSettings struct {
	// NodePortRange is FIRST-LAST.
	NodePortRange string `json:"nodePortRange"`
	// EncryptResources are the resources that are encrypted in the store, "secrets" first. It is empty when encryption
	// is disabled.
	EncryptResources []string `json:"encryptResources,omitempty"`
}

// Balancer holds a cluster's settings for Services of type LoadBalancer.
type Balancer struct {
	// Disabled leaves these Services to another load balancer. Settings.Disabled has PartServiceLB then.
	Disabled bool `json:"disabled,omitempty"`
	// Pool holds the addresses of the pool that is set by a flag and is no object of the API, in the form that
	// internal/loadbalancer parses.
	Pool []string `json:"pool,omitempty"`
	// ReservedPorts are the ports that no Service gets at nodes' addresses, in the form that internal/loadbalancer
	// parses.
	ReservedPorts []string `json:"reservedPorts,omitempty"`
}

// DefaultTolerationSeconds is longer than a machine takes to start again, so that a restart moves no pods
// (docs/adr/0065-death-of-a-node-and-unreachable-endpoints.md). Upstream's default is 300.
const DefaultTolerationSeconds = 60

// Toleration returns TolerationSeconds or the default.
func (s Settings) Toleration() int { return cmp.Or(s.TolerationSeconds, DefaultTolerationSeconds) }

// Times after which upstream's controllers treat a node as lost, by the API alone. The leader knows it earlier, from
// the connections that nodes keep open (server/liveness). The lease is for clients that read it.
const (
	// LeaseDuration is the duration of a node's lease. A kubelet renews it four times as often
	// (k8s.io/kubernetes/pkg/kubelet: nodeLeaseRenewIntervalFraction). Each renewal writes to the disks of a majority
	// of the servers. One in 2.5 minutes leaves the disk of an idle cluster quiet; upstream's lease of 40 s causes
	// 8,640 writes a day for each node (docs/adr/0040-idle-cost.md,
	// docs/adr/0065-death-of-a-node-and-unreachable-endpoints.md).
	LeaseDuration = 10 * time.Minute
	// GracePeriod is how long a node may send nothing before it counts as lost (node-monitor-grace-period of the
	// controllers). It has to be longer than LeaseDuration.
	GracePeriod = 12 * time.Minute
)

// DefaultDomain is the cluster domain if the operator chose none.
const DefaultDomain = "cluster.local"

// Validate returns an error for settings with which no cluster works.
func (s Settings) Validate() error {
	var errs []error
	for name, nets := range map[string][]netip.Prefix{"pods": s.PodCIDRs, "Services": s.ServiceCIDRs} {
		switch {
		case len(nets) < 1 || len(nets) > 2:
			errs = append(errs, fmt.Errorf("%d networks for %s, want one, or one of each family", len(nets), name))
		case len(nets) == 2 && nets[0].Addr().Is4() == nets[1].Addr().Is4():
			errs = append(errs, fmt.Errorf("the two networks for %s, %s and %s, are of one family", name, nets[0], nets[1]))
		}
	}
	if s.Domain == "" {
		errs = append(errs, errors.New("no cluster domain"))
	}
	if !slices.Contains(NetworkBackends, s.Backend()) {
		errs = append(errs, fmt.Errorf("this version of coracle knows no way between nodes that is called %q", s.NetworkBackend))
	}
	if s.TolerationSeconds < 0 {
		errs = append(errs, fmt.Errorf("pods cannot stay on a lost node for %d seconds", s.TolerationSeconds))
	}
	return errors.Join(errs...)
}

// APIAddresses returns the addresses of the Service kubernetes: the first address of each of the Services' networks.
func (s Settings) APIAddresses() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, n := range s.ServiceCIDRs {
		first := n.Masked().Addr().Next()
		if !n.Contains(first) {
			return nil, fmt.Errorf("the service network %s is too small", n)
		}
		out = append(out, first)
	}
	return out, nil
}

// FlagValue formats networks as upstream's flags take them.
func FlagValue(nets []netip.Prefix) string { return strings.Join(Strings(nets), ",") }

// Strings formats each of in.
func Strings[T fmt.Stringer](in []T) []string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = v.String()
	}
	return out
}

const (
	// ServerIDAnnotation on a Node is the store's name of the server on its machine. Each server writes its own.
	ServerIDAnnotation = "coracle.dev/server-id"
	// LeaveAnnotation on a Node says that its machine is to leave the cluster. Its value is how long its pods may take
	// to end ([ParseLeave]). A machine may write it on its own Node.
	LeaveAnnotation = "coracle.dev/leave"
	// MemberFinalizer keeps the deleted Node of a server until the server has been removed from the store.
	MemberFinalizer = "coracle.dev/store-member"
)

// LoadBalancerLabel is a label of Nodes. If at least one Node has it with the value "true", Services of type
// LoadBalancer use only such nodes. K3sLoadBalancerLabel is k3s' name for the same label. The administrator sets either
// label, or --node-label does when the node joins.
const (
	LoadBalancerLabel    = "coracle.dev/enable-servicelb"
	K3sLoadBalancerLabel = "svccontroller.k3s.cattle.io/enablelb"
)

// OwnAddressesLabel is a label of a Node whose agent sets the addresses itself, including external ones. Upstream's
// kubelet expects that a cloud provider sets external addresses. So it registers the Node with the taint that such a
// provider's controller would remove. The API server omits that taint from a Node with this label.
const OwnAddressesLabel = "coracle.dev/own-addresses"

// RuntimeLabel and the name of a container runtime are a label of Nodes. A node gives itself the label with the value
// "true" when it starts and the runtime is installed, and removes it when the runtime is not installed any more.
const RuntimeLabel = "runtime.coracle.dev/"

// Runtimes are the container runtimes that a node finds by itself, in alphabetical order. Each is the name of a label,
// of containerd's handler and of a RuntimeClass. The names are those of k3s, which has no kata and no runsc.
var Runtimes = []string{"crun", "kata", "lunatic", "nvidia", "nvidia-cdi", "nvidia-experimental", "runsc", "slight", "spin",
	"wasmedge", "wasmer", "wasmtime", "wws"}

// DefaultRuntime is the name of the embedded runtime, which is the default one.
const DefaultRuntime = "runc"

// MaxLeave is the longest time that the pods of a leaving node may be given to end.
const MaxLeave = 24 * time.Hour

// ParseLeave parses the value of [LeaveAnnotation]: a duration such as 90s, between 0 and [MaxLeave].
func ParseLeave(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 || d > MaxLeave {
		return 0, fmt.Errorf("the annotation %s is %q: it has to be a duration between 0s and %s, such as 90s. The node stays until it is",
			LeaveAnnotation, value, MaxLeave)
	}
	return d, nil
}
