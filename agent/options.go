// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/coracle-k8s/coracle/agent/containerd"
	"github.com/coracle-k8s/coracle/internal/status"
)

// defaultDataDir is where coracle lives unless told otherwise. A node there uses the system's own folders for what other
// programs look for: storage drivers want /var/lib/kubelet, log collectors /var/log/pods. A node elsewhere, which may be
// the second on its machine, keeps everything below its data directory.
const defaultDataDir = "/var/lib/coracle"

// Options describe one node. DataDir, RunDir, BinDir, the node's name and addresses, the credentials and the cluster's
// networks are required.
type Options struct {
	DataDir string // what must survive a reboot goes below DataDir/agent
	RunDir  string // what must not; on a tmpfs where there is one
	// BinDir holds the carried programs: runc, containerd-shim-runc-v2, coracle-cni, nft. It is written into containers'
	// records, so it should be a path that stays when the programs change.
	BinDir string
	// PauseTar is the archive with PauseImage. Both may be empty when PauseImage is another one that can be pulled.
	PauseTar, PauseImage string

	NodeName string
	NodeIPs  []net.IP
	Labels   map[string]string
	Taints   []string // key=value:Effect

	// Credentials, in files that are read again when they change. KubeletServingCert and KubeletServingKey may be one file.
	KubeletKubeconfig, NetworkKubeconfig  string
	KubeletServingCert, KubeletServingKey string
	ClientCAFile                          string

	ClusterCIDRs, ServiceCIDRs []netip.Prefix
	ClusterDNS                 []net.IP // the Service's addresses; empty for no cluster DNS
	ClusterDomain              string

	// RegistriesFile is the operator's registries.yaml; a missing file is none.
	RegistriesFile string
	// ImagesDir is the folder of image archives; empty means DataDir/images.
	ImagesDir string
	// StaticPodDir holds manifests of static pods; empty means DataDir/agent/pods.
	StaticPodDir string
	// ResolvConf is what pods inherit; empty means the host's.
	ResolvConf string
	// Snapshotter is "auto", "overlayfs" or "native".
	Snapshotter string
	// LeaseDuration: see kubelet.Options.
	LeaseDuration time.Duration
	KubeletArgs   []string // name=value
	// DisableProxy leaves Services to another proxy that the operator installs, and removes what ours left in the kernel.
	DisableProxy bool
	// NodePortAddresses are CIDRs of the local addresses that answer on node ports; empty means NodeIPs.
	NodePortAddresses []string

	Logger *slog.Logger
	// Board is where the node's parts report how they are; nil for nowhere.
	Board *status.Board
	// WaitAPI, when set, is called when containerd is up and before what needs the API server starts, so that both can
	// start at the same time. An error from it ends Run.
	WaitAPI func(ctx context.Context) error
	// Ready is called once, when the node has registered and is ready for pods.
	Ready func()
}

// paths are the folders that follow from the options.
type paths struct {
	agent, containerdRoot, containerdState, cniConf, cniState, cniSocket string
	registries, imageRecord, kubeletRoot, podLogs, dnsImports            string
	pauseRecord, proxyRecord                                             string
}

func (o Options) paths() paths {
	agent := filepath.Join(o.DataDir, "agent")
	p := paths{
		agent:           agent,
		containerdRoot:  filepath.Join(agent, "containerd"),
		containerdState: filepath.Join(o.RunDir, "containerd"),
		cniConf:         filepath.Join(agent, "cni", "net.d"),
		cniState:        filepath.Join(agent, "cni"),
		cniSocket:       filepath.Join(o.RunDir, "cni.sock"),
		registries:      filepath.Join(agent, "registries"),
		imageRecord:     filepath.Join(agent, "images.json"),
		pauseRecord:     filepath.Join(agent, "pause.json"),
		proxyRecord:     filepath.Join(o.RunDir, "service-proxy"),
		dnsImports:      filepath.Join(o.DataDir, "dns"),
		kubeletRoot:     "/var/lib/kubelet",
		podLogs:         "/var/log/pods",
	}
	if filepath.Clean(o.DataDir) != defaultDataDir {
		p.kubeletRoot = filepath.Join(agent, "kubelet")
		p.podLogs = filepath.Join(agent, "logs")
	}
	return p
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
	if o.ImagesDir == "" {
		o.ImagesDir = filepath.Join(o.DataDir, "images")
	}
	if o.StaticPodDir == "" {
		o.StaticPodDir = filepath.Join(o.DataDir, "agent", "pods")
	}
	if o.ClusterDomain == "" {
		o.ClusterDomain = "cluster.local"
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o, errors.Join(errs...)
}

func (o Options) containerd(auths map[string]containerd.RegistryAuth) containerd.Options {
	p := o.paths()
	return containerd.Options{
		Root: p.containerdRoot, State: p.containerdState, BinDir: o.BinDir, CNIBinDir: o.BinDir, CNIConfDir: p.cniConf,
		RegistryDir: p.registries, RegistryAuths: auths, PauseImage: o.PauseImage, Snapshotter: o.Snapshotter, Logger: o.Logger,
	}
}

// part is the named line on the board, or one that drops what it is told.
func (o Options) part(name string) *status.Part {
	if o.Board == nil {
		return nil
	}
	return o.Board.Part(name)
}
