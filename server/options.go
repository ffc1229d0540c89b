// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/controllers"
	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/internal/reachability"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/localvolume"
	"github.com/coracle-k8s/coracle/scheduler"
	"github.com/coracle-k8s/coracle/server/admission"
	"github.com/coracle-k8s/coracle/server/apiserver"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/localcreds"
	"github.com/coracle-k8s/coracle/server/secrets"
	"github.com/coracle-k8s/coracle/vip"
)

// Options is everything a server is given. Folders are absolute and are made when missing.
type Options struct {
	// DataDir is named in messages; the folders below lie in it.
	DataDir string
	// ServerDir holds lock, identity and tokens.
	ServerDir string
	// TLSDir holds authorities and certificates, CredDir the encryption keys and what New makes for the API server.
	TLSDir, CredDir string
	// StoreDir is the store's.
	StoreDir string
	// StoreSocket is where the store speaks etcd's API; empty for nowhere.
	StoreSocket string
	// RunDir is for sockets of child processes; empty means the system's folder for temporary files.
	RunDir string
	// ManifestsDir is watched for manifests; empty switches that off.
	ManifestsDir string
	// AgentCredDir is where AgentCredentials puts what a node needs.
	AgentCredDir string

	// NodeName and NodeIPs are this machine's.
	NodeName string
	NodeIPs  []net.IP
	// OwnNode says that the machine is a node too: it gets the label of servers.
	OwnNode bool
	// BindAddress and Port are where the API server listens; a nil address means all.
	BindAddress net.IP
	Port        int
	// AdvertiseAddress is how other machines and pods reach it.
	AdvertiseAddress net.IP
	// ExternalIPs are addresses at which the machine is reached from outside its network.
	ExternalIPs []net.IP
	// VIPs are those that this server was started with; what the cluster keeps counts. VIPInterface is where they are
	// announced; empty for the interface whose network holds them.
	VIPs         []netip.Addr
	VIPInterface string
	// Redirect makes the machine's translations of virtual addresses these and no others (vip.SetRedirects); nil leaves
	// the machine alone.
	Redirect func([]vip.Redirect) error
	// TLSSANs are further names and addresses it is reached as.
	TLSSANs []string

	// Cluster is what all machines of the cluster agree on.
	Cluster clusterconfig.Settings
	// GivenBackend is what this server was given as --network-backend, empty for nothing: it says so when the cluster
	// has another one.
	GivenBackend string
	// NodePortRange is FIRST-LAST.
	NodePortRange string
	// Flags are those in which a server that joins has to agree with this one, by their names.
	Flags map[string]string

	// Join are addresses of the stores of a cluster's servers. A server whose store holds nothing yet joins that
	// cluster; admission.Join has fetched its keys before.
	Join []string
	// Renew, when set, fetches again what the cluster has replaced since this server asked to join, while the others
	// refuse it for that: see admission.Renew.
	Renew func(context.Context) error

	// Links are the machine's that lead to others, on which a server that finds no other one asks for them; nil means
	// none.
	Links func() ([]net.Interface, error)

	// Volumes are those of this machine's own node.
	Volumes *localvolume.Folders

	// Reach, when set, hears from gossip what says that a node may not be reached from this machine.
	Reach *reachability.Watch
	// Token and AgentToken are what an operator chose; see token.Options.
	Token, AgentToken string
	// EncryptResources are encrypted in the store, "secrets" among them; none switches encryption off.
	EncryptResources []string
	// Snapshots are taken of the whole cluster.
	Snapshots config.Snapshots
	// Kubeconfigs are the files in which an administrator finds access.
	Kubeconfigs []localcreds.Kubeconfig

	// Profile is apiserver.ProfileCIS or empty.
	Profile string
	// APIServerArgs and its siblings are upstream's flags as NAME=VALUE.
	APIServerArgs, ControllerManagerArgs, SchedulerArgs []string
	// FlexVolumePluginDir is where FlexVolume drivers are looked for.
	FlexVolumePluginDir string

	// LBPool are addresses for Services of type LoadBalancer; without any they get those of nodes.
	LBPool []loadbalancer.Range
	// LBReserved are ports that no Service gets at nodes' addresses, beside the cluster's own, as
	// loadbalancer.ParsePorts reads them.
	LBReserved []string

	// ConsoleListen is where browsers get the console, as ADDRESS:PORT; empty for nowhere.
	ConsoleListen string
	// ConsoleOIDC is how its users log in by OIDC, beside what APIServerArgs say.
	ConsoleOIDC config.ConsoleOIDC

	// WorkEnded, when set, is called when work has ended that leaves much garbage behind.
	WorkEnded func()

	// IngressRules are those by which Ingresses are served.
	IngressRules compile.Rules
	// HelmProgram finds coracle-tools, which has Helm; it is called when a chart is to be installed.
	HelmProgram func() (string, error)
	// ChartFolders are where charts lie that a HelmChart names by file; they need not be there.
	ChartFolders []string

	// ACME says where certificates of Ingresses come from; without an e-mail address none are ordered.
	ACME config.ACME

	// Small lowers numbers of workers for a machine of few cores.
	Small bool

	// Version is this program's, BuildTime when it was built (zero if unknown).
	Version   string
	BuildTime time.Time

	// Board, when set, shows how each component is.
	Board *status.Board
	// Clock is the time for certificates; nil means the machine's.
	Clock clock.WithTicker
	// Logger is the server's log; nil means slog's default.
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.HelmProgram == nil {
		o.HelmProgram = func() (string, error) { return "", errors.New("this server was given no program for Helm charts") }
	}
}

