// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"log/slog"
	"net"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/egressselector"
	"k8s.io/apiserver/pkg/server/filters"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/controlplane"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
	"k8s.io/kubernetes/pkg/kubeapiserver"

	"github.com/coracle-k8s/coracle/server/apiserver/memtransport"
)

// informerResync is upstream's resync period for the API server's own informers.
const informerResync = 10 * time.Minute

// generic has the configuration that the three API servers of the chain share.
type generic struct {
	config    *genericapiserver.Config
	informers informers.SharedInformerFactory
	storage   *serverstorage.DefaultStorageFactory
	transport *memtransport.Transport // of the loopback client
	rbac      bool                    // RBAC is one of the authorizers
}

// buildGeneric does what upstream's BuildGenericConfig does, in the same order,
// with our loopback client and without the OpenAPI v2 definitions.
func buildGeneric(opts kubeoptions.CompletedOptions, transport *memtransport.Transport, token string, dial utilnet.DialFunc,
	ready <-chan struct{}, logger *slog.Logger) (*generic, error) {
	c := genericapiserver.NewConfig(legacyscheme.Codecs)
	resources := controlplane.DefaultAPIResourceConfigSource()
	c.MergedResourceConfig = resources
	if err := opts.GenericServerRunOptions.ApplyTo(c); err != nil {
		return nil, fmt.Errorf("applying run options: %w", err)
	}
	// Not SecureServing itself: it would also make a certificate for a loopback client, and ours needs none.
	if err := opts.SecureServing.SecureServingOptions.ApplyTo(&c.SecureServing); err != nil {
		return nil, fmt.Errorf("opening the API server's port: %w", err)
	}
	loopback, err := loopbackConfig(c.SecureServing, transport, token)
	if err != nil {
		return nil, err
	}
	c.LoopbackClientConfig = loopback
	client, err := kubernetes.NewForConfig(loopback)
	if err != nil {
		return nil, fmt.Errorf("building the loopback client: %w", err)
	}
	c.Flagz = opts.Flagz
	g := &generic{config: c, transport: transport}
	g.informers = ownInformers{informers.NewSharedInformerFactoryWithOptions(client, informerResync,
		informers.WithTransform(trim), informers.WithInformerName(opts.InformerName))}
	policies := g.informers.Admissionregistration().V1().MutatingAdmissionPolicies().Informer()
	loopback.Transport, err = newIndexForPolicies(retriedServices{transport, ready}, policies)
	if err != nil {
		return nil, fmt.Errorf("waiting for mutating admission policies: %w", err)
	}

	if err := opts.Features.ApplyTo(c, client, g.informers); err != nil {
		return nil, fmt.Errorf("applying features: %w", err)
	}
	if err := opts.APIEnablement.ApplyTo(c, resources, legacyscheme.Scheme); err != nil {
		return nil, fmt.Errorf("applying runtime-config: %w", err)
	}
	if err := opts.EgressSelector.ApplyTo(c); err != nil {
		return nil, fmt.Errorf("applying the egress selector: %w", err)
	}
	dialCluster(c, dial)
	if err := opts.Traces.ApplyTo(c.EgressSelector, c); err != nil {
		return nil, fmt.Errorf("applying tracing: %w", err)
	}
	configureOpenAPI(c)
	endLongRequests(c)
	c.LongRunningFunc = withSettingsStreams(filters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"), sets.NewString("attach", "exec", "proxy", "log", "portforward")))
	if err := g.applyStorage(opts); err != nil {
		return nil, err
	}
	if err := g.applySecurity(opts, client, logger); err != nil {
		return nil, err
	}
	if err := opts.Audit.ApplyTo(c); err != nil {
		return nil, fmt.Errorf("applying audit: %w", err)
	}
	c.AuditBackend = limitAudit(c.AuditBackend)
	c.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	return g, nil
}

// dialCluster makes upstream use dial for all its connections to nodes and pods. An operator's own egress selector
// stays.
func dialCluster(c *genericapiserver.Config, dial utilnet.DialFunc) {
	if dial != nil && c.EgressSelector == nil {
		dials := map[egressselector.EgressType]utilnet.DialFunc{egressselector.Cluster: dial}
		c.EgressSelector = egressselector.NewEgressSelectorWithMap(dials)
	}
}

// loopbackConfig returns the configuration of the privileged in-memory client. That client never dials Host. Webhooks
// and APIServices that name the Service kubernetes.default are sent to Host.
func loopbackConfig(serving *genericapiserver.SecureServingInfo, transport *memtransport.Transport, token string) (*rest.Config, error) {
	host, port, err := genericapiserver.LoopbackHostPort(serving.Listener.Addr().String())
	if err != nil {
		return nil, fmt.Errorf("finding the loopback address: %w", err)
	}
	return &rest.Config{
		Host:               "https://" + net.JoinHostPort(host, port),
		BearerToken:        token,
		Transport:          transport,
		QPS:                -1,
		DisableCompression: true,
		WarningHandler:     rest.NoWarnings{},
		ContentConfig:      rest.ContentConfig{ContentType: runtime.ContentTypeProtobuf},
	}, nil
}

func (g *generic) applyStorage(opts kubeoptions.CompletedOptions) error {
	c := g.config
	if c.EgressSelector != nil {
		opts.Etcd.StorageConfig.Transport.EgressLookup = c.EgressSelector.Lookup
	}
	opts.Etcd.StorageConfig.Transport.TracerProvider = c.TracerProvider
	factoryConfig := kubeapiserver.NewStorageFactoryConfigEffectiveVersion(c.EffectiveVersion)
	factoryConfig.APIResourceConfig = c.MergedResourceConfig
	factoryConfig.DefaultResourceEncoding.SetEffectiveVersion(c.EffectiveVersion)
	factory, err := factoryConfig.Complete(opts.Etcd).New()
	if err != nil {
		return fmt.Errorf("building the storage factory: %w", err)
	}
	factory.StorageConfig.StorageObjectCountTracker = c.StorageObjectCountTracker
	if err := opts.Etcd.ApplyWithStorageFactoryTo(factory, c); err != nil {
		return fmt.Errorf("applying storage options: %w", err)
	}
	if !opts.Etcd.EnableWatchCache {
		c.RESTOptionsGetter = cachingStorage{c.RESTOptionsGetter}
	}
	c.RESTOptionsGetter = networkPods{deletions{c.RESTOptionsGetter}}
	g.storage = factory
	return nil
}

func (g *generic) applySecurity(opts kubeoptions.CompletedOptions, client kubernetes.Interface, logger *slog.Logger) error {
	c := g.config
	ctx := wait.ContextForChannel(c.DrainedNotify())
	if err := opts.Authentication.ApplyTo(ctx, &c.Authentication, c.SecureServing, c.EgressSelector,
		c.OpenAPIConfig, c.OpenAPIV3Config, client, g.informers, c.APIServerID); err != nil {
		return fmt.Errorf("applying authentication: %w", err)
	}
	c.OpenAPIConfig = nil // only ApplyTo needs one
	var err error
	c.Authorization.Authorizer, c.RuleResolver, g.rbac, err = controlplaneapiserver.BuildAuthorizer(
		ctx, opts.CompletedOptions, c.EgressSelector, c.APIServerID, g.informers)
	if err != nil {
		return fmt.Errorf("applying authorization: %w", err)
	}
	return ownBootstrapHooks(c, g.rbac, logger)
}
