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
	"github.com/coracle-k8s/coracle/server/apiserver"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/localcreds"
	"github.com/coracle-k8s/coracle/server/secrets"
	"github.com/coracle-k8s/coracle/vip"
)

// Options are a server's parameters. Folders are absolute paths and are created when missing.
type Options struct {
	// DataDir is named in messages. The folders below are in it.
	DataDir string
	// ServerDir contains the lock, the identity and the tokens.
	ServerDir string
	// TLSDir contains CAs and certificates. CredDir contains the encryption keys and the files that New makes for the
	// API server.
	TLSDir, CredDir string
	// StoreDir is the store's folder.
	StoreDir string
	// StoreSocket is the socket at which the store serves etcd's API. Empty means no socket.
	StoreSocket string
	// RunDir is the folder for sockets of child processes. Empty means the system's folder for temporary files.
	RunDir string
	// ManifestsDir is watched for manifests. Empty disables that.
	ManifestsDir string
	// AgentCredDir is the folder into which AgentCredentials writes a node's credentials.
	AgentCredDir string

	// NodeName and NodeIPs are this machine's.
	NodeName string
	NodeIPs  []net.IP
	// OwnNode says that the machine is a node too. Its Node then gets the label of servers.
	OwnNode bool
	// NodeIsOff, when set, says that this machine's node has failed and does not run. This server does not vouch for it
	// then, and the leader finds it dead as any other node.
	NodeIsOff func() bool
	// BindAddress and Port are where the API server listens. A nil address means all addresses.
	BindAddress net.IP
	Port        int
	// AdvertiseAddress is the address at which other machines and pods reach the API server.
	AdvertiseAddress net.IP
	// ExternalIPs are addresses at which the machine is reached from outside its network.
	ExternalIPs []net.IP
	// VIPs are the virtual IPs that this server was started with. Those stored in the cluster take precedence.
	// VIPInterface is the interface that announces them. Empty means the interface whose network contains them.
	VIPs         []netip.Addr
	VIPInterface string
	// Redirect replaces all of the machine's translations of virtual addresses (vip.SetRedirects). Nil changes nothing
	// on the machine.
	Redirect func([]vip.Redirect) error
	// TLSSANs are further names and addresses for the API server's certificate.
	TLSSANs []string

	// Cluster is the settings in which all machines of the cluster agree.
	Cluster clusterconfig.Settings
	// GivenBackend is the value of --network-backend, empty if it was not given. The server logs it when the cluster
	// has another one.
	GivenBackend string
	// ServerSettings is the settings in which all servers agree.
	clusterconfig.ServerSettings
	// Flags are the flags in which a joining server has to agree with this one, by their names.
	Flags map[string]string

	// Join are the addresses of the stores of a cluster's servers. A server with an empty store joins that cluster.
	// Join has fetched the cluster's keys before.
	Join []string
	// Renew, when set, fetches again the files that the cluster has replaced since this server's join request, while
	// the others refuse it for that (RenewJoin).
	Renew func(context.Context) error

	// Links returns the machine's interfaces that lead to other machines. A server that finds no other server searches
	// for them there. Nil means none.
	Links func() ([]net.Interface, error)

	// Volumes are the local volumes of this machine's own node.
	Volumes *localvolume.Folders

	// Reach, when set, receives from gossip the reports that a node may not be reachable from this machine.
	Reach *reachability.Watch
	// Token and AgentToken are the tokens that an operator chose (token.Options).
	Token, AgentToken string
	// Snapshots are the settings for snapshots of the whole cluster.
	Snapshots config.Snapshots
	// Kubeconfigs are the kubeconfig files for administrators.
	Kubeconfigs []localcreds.Kubeconfig

	// Profile is apiserver.ProfileCIS or empty.
	Profile string
	// APIServerArgs, ControllerManagerArgs and SchedulerArgs are upstream's flags as NAME=VALUE.
	APIServerArgs, ControllerManagerArgs, SchedulerArgs []string
	// FlexVolumePluginDir is the folder of FlexVolume drivers.
	FlexVolumePluginDir string

	// LBPool are addresses for Services of type LoadBalancer. Without any, these Services get nodes' addresses.
	LBPool []loadbalancer.Range
	// LBReserved are ports that no Service gets at nodes' addresses, beside the cluster's own ports
	// (loadbalancer.ParsePorts).
	LBReserved []string

	// ConsoleListen is where the console is served, as ADDRESS:PORT. Empty disables it.
	ConsoleListen string
	// MetricsHistory keeps the CPU and memory use of nodes and pods of the last day while this server leads.
	MetricsHistory bool

	// ConsoleOIDC are the settings by which the console's users log in by OIDC, beside those in APIServerArgs.
	ConsoleOIDC config.ConsoleOIDC

	// WorkEnded, when set, is called after work that leaves much garbage for the collector.
	WorkEnded func()

	// IngressRules are the rules by which Ingresses are served.
	IngressRules compile.Rules
	// HelmProgram is the path of coracle, which is the child process that installs a chart too. Charts fail without it.
	HelmProgram string
	// ChartFolders are the folders with charts that a HelmChart names by file. They need not exist.
	ChartFolders []string

	// ACME are the settings for certificates of Ingresses. Without an e-mail address none are ordered.
	ACME config.ACME

	// Small lowers the number of workers for a machine of few cores.
	Small bool

	// Version is the version of this program. BuildTime is when it was built, zero if unknown.
	Version   string
	BuildTime time.Time

	// Board, when set, shows the state of each component.
	Board *status.Board
	// Clock is the clock for certificates. Nil means the machine's.
	Clock clock.WithTicker
	// Logger is the server's log. Nil means slog's default.
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
}

