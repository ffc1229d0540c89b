// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"strings"
	"time"

	"k8s.io/utils/clock"
	netutils "k8s.io/utils/net"

	"github.com/coracle-k8s/coracle/controllers"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/scheduler"
	"github.com/coracle-k8s/coracle/server/apiserver"
	"github.com/coracle-k8s/coracle/server/datadir"
)

// Options is everything a server is told. Folders are absolute and are made when missing.
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
	// ManifestsDir is watched for manifests; empty switches that off.
	ManifestsDir string
	// AgentCredDir is where AgentCredentials puts what a node needs.
	AgentCredDir string

	// NodeName and NodeIPs are this machine's.
	NodeName string
	NodeIPs  []net.IP
	// BindAddress and Port are where the API server listens; a nil address means all.
	BindAddress net.IP
	Port        int
	// AdvertiseAddress is how other machines and pods reach it.
	AdvertiseAddress net.IP
	// TLSSANs are further names and addresses it is reached as.
	TLSSANs []string

	// ClusterCIDRs and ServiceCIDRs have one network, or one of each family in the same order.
	ClusterCIDRs, ServiceCIDRs []*net.IPNet
	// NodePortRange is FIRST-LAST.
	NodePortRange string
	// ClusterDNS is the address of the cluster's DNS; nil when that is disabled.
	ClusterDNS net.IP
	// ClusterDomain is cluster.local or what an operator chose.
	ClusterDomain string

	// Token and AgentToken are what an operator chose; see token.Options.
	Token, AgentToken string
	// EncryptResources are encrypted in the store, "secrets" among them; none switches encryption off.
	EncryptResources []string
	// Kubeconfigs are the files in which an administrator finds access.
	Kubeconfigs []Kubeconfig

	// APIServerArgs and its siblings are upstream's flags as NAME=VALUE.
	APIServerArgs, ControllerManagerArgs, SchedulerArgs []string
	// FlexVolumePluginDir is where FlexVolume drivers are looked for.
	FlexVolumePluginDir string
	// NodeGrace is how long a node may be silent before it counts as lost; zero means upstream's time. It has to be
	// longer than what the nodes' leases last.
	NodeGrace time.Duration

	// Small lowers numbers of workers for a machine of few cores.
	Small bool
	// WatchCache keeps upstream's watch caches in front of the store.
	WatchCache bool

	// Version is this program's, BuildTime when it was built (zero if unknown).
	Version   string
	BuildTime time.Time

	// Board, when set, is told how each part is.
	Board *status.Board
	// Clock is the time for certificates; nil means the machine's.
	Clock clock.WithTicker
	// Logger is the server's log; nil means slog's default.
	Logger *slog.Logger
}

// Kubeconfig is an administrator's kubeconfig.
type Kubeconfig struct {
	Path string
	Mode fs.FileMode
	GID  int // the group it belongs to; 0 or less leaves it root's
}

func (o *Options) setDefaults() {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.ClusterDomain == "" {
		o.ClusterDomain = "cluster.local"
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
	if o.AdvertiseAddress == nil || len(o.ServiceCIDRs) == 0 || len(o.ClusterCIDRs) == 0 {
		errs = append(errs, errors.New("server.Options: AdvertiseAddress, ServiceCIDRs and ClusterCIDRs are required"))
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
		ClusterCIDR:         joinCIDRs(o.ClusterCIDRs),
		ServiceCIDR:         joinCIDRs(o.ServiceCIDRs),
		FlexVolumePluginDir: o.FlexVolumePluginDir,
		Small:               o.Small,
		ExtraArgs:           o.ControllerManagerArgs,
	}
	if o.NodeGrace > 0 { // first, so that an operator's own word counts
		c.ExtraArgs = append([]string{"node-monitor-grace-period=" + o.NodeGrace.String()}, o.ControllerManagerArgs...)
	}
	if s != nil {
		c.ClusterSigningCertFile, c.ClusterSigningKeyFile = s.cert, s.key
		c.RootCAFile, c.ServiceAccountPrivateKeyFile = s.root, s.serviceAccount
	}
	return c
}

func joinCIDRs(nets []*net.IPNet) string {
	var out []string
	for _, n := range nets {
		out = append(out, n.String())
	}
	return strings.Join(out, ",")
}

// servingIPs is every address under which a client may know the API server.
func (o *Options) servingIPs() ([]net.IP, error) {
	ips := append([]net.IP{o.AdvertiseAddress}, o.NodeIPs...)
	if o.BindAddress != nil && !o.BindAddress.IsUnspecified() {
		ips = append(ips, o.BindAddress)
	}
	for _, n := range o.ServiceCIDRs {
		first, err := netutils.GetIndexedIP(n, 1)
		if err != nil {
			return nil, fmt.Errorf("the service network %s is too small: %w", n, err)
		}
		ips = append(ips, first)
	}
	return ips, nil
}

func (o *Options) dataDir() datadir.Options {
	return datadir.Options{DataDir: o.DataDir, ServerDir: o.ServerDir, StoreDir: o.StoreDir, Version: o.Version}
}
