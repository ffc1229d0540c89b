// SPDX-License-Identifier: Apache-2.0

// Package apiserver assembles upstream's Kubernetes API server (core APIs, CRDs,
// aggregation) as a library that serves from within this process.
//
// It owns the server chain, its TLS port and the in-memory loopback client. It
// never makes certificates, keys or tokens, never opens the store (the store's
// client is placed under upstream's storage layer before New is called) and
// runs no controllers beyond those that upstream runs inside the API server.
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

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/internal/status"
)

// ServersOfService are the cluster's servers, as they stand behind the kubernetes Service.
type ServersOfService struct {
	// Ready are those to which clients are sent. None mean that another server knows them better, and nothing is
	// changed.
	Ready []netip.AddrPort
	// Unready are there for the nodes, which let no Service take them. Nothing is sent to them.
	Unready []netip.AddrPort
	// Mark, when set, gives the context of each request that writes these, on the server's side, the term of leadership
	// in which they are known (see TermConfig).
	Mark func(context.Context) context.Context
}

// Options is everything New needs. Paths are to PEM files unless said
// otherwise; the certificates among them are reloaded when they change on disk.
type Options struct {
	// BindAddress and Port are where HTTPS is served; 0.0.0.0 when nil.
	BindAddress net.IP
	Port        int
	// Listener, when set, is used instead of BindAddress and Port. Run closes it.
	Listener net.Listener
	// AdvertiseAddress is what other members and the kubernetes.default endpoint use.
	AdvertiseAddress net.IP

	TLSCertFile, TLSKeyFile string
	ClientCAFile            string

	// ServiceAccountKeyFiles verify tokens, ServiceAccountSigningKeyFile signs them.
	ServiceAccountKeyFiles       []string
	ServiceAccountSigningKeyFile string
	// ServiceAccountIssuer is the URL in the tokens' iss claim.
	ServiceAccountIssuer string

	KubeletClientCertFile, KubeletClientKeyFile string
	KubeletCAFile                               string

	// RequestHeaderCAFile signs the front proxy's client certificates, whose
	// common names must be among RequestHeaderAllowedNames.
	RequestHeaderCAFile                     string
	RequestHeaderAllowedNames               []string
	ProxyClientCertFile, ProxyClientKeyFile string

	// ServiceCIDRs has one prefix, or one of each family.
	ServiceCIDRs []string
	// NodePortRange is FIRST-LAST; 30000-32767 when empty.
	NodePortRange string

	// EncryptionConfigFile is an EncryptionConfiguration, reloaded when it changes.
	EncryptionConfigFile string

	// ConfigDir is where configuration files made by New go. It must exist.
	ConfigDir string

	// AnonymousHealthOnly lets anonymous requests reach /livez, /readyz and /healthz and nothing else.
	AnonymousHealthOnly bool

	// WatchCache puts upstream's watch cache in front of the store for every resource. Without it only what every node
	// watches has one (cachedResources).
	WatchCache bool

	// EndpointAddresses lists the addresses and ports behind the kubernetes Service;
	// AdvertiseAddress alone when nil. It is asked twice a second.
	EndpointAddresses func() ServersOfService

	// NodeClaims bounds what nodes may say of themselves; nil leaves that to NodeRestriction.
	NodeClaims *NodeClaims

	// Status, when set, answers at status.ClusterPath.
	Status http.Handler
	// Console, when set, answers at status.ConsolePath.
	Console http.Handler

	// Dial, when set, connects to nodes and pods: to kubelets, to webhooks and API servers in the cluster, and for the
	// proxies of nodes, pods and Services.
	Dial utilnet.DialFunc

	// NoIngress leaves Ingresses out of the table of nodes' ingress proxies. GatewayUse says whether there are objects
	// of the Gateway API; without it these are left out.
	NoIngress  bool
	GatewayUse gatewayapi.Use

	// ResourceMetrics serves metrics.k8s.io; without it the group is left to the server that an APIService names.
	ResourceMetrics bool
	// MetricsPart, when set, shows how that goes.
	MetricsPart *status.Part

	// IngressRules are those by which Ingresses are compiled for nodes.
	IngressRules compile.Rules

	// Fence judges requests whose context carries a term of leadership, see
	// TermConfig; nil when there are none.
	Fence Fence

	// Await, when set, returns when the store answers, or with an error when it never will or ctx is done. Run asks it
	// before upstream's start-up hooks begin, which end the process when they find a store that does not answer for a
	// minute.
	Await func(ctx context.Context) error

	// Profile is ProfileCIS or empty; AuditLog is where that writes what was done by whom.
	Profile, AuditLog string

	// ExtraArgs are kube-apiserver flags as NAME=VALUE, applied last.
	ExtraArgs []string

	Logger *slog.Logger

	unauthenticated int           // the bound of connections without an authenticated request; by the memory when 0
	seriesKept      time.Duration // how long metrics of deleted objects are kept; the constant of that name when 0
}

// storeServer is what upstream's storage layer is configured to connect to. It is never
// dialled, as a store client is installed in its place; it must not be empty, or
// upstream treats the storage as not configured.
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
	if n := len(o.ServiceCIDRs); n < 1 || n > 2 {
		errs = append(errs, fmt.Errorf("apiserver.Options.ServiceCIDRs: want one prefix, or one of each family, got %d", n))
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