// validate finds mistakes in the options before anything is changed.
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

// CheckArgs finds mistakes in the three lists of upstream's flags, without changing anything.
func (o *Options) CheckArgs() error {
	return errors.Join(apiserver.CheckArgs(o.APIServerArgs), o.controllerOptions(nil).Validate(), o.schedulerOptions().Validate())
}

func (o *Options) schedulerOptions() scheduler.Options {
	return scheduler.Options{ExtraArgs: o.SchedulerArgs}
}

// signing names the files with which certificate requests are signed. A nil signing signs none.
type signing struct{ cert, key, root, serviceAccount string }

func (o *Options) controllerOptions(s *signing) controllers.Options {
	c := controllers.Options{
		ClusterCIDR:         clusterconfig.FlagValue(o.Cluster.PodCIDRs),
		ServiceCIDR:         clusterconfig.FlagValue(o.Cluster.ServiceCIDRs),
		FlexVolumePluginDir: o.FlexVolumePluginDir,
		Toleration:          time.Duration(o.Cluster.Toleration()) * time.Second,
		Small:               o.Small,
		// The operator's flags come last, so that they take precedence.
		ExtraArgs: append([]string{"node-monitor-grace-period=" + clusterconfig.GracePeriod.String()}, o.ControllerManagerArgs...),
	}
	if s != nil {
		c.ClusterSigningCertFile, c.ClusterSigningKeyFile = s.cert, s.key
		c.RootCAFile, c.ServiceAccountPrivateKeyFile = s.root, s.serviceAccount
	}
	return c
}

// tolerations returns the API server's flags for how long pods stay on a lost node.
func (o *Options) tolerations() []string {
	wait := strconv.Itoa(o.Cluster.Toleration())
	return []string{"default-not-ready-toleration-seconds=" + wait, "default-unreachable-toleration-seconds=" + wait}
}

// servingIPs returns every IP address under which a client may know the API server.
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

// reserved returns the networks in which no machine has an address: those of pods and Services.
func (o *Options) reserved() []netip.Prefix {
	return slices.Concat(o.Cluster.PodCIDRs, o.Cluster.ServiceCIDRs)
}

// ownNode returns the name of this machine's own node, empty if it has none.
func (o *Options) ownNode() string {
	if o.OwnNode {
		return o.NodeName
	}
	return ""
}

// runsNode says whether a node runs in this process.
func (o *Options) runsNode(node string) bool {
	return node != "" && node == o.ownNode() && (o.NodeIsOff == nil || !o.NodeIsOff())
}

func (o *Options) folders() secrets.Folders {
	return secrets.Folders{Server: o.ServerDir, TLS: o.TLSDir, Cred: o.CredDir}
}

func (o *Options) dataDir() datadir.Options {
	return datadir.Options{DataDir: o.DataDir, ServerDir: o.ServerDir, StoreDir: o.StoreDir, Version: o.Version}
}