// validate finds mistakes before anything is touched.
func (o *Options) validate() error {
	var errs []error
	for _, f := range []struct{ name, value string }{
		{"ServerDir", o.ServerDir}, {"TLSDir", o.TLSDir}, {"CredDir", o.CredDir}, {"StoreDir", o.StoreDir}, {"NodeName", o.NodeName},
	} {
		if f.value == "" {
			errs = append(errs, fmt.Errorf("server.Options.%s is required", f.name))
		}
	}
	if o.AdvertiseAddress == nil {
		errs = append(errs, errors.New("server.Options.AdvertiseAddress is required"))
	}
	if err := o.Cluster.Validate(); err != nil {
		return errors.Join(append(errs, fmt.Errorf("the cluster's settings: %w", err))...)
	}
	return errors.Join(append(errs, o.CheckArgs())...)
}

// CheckArgs finds mistakes in the three lists of upstream's flags, without touching anything.
func (o *Options) CheckArgs() error {
	return errors.Join(apiserver.CheckArgs(o.APIServerArgs), o.controllerOptions(nil).Validate(), o.schedulerOptions().Validate())
}

func (o *Options) schedulerOptions() scheduler.Options {
	return scheduler.Options{ExtraArgs: o.SchedulerArgs}
}

// signing names the files with which certificate requests are signed; nil signs none.
type signing struct{ cert, key, root, serviceAccount string }

func (o *Options) controllerOptions(s *signing) controllers.Options {
	c := controllers.Options{
		ClusterCIDR:         clusterconfig.FlagValue(o.Cluster.PodCIDRs),
		ServiceCIDR:         clusterconfig.FlagValue(o.Cluster.ServiceCIDRs),
		FlexVolumePluginDir: o.FlexVolumePluginDir,
		Small:               o.Small,
		// The operator's come last, so that they count.
		ExtraArgs: append([]string{"node-monitor-grace-period=" + clusterconfig.GracePeriod.String()}, o.ControllerManagerArgs...),
	}
	if s != nil {
		c.ClusterSigningCertFile, c.ClusterSigningKeyFile = s.cert, s.key
		c.RootCAFile, c.ServiceAccountPrivateKeyFile = s.root, s.serviceAccount
	}
	return c
}

// tolerations are the API server's flags for how long pods stay on a node that is lost.
func (o *Options) tolerations() []string {
	wait := strconv.Itoa(o.Cluster.Toleration())
	return []string{"default-not-ready-toleration-seconds=" + wait, "default-unreachable-toleration-seconds=" + wait}
}

// servingIPs is every address under which a client may know the API server.
func (o *Options) servingIPs() ([]net.IP, error) {
	ips := slices.Concat([]net.IP{o.AdvertiseAddress}, o.NodeIPs, o.ExternalIPs)
	if localcreds.Bound(o.BindAddress) {
		ips = append(ips, o.BindAddress)
	}
	first, err := o.Cluster.APIAddresses()
	for _, a := range first {
		ips = append(ips, a.AsSlice())
	}
	return ips, err
}

// reserved are the networks in which no address of a machine lies: those of pods and Services.
func (o *Options) reserved() []netip.Prefix {
	return slices.Concat(o.Cluster.PodCIDRs, o.Cluster.ServiceCIDRs)
}

// ownNode is the name of this machine's own node; "" if it has none.
func (o *Options) ownNode() string {
	if o.OwnNode {
		return o.NodeName
	}
	return ""
}

func (o *Options) folders() secrets.Folders {
	return secrets.Folders{Server: o.ServerDir, TLS: o.TLSDir, Cred: o.CredDir}
}

// JoinRequest are the options of a request to join a cluster.
func (o Options) JoinRequest() admission.RequestOptions {
	o.setDefaults()
	return admission.RequestOptions{Folders: o.folders(), StoreDir: o.StoreDir, Version: o.Version, Clock: o.Clock, Logger: o.Logger}
}

func (o *Options) dataDir() datadir.Options {
	return datadir.Options{DataDir: o.DataDir, ServerDir: o.ServerDir, StoreDir: o.StoreDir, Version: o.Version}
}
