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

	"k8s.io/client-go/rest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-k8s/coracle/agent/containerd"
	"github.com/coracle-k8s/coracle/agent/records"
	"github.com/coracle-k8s/coracle/agent/registries"
	"github.com/coracle-k8s/coracle/agent/runtimes"
	"github.com/coracle-k8s/coracle/content"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/podkill"
	"github.com/coracle-k8s/coracle/internal/reachability"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/localvolume"
)

// Options describe one node. DataDir, RunDir, BinDir, the node's name and addresses, the credentials and the cluster's
// networks are required.
type Options struct {
	DataDir string // what must survive a reboot is below DataDir/agent
	RunDir  string // what must not survive a reboot; on a tmpfs where there is one
	// BinDir holds the embedded programs: runc, containerd-shim-runc-v2, coracle-cni, nft. Containers' records contain
	// this path, so it should stay the same when the programs change.
	BinDir string
	// PauseTar is the archive with PauseImage, which is required. It is empty when PauseImage is another image that can
	// be pulled.
	PauseTar string

	// Node is the operator's settings. Cluster is the cluster's.
	config.Node
	Cluster clusterconfig.Settings

	// Credentials, in files that are read again when they change. One file may be both KubeletServingCert and
	// KubeletServingKey.
	KubeletKubeconfig, NetworkKubeconfig  string
	KubeletServingCert, KubeletServingKey string
	ClientCAFile                          string

	// Port is the port at which other machines reach this one. No Service may take it.
	Port int
	// LocalPort is the port of 127.0.0.1 at which the node reaches the API through any server. It is 0 beside a server.
	LocalPort int
	// ConsolePort is the port of the web console of a server on this machine. It is 0 for none.
	ConsolePort uint16

	// PodSubnets, when set, is called with the networks of the node's pods, once they are known.
	PodSubnets func([]netip.Prefix)

	// Volumes, when set, are the folders of local volumes on this node.
	Volumes *localvolume.Folders

	// Content, when set, is the machine's part in sharing the content of images with other machines.
	Content *content.Machine

	// Reach, when set, finds out which nodes this one cannot reach.
	Reach *reachability.Watch

	Logger *slog.Logger
	// Board shows the state of the node's parts. It may be nil.
	Board *status.Board
	// Servers, when set, lists the servers to which the node keeps a connection, as host:port.
	Servers func() []string
	// ServerAnswered, when set, is called each time that one of Servers has replied; see tunnels.Options.
	ServerAnswered func(server string, itself bool)
	// ServerEnded, when set, is called each time that one of Servers has ended its connection.
	ServerEnded func(server string)
	// ServerReadiness, when set, is called when one of Servers reports its readiness; see tunnels.Options.
	ServerReadiness func(server, reason string)
	// FallbackConfigs returns client configurations for the API beside the kubelet's. Their identity may write the
	// node's status.
	FallbackConfigs func() []*rest.Config
	// NodePair and ServerCAFile are the credentials for the connections to Servers: the node's certificate with its
	// key, and the servers' authority.
	NodePair, ServerCAFile string
	// WaitAPI, when set, is called when containerd is ready and before the parts that need the API server start, so
	// that server and containerd can start at the same time. An error from it ends Run.
	WaitAPI func(ctx context.Context) error
	// WaitServing, when set, is what the kubelet of a new node waits for, and not for WaitAPI: the API server takes
	// requests then, but may not be ready.
	WaitServing func(ctx context.Context) error

	// KubeletCopies is kubelet.Options.StateCopies.
	KubeletCopies string
	// ImageNotes is called on a server with a function that returns sentences about images that servers have imported,
	// and with nil when the node ends. It is required where Content is set.
	ImageNotes func(notes func(context.Context) []string)
	// FailedShims, when set, is called with how many shims containerd could not load, unless that is 0.
	FailedShims func(int)

	// Shutdown, when set, can stop the node's pods when its machine goes down. It is for one run.
	Shutdown *Shutdown

	refused  *atomic.Bool                              // the API server refuses the node's credentials
	pullAuth func(image string) *runtimeapi.AuthConfig // of the file of registries; Run sets it
	// fetchImage is kubelet.Options.FetchImage. Run sets it.
	fetchImage   func(ctx context.Context, image string) bool
	kubeletPorts []uint16 // the ports on which the node's kubelet listens; Run finds them out

	runtimes []runtimes.Runtime // installed beside the embedded runc; Run finds them
}

