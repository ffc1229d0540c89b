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
	"path/filepath"
	"slices"
	"time"

	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/controllers"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/level"
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

// Options are a server's parameters.
type Options struct {
	// Server is the settings of this server. Its folders are created when missing.
	config.Server

	// GivenBackend is the value of --network-backend, empty if it was not given. The server logs it when the cluster
	// has another one.
	GivenBackend string

	// NodeIsOff, when set, says that this machine's node has failed and does not run. This server does not vouch for it
	// then, and the leader finds it dead as any other node.
	NodeIsOff func() bool
	// Redirect replaces all of the machine's translations of virtual addresses (vip.SetRedirects). Nil changes nothing
	// on the machine.
	Redirect func([]vip.Redirect) error

	// Join are the addresses of the stores of a cluster's servers. A server with an empty store joins that cluster.
	// Join has fetched the cluster's keys before.
	Join []string
	// Renew, when set, fetches again the files that the cluster has replaced since this server's join request, while
	// the others refuse it for that (RenewJoin).
	Renew func(context.Context) error

	// Level is the cluster's level at this start, as Level returns it.
	Level int

	// Links returns the machine's interfaces that lead to other machines. A server that finds no other server searches
	// for them there. Nil means none.
	Links func() ([]net.Interface, error)

	// Volumes are the local volumes of this machine's own node.
	Volumes *localvolume.Folders

	// Reach, when set, receives from gossip the reports that a node may not be reachable from this machine.
	Reach *reachability.Watch

	// WorkEnded, when set, is called after work that leaves much garbage for the collector.
	WorkEnded func()

	// HelmProgram is the path of coracle, which is the child process that installs a chart too. Charts fail without it.
	HelmProgram string

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
	o.Clock = cmp.Or[clock.WithTicker](o.Clock, clock.RealClock{})
	o.Logger, o.Level = cmp.Or(o.Logger, slog.Default()), cmp.Or(o.Level, level.Newest())
	if o.Cluster.Disabled.Has(clusterconfig.PartManifests) {
		o.ManifestsDir = ""
	}
}

// validate finds mistakes in the options before anything is changed.
func (o *Options) validate() error {
	var errs []error
	for _, f := range []struct{ name, value string }{
		{"ServerDir", o.ServerDir}, {"TLSDir", o.TLSDir}, {"CredDir", o.CredDir}, {"StoreDir", o.StoreDir}, {"Node.Name", o.Node.Name},
	} {
		if f.value == "" {
			errs = append(errs, fmt.Errorf("server.Options.%s is required", f.name))
		}
	}
	if !o.AdvertiseAddress.IsValid() {
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
		FlexVolumePluginDir: filepath.Join(o.AgentDir, "flexvolume"),
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

// servingIPs returns every IP address under which a client may know the API server.
func (o *Options) servingIPs() ([]net.IP, error) {
	ips := slices.Concat([]netip.Addr{o.AdvertiseAddress}, o.Node.IPs, o.Node.ExternalIPs)
	if localcreds.Bound(o.BindAddress.AsSlice()) {
		ips = append(ips, o.BindAddress)
	}
	first, err := o.Cluster.APIAddresses()
	return netIPs(append(ips, first...)), err
}

// netIPs converts addresses to the type that certificates use.
func netIPs(ips []netip.Addr) []net.IP {
	return convert.Slice(ips, func(ip netip.Addr) net.IP { return ip.AsSlice() })
}

// reserved returns the networks in which no machine has an address: those of pods and Services.
func (o *Options) reserved() []netip.Prefix {
	return slices.Concat(o.Cluster.PodCIDRs, o.Cluster.ServiceCIDRs)
}

// ownNode returns the name of this machine's own node, empty if it has none.
func (o *Options) ownNode() string {
	if o.DisableAgent {
		return ""
	}
	return o.Node.Name
}

func (o *Options) runsNode(node string) bool {
	return node != "" && node == o.ownNode() && (o.NodeIsOff == nil || !o.NodeIsOff())
}

func (o *Options) folders() secrets.Folders {
	return secrets.Folders{Server: o.ServerDir, TLS: o.TLSDir, Cred: o.CredDir}
}

func (o *Options) dataDir() datadir.Options {
	return datadir.Options{DataDir: o.DataDir, ServerDir: o.ServerDir, StoreDir: o.StoreDir, Version: o.Version, Level: o.Level}
}
