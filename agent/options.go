// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/agent/containerd"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/reachability"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/localvolume"
)

// Options describe one node. DataDir, RunDir, BinDir, the node's name and addresses, the credentials and the cluster's
// networks are required.
type Options struct {
	DataDir string // what must survive a reboot goes below DataDir/agent
	RunDir  string // what must not; on a tmpfs where there is one
	// BinDir holds the embedded programs: runc, containerd-shim-runc-v2, coracle-cni, nft. It is written into
	// containers' records, so it should be a path that stays when the programs change.
	BinDir string
	// PauseTar is the archive with PauseImage. Both may be empty when PauseImage is another one that can be pulled.
	PauseTar, PauseImage string

	NodeName string
	NodeIPs  []netip.Addr
	// ExternalIPs are addresses at which the node is reached from outside its network; the machine need not have them
	// itself.
	ExternalIPs []netip.Addr
	Labels      map[string]string
	Taints      []corev1.Taint

	// Credentials, in files that are read again when they change. KubeletServingCert and KubeletServingKey may be one
	// file.
	KubeletKubeconfig, NetworkKubeconfig  string
	KubeletServingCert, KubeletServingKey string
	ClientCAFile                          string

	ClusterCIDRs, ServiceCIDRs []netip.Prefix
	ClusterDNS                 []netip.Addr // the Service's addresses; empty for no cluster DNS
	ClusterDomain              string

	// RegistriesFile is the operator's registries.yaml; a missing file is none.
	RegistriesFile string
	// ResolvConf is what pods inherit; empty means the host's.
	ResolvConf string
	// Snapshotter is "auto", "overlayfs" or "native".
	Snapshotter string
	KubeletArgs []string // name=value
	// DisableProxy leaves Services to another proxy that the operator installs, and removes what ours left in the
	// kernel.
	DisableProxy bool
	// DisablePolicies leaves NetworkPolicies to another program, or to none, and removes what was made for them in the
	// kernel.
	DisablePolicies bool
	// DisableIngress leaves Ingresses and Gateways to something that the operator installs, or to nothing.
	DisableIngress bool
	// NodePortAddresses are CIDRs of the local addresses that answer on node ports; empty means NodeIPs.
	NodePortAddresses []string
	// ProxyMode and IPVSScheduler: see proxy.Options.
	ProxyMode, IPVSScheduler string
	// ReservedAddresses are the cluster's own beside the nodes', and Port is where other machines reach this one: no
	// Service may take them.
	ReservedAddresses []netip.Addr
	Port              int
	// LocalPort is that of 127.0.0.1 at which the node reaches the API through any server; 0 beside a server.
	LocalPort int
	// ConsolePort is that of the web console of a server on this machine; 0 for none.
	ConsolePort uint16

	// NetworkBackend is one of clusterconfig.NetworkBackends; empty means the default.
	NetworkBackend string
	// NetworkInterface names the interface for traffic between nodes' pods, or is a pattern; empty means the one that
	// has NodeIPs.
	NetworkInterface string
	// NetworkExternal has other nodes send packets for this one's pods to ExternalIPs.
	NetworkExternal bool

	// PodSubnets, when set, is called with the addresses that the node's pods have, once they are known.
	PodSubnets func([]netip.Prefix)

	// Volumes, when set, are where local volumes lie on this node.
	Volumes *localvolume.Folders

	// Reach, when set, finds out which nodes this one cannot reach.
	Reach *reachability.Watch

	Logger *slog.Logger
	// Board is where the node's parts report how they are; nil for nowhere.
	Board *status.Board
	// Servers, when set, lists the servers to which the node keeps a connection, as host:port.
	Servers func() []string
	// ServerAnswered, when set, is called each time that one of them has answered; see tunnels.Options.
	ServerAnswered func(server string, itself bool)
	// ServerEnded, when set, is called each time that one of them has ended its connection.
	ServerEnded func(server string)
	// OtherWays are ways to the API beside the kubelet's, with an identity that may write the node's status.
	OtherWays func() []*rest.Config
	// NodePair and ServerCAFile are the credentials for that: the node's certificate with its key, and the servers'
	// authority.
	NodePair, ServerCAFile string
	// WaitAPI, when set, is called when containerd is up and before what needs the API server starts, so that both can
	// start at the same time. An error from it ends Run.
	WaitAPI func(ctx context.Context) error
	// WaitServing, when set, is what the kubelet of a new node waits for instead: that the API server takes requests,
	// though it may not be ready.
	WaitServing func(ctx context.Context) error

	refused      *atomic.Bool // the API server refuses the node's credentials
	kubeletPorts []uint16     // at which the node's kubelet listens; Run finds them out
}