// paths are the folders that follow from the options: those that the commands know too, and those of the node alone.
type paths struct {
	config.Paths
	cniConf, cniState, registries, dnsImports, staticPods            string
	imageRecord, pauseRecord, proxyRecord, policyRules, nodeSettings string
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
		pauseRecord: filepath.Join(p.AgentDir, "pause.json"), nodeSettings: filepath.Join(p.AgentDir, "node-settings.json"),
		proxyRecord: nft.ServiceRecordIn(p.RunDir),
		policyRules: filepath.Join(p.RunDir, "network-policies.nft"),
	}
}

// complete sets the defaults of optional fields. It returns an error for each required field that is missing.
func (o Options) complete() (Options, error) {
	var errs []error
	for name, missing := range map[string]bool{
		"DataDir": o.DataDir == "", "RunDir": o.RunDir == "", "BinDir": o.BinDir == "", "PauseImage": o.PauseImage == "",
		"Name": o.Name == "", "IPs": len(o.IPs) == 0, "KubeletKubeconfig": o.KubeletKubeconfig == "",
		"NetworkKubeconfig": o.NetworkKubeconfig == "", "KubeletServingCert": o.KubeletServingCert == "",
		"KubeletServingKey": o.KubeletServingKey == "", "ClientCAFile": o.ClientCAFile == "",
		"Cluster.PodCIDRs": len(o.Cluster.PodCIDRs) == 0,
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
	o.Cluster.Domain = cmp.Or(o.Cluster.Domain, clusterconfig.DefaultDomain)
	o.Cluster.NetworkBackend = o.Cluster.Backend()
	o.Logger = cmp.Or(o.Logger, slog.Default())
	o.refused = new(atomic.Bool)
	if o.Shutdown == nil {
		o.Shutdown = NewShutdown()
	}
	return o, errors.Join(errs...)
}

// clusterDNS returns the addresses of the cluster's DNS, none without it.
func (o Options) clusterDNS() []netip.Addr {
	if !o.Cluster.DNS.IsValid() {
		return nil
	}
	return []netip.Addr{o.Cluster.DNS}
}

// servesPolicies says whether the node enforces NetworkPolicies. Another pod network has its own enforcement, too.
func (o Options) servesPolicies() bool {
	return !o.Cluster.Disabled.Has(clusterconfig.PartNetworkPolicy) && o.Cluster.NetworkBackend != clusterconfig.NetworkNone
}

func (o Options) containerd(auths map[string]registries.Auth) containerd.Options {
	p := o.paths()
	cniBin, cniConf := o.BinDir, p.cniConf
	if o.Cluster.NetworkBackend == clusterconfig.NetworkNone { // where other plugins put their programs and configuration
		cniBin, cniConf = "/opt/cni/bin", "/etc/cni/net.d"
	}
	return containerd.Options{
		Root: p.ContainerdRoot, State: p.ContainerdState, BinDir: o.BinDir, CNIBinDir: cniBin, CNIConfDir: cniConf,
		RegistryDir: p.registries, RegistryAuths: auths, PauseTar: o.PauseTar,
		Runtime: o.Runtime, Runtimes: o.runtimes, Logger: o.Logger,
		Records: &records.Records{Logger: o.Logger,
			Node: podkill.Node{Root: p.ContainerdRoot, State: p.ContainerdState, BinDir: p.BinDir}},
	}
}

// kubeletWaits returns what the kubelet waits for. ready is closed when WaitAPI, which is called once, has returned.
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

// isNew reports whether the node has had no network yet, and so no pods. The kubelet of a node with pods waits until
// the API server is ready: a kubelet that cannot write its CSINode object at once reports that its node is not ready,
// and then Services remove the node's pods. Where another plugin makes the network, it is not known whether the node
// had one.
func (o Options) isNew() bool {
	if o.Cluster.NetworkBackend == clusterconfig.NetworkNone {
		return false
	}
	entries, err := os.ReadDir(o.paths().cniConf)
	return len(entries) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist))
}

// statusPart returns the status line with that name, or one that drops what it receives where there is no board.
func (o Options) statusPart(name string) *status.Part {
	if o.Board == nil {
		return nil
	}
	return o.Board.Part(name)
}
