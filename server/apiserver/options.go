// SPDX-License-Identifier: Apache-2.0

// Package apiserver assembles upstream's Kubernetes API server (core APIs, CRDs, aggregation) as a library that serves
// in this process.
//
// It owns the server chain, its TLS port and the in-memory loopback client. It never makes certificates, keys or
// tokens. It never opens the store: the store's client is installed under upstream's storage layer before New is
// called. It runs no controllers beyond those that upstream runs inside the API server.
//
// Its goroutines: upstream's, and what waits for readiness and for the end; the settings, the ingress table and the
// metrics collector beside it.
package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/status"
)

// ServersOfService are the cluster's servers as endpoints of the kubernetes Service.
type ServersOfService struct {
	// Ready are the servers to which clients are sent. There are none on a server that does not lead. Such a
	// server writes nothing.
	Ready []netip.AddrPort
	// Unready are listed so that nodes let no Service have their addresses. No client is sent to them.
	Unready []netip.AddrPort
	// Mark, when set, adds to the context of each request that writes these endpoints, on the server's side, the term
	// of leadership in which the servers are known (see TermConfig).
	Mark func(context.Context) context.Context
}

// Options are New's parameters. Paths are to PEM files unless said otherwise. Certificates are reloaded when they
// change on disk.
type Options struct {
	// BindAddress and Port are where HTTPS is served. A nil BindAddress means 0.0.0.0.
	BindAddress net.IP
	Port        int
	// Listener, when set, is used instead of BindAddress and Port. Run closes it.
	Listener net.Listener
	// AdvertiseAddress is the address that other members and the endpoint of kubernetes.default use.
	AdvertiseAddress net.IP

	TLSCertFile, TLSKeyFile string
	ClientCAFile            string

	// Guard refuses revoked nodes. nil refuses none.
	Guard *nodecreds.Guard

	// ServiceAccountKeyFiles verify tokens. ServiceAccountSigningKeyFile signs them.
	ServiceAccountKeyFiles       []string
	ServiceAccountSigningKeyFile string
	// ServiceAccountIssuer is the URL in the tokens' iss claim.
	ServiceAccountIssuer string

	KubeletClientCertFile, KubeletClientKeyFile string
	KubeletCAFile                               string

	// RequestHeaderCAFile is the CA of the front proxy's client certificates. Their common names must be among
	// RequestHeaderAllowedNames.
	RequestHeaderCAFile                     string
	RequestHeaderAllowedNames               []string
	ProxyClientCertFile, ProxyClientKeyFile string

	// APIServer is the operator's settings. Cluster and ServerSettings are the cluster's. The node ports are
	// 30000-32767 when there is no range.
	config.APIServer
	Cluster clusterconfig.Settings
	clusterconfig.ServerSettings

	// EncryptionConfigFile is an EncryptionConfiguration, reloaded when it changes.
	EncryptionConfigFile string

	// ConfigDir is the directory for configuration files that New writes. It must exist.
	ConfigDir string

	// AnonymousHealthOnly lets anonymous requests reach only /livez, /readyz and /healthz.
	AnonymousHealthOnly bool

	// WatchCache puts upstream's watch cache in front of the store for every resource. Without it only the resources
	// that every node watches have one (cachedResources).
	WatchCache bool

	// EndpointAddresses returns the addresses and ports behind the kubernetes Service. When nil, AdvertiseAddress is
	// the only one. It is called twice a second.
	EndpointAddresses func() ServersOfService

	// Admission are the options of our admission plugins. When nil, only NodeRestriction limits what nodes may write.
	Admission *AdmissionOptions

	// Status, when set, serves status.ClusterPath.
	Status http.Handler
	// Clocks, when set, serves status.ClocksPath.
	Clocks http.Handler
	// Console, when set, serves status.ConsoleSettingPath.
	Console http.Handler

	// Events, when set, decides how long events live, and refuses new ones when a namespace has too many.
	Events EventLimits

	// Dial, when set, makes the connections to nodes and pods: to kubelets, to webhooks and API servers in the cluster,
	// and those of the proxy subresources of nodes, pods and Services.
	Dial utilnet.DialFunc

	// ForUser, when set, marks the context of a request that keeps a connection to a node open as long as its user
	// wants. Dial gets that context.
	ForUser func(context.Context) context.Context

	// GatewayUse says whether there are objects of the Gateway API. Nil leaves these out of the routing table of the
	// nodes' ingress proxies.
	GatewayUse gatewayapi.Use

	// MetricsPart, when set, shows the state of metrics.k8s.io.
	MetricsPart *status.Part

	// MetricsHistory, when set, serves clusterconfig.MetricsHistoryPath.
	MetricsHistory *MetricsHistory

	// Fence checks requests whose context carries a term of leadership, see TermConfig. It is nil when there are none.
	Fence Fence

	// Await, when set, returns nil once the store answers, or an error when it never will or ctx is done. Run calls it
	// before upstream's start-up hooks begin: these end the process when the store does not answer for a minute.
	Await func(ctx context.Context) error

	// AuditLog is the file to which ProfileCIS writes the audit log.
	AuditLog string

	Logger *slog.Logger

	unauthenticated int           // the limit of connections without an authenticated request; by the memory when 0
	seriesKept      time.Duration // how long metrics of deleted objects are kept; the constant of that name when 0
}

// storeServer is the server address in the configuration of upstream's storage layer. It is never dialled, as a store
// client is installed in its place. It must not be empty, or upstream treats the storage as not configured.
const storeServer = "http://127.0.0.1:2379"

func (o Options) withDefaults() Options {
	if o.BindAddress == nil {
		o.BindAddress = net.IPv4zero
	}
	o.NodePortRange = cmp.Or(o.NodePortRange, "30000-32767")
	o.seriesKept = cmp.Or(o.seriesKept, seriesKept)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	return o
}

func (o Options) validate() error {
	var errs []error
	for _, f := range []struct{ name, value string }{
		{"TLSCertFile", o.TLSCertFile}, {"TLSKeyFile", o.TLSKeyFile}, {"ClientCAFile", o.ClientCAFile},
		{"ServiceAccountSigningKeyFile", o.ServiceAccountSigningKeyFile}, {"ServiceAccountIssuer", o.ServiceAccountIssuer},
		{"ConfigDir", o.ConfigDir},
	} {
		if f.value == "" {
			errs = append(errs, fmt.Errorf("apiserver.Options.%s is required", f.name))
		}
	}
	if len(o.ServiceAccountKeyFiles) == 0 {
		errs = append(errs, errors.New("apiserver.Options.ServiceAccountKeyFiles is required"))
	}
	if n := len(o.Cluster.ServiceCIDRs); n < 1 || n > 2 {
		errs = append(errs, fmt.Errorf("apiserver.Options.Cluster.ServiceCIDRs: want one prefix, or one of each family, got %d", n))
	}
	if o.AdvertiseAddress == nil {
		errs = append(errs, errors.New("apiserver.Options.AdvertiseAddress is required"))
	}
	if o.Profile != "" && (o.Profile != ProfileCIS || o.AuditLog == "") {
		errs = append(errs, fmt.Errorf("apiserver.Options.Profile: want %s with an AuditLog, or none, got %q", ProfileCIS, o.Profile))
	}
	if o.Listener == nil && o.Port <= 0 {
		errs = append(errs, errors.New("apiserver.Options: one of Port and Listener is required"))
	}
	return errors.Join(errs...)
}