// paths are the folders that follow from the options: those that the commands know too, and the node's own.
type paths struct {
	config.Paths
	cniConf, cniState, registries, dnsImports, staticPods string
	imageRecord, pauseRecord, proxyRecord, policyRules    string
}

func (o Options) paths() paths {
	p := config.NewPaths(o.DataDir, o.RunDir)
	return paths{
		Paths:       p,
		cniConf:     filepath.Join(p.AgentDir, "cni", "net.d"),
		cniState:    filepath.Join(p.AgentDir, "cni"),
		registries:  filepath.Join(p.AgentDir, "registries"),
		dnsImports:  filepath.Join(p.DataDir, "dns"),
		staticPods:  filepath.Join(p.AgentDir, "pods"),
		imageRecord: filepath.Join(p.AgentDir, "images.json"),
		pauseRecord: filepath.Join(p.AgentDir, "pause.json"),
		proxyRecord: nft.ServiceRecordIn(p.RunDir),
		policyRules: filepath.Join(p.RunDir, "network-policies.nft"),
	}
}

// complete fills in what may be left out and finds what may not.
func (o Options) complete() (Options, error) {
	var errs []error
	for name, missing := range map[string]bool{
		"DataDir": o.DataDir == "", "RunDir": o.RunDir == "", "BinDir": o.BinDir == "", "PauseImage": o.PauseImage == "",
		"NodeName": o.NodeName == "", "NodeIPs": len(o.NodeIPs) == 0, "KubeletKubeconfig": o.KubeletKubeconfig == "",
		"NetworkKubeconfig": o.NetworkKubeconfig == "", "KubeletServingCert": o.KubeletServingCert == "",
		"KubeletServingKey": o.KubeletServingKey == "", "ClientCAFile": o.ClientCAFile == "", "ClusterCIDRs": len(o.ClusterCIDRs) == 0,
	} {
		if missing {
			errs = append(errs, fmt.Errorf("agent: option %s is missing", name))
		}
	}
	if len(o.ExternalIPs) > 0 && slices.ContainsFunc(o.KubeletArgs,
		func(a string) bool { name, _, given := kubecompat.Cut(a); return given && name == "cloud-provider" }) {
		errs = append(errs, errors.New("agent: --node-external-ip and --kubelet-arg cloud-provider exclude one another: a cloud "+
			"provider's controller sets the node's addresses"))
	}
	o.ClusterDomain = cmp.Or(o.ClusterDomain, "cluster.local")
	o.NetworkBackend = cmp.Or(o.NetworkBackend, clusterconfig.NetworkBackends[0])
	o.Logger = cmp.Or(o.Logger, slog.Default())
	o.refused = new(atomic.Bool)
	return o, errors.Join(errs...)
}

func (o Options) containerd(auths map[string]containerd.RegistryAuth) containerd.Options {
	p := o.paths()
	cniBin, cniConf := o.BinDir, p.cniConf
	if o.NetworkBackend == clusterconfig.NetworkNone { // where other plugins put their programs and configuration
		cniBin, cniConf = "/opt/cni/bin", "/etc/cni/net.d"
	}
	return containerd.Options{
		Root: p.ContainerdRoot, State: p.ContainerdState, BinDir: o.BinDir, CNIBinDir: cniBin, CNIConfDir: cniConf,
		RegistryDir: p.registries, RegistryAuths: auths, PauseImage: o.PauseImage, Snapshotter: o.Snapshotter, Logger: o.Logger,
	}
}

// kubeletWaits is what the kubelet waits for: ready is closed when WaitAPI has returned, which is called once.
func (o Options) kubeletWaits(ready <-chan struct{}) func(context.Context) error {
	if o.WaitServing != nil && o.isNew() {
		return o.WaitServing
	}
	return func(ctx context.Context) error {
		select {
		case <-ready:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// isNew says whether the node has had no network yet, and so no pods. One that has some waits until the API server is
// ready: a kubelet that cannot write its CSINode object at once reports that its node is not ready, and then Services
// leave the node's pods out. Where another plugin makes the network, nothing here says whether the node had one.
func (o Options) isNew() bool {
	if o.NetworkBackend == clusterconfig.NetworkNone {
		return false
	}
	entries, err := os.ReadDir(o.paths().cniConf)
	return len(entries) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist))
}

// part is the named line on the board, or one that drops what it receives.
func (o Options) part(name string) *status.Part {
	if o.Board == nil {
		return nil
	}
	return o.Board.Part(name)
}
