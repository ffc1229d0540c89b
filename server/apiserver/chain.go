// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"regexp"
	"time"

	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/notfoundhandler"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/tools/cache"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	kubeapiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/controlplane"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/server/ingress"
	"github.com/coracle-k8s/coracle/server/resourcemetrics"
	"github.com/coracle-k8s/coracle/server/settings"
)

// chain is the three API servers. A request goes to the aggregator, which delegates to the core server, which delegates
// to the server of custom resources.
type chain struct {
	aggregator *aggregatorapiserver.APIAggregator
	core       *controlplane.Instance
	extensions *apiextensionsapiserver.CustomResourceDefinitions
	metrics    *metricsAPI
	settings   *settings.Settings
	ingress    *ingress.Tables
}

func buildChain(opts kubeoptions.CompletedOptions, g *generic, o Options) (*chain, error) {
	core, resolver, admission, err := kubeapiserver.CreateKubeAPIServerConfig(opts, g.config, g.informers, g.storage)
	if err != nil {
		return nil, fmt.Errorf("configuring the core API server: %w", err)
	}
	core.ControlPlane.ProxyTransport.MaxIdleConns = maxIdleProxied
	resolver = externalNames{resolver, g.informers.Core().V1().Services().Lister()}
	reconciler, err := newEndpointReconciler(g.config.LoopbackClientConfig, g.transport, o)
	if err != nil {
		return nil, err
	}
	core.EndpointReconcilerConfig.Reconciler = alignedReconciler{reconciler}
	core.EndpointReconcilerConfig.Interval = endpointInterval / 2

	authInfo := webhook.NewDefaultAuthenticationInfoResolverWrapper(core.ControlPlane.ProxyTransport,
		g.config.EgressSelector, g.config.LoopbackClientConfig, g.config.TracerProvider)
	extensions, err := controlplaneapiserver.CreateAPIExtensionsConfig(*core.ControlPlane.Generic, core.ControlPlane.VersionedInformers,
		admission, opts.CompletedOptions, opts.MasterCount, resolver, authInfo)
	if err != nil {
		return nil, fmt.Errorf("configuring the API server for custom resources: %w", err)
	}
	if !opts.Etcd.EnableWatchCache { // with upstream's flag these have watch caches, as the core has
		extensions.GenericConfig.RESTOptionsGetter = cachingStorage{extensions.GenericConfig.RESTOptionsGetter}
		extensions.ExtraConfig.CRDRESTOptionsGetter = cachingStorage{extensions.ExtraConfig.CRDRESTOptionsGetter}
	}
	extensions.GenericConfig.RESTOptionsGetter = deletions{extensions.GenericConfig.RESTOptionsGetter}
	extensions.ExtraConfig.CRDRESTOptionsGetter = deletions{extensions.ExtraConfig.CRDRESTOptionsGetter}
	aggregator, err := controlplaneapiserver.CreateAggregatorConfig(*core.ControlPlane.Generic, opts.CompletedOptions,
		core.ControlPlane.VersionedInformers, resolver, core.ControlPlane.ProxyTransport, core.ControlPlane.Extra.PeerProxy, admission)
	if err != nil {
		return nil, fmt.Errorf("configuring the aggregator: %w", err)
	}
	if !opts.Etcd.EnableWatchCache {
		aggregator.GenericConfig.RESTOptionsGetter = cachingStorage{aggregator.GenericConfig.RESTOptionsGetter}
	}
	aggregator.GenericConfig.RESTOptionsGetter = deletions{aggregator.GenericConfig.RESTOptionsGetter}
	metrics, err := newMetricsAPI(core, g, o)
	if err != nil {
		return nil, err
	}
	ch, err := connectServers(aggregator.Complete(), core.Complete(), extensions.Complete(), metrics)
	if err != nil {
		return nil, err
	}
	if err := ch.installOpenAPI(resolver, o); err != nil {
		return nil, err
	}
	if err := ch.installIngress(g, o); err != nil {
		return nil, err
	}
	if err := ch.installSettings(g, o); err != nil {
		return nil, err
	}
	if o.Status != nil {
		ch.aggregator.GenericAPIServer.Handler.NonGoRestfulMux.UnlistedHandle(status.ClusterPath, o.Status)
	}
	if o.Clocks != nil {
		ch.aggregator.GenericAPIServer.Handler.NonGoRestfulMux.UnlistedHandle(status.ClocksPath, o.Clocks)
	}
	if err := ch.installNamespaces(g); err != nil {
		return nil, err
	}
	ch.installMetricsHistory(o)
	if o.Console != nil {
		ch.aggregator.GenericAPIServer.Handler.NonGoRestfulMux.UnlistedHandle(status.ConsoleSettingPath, o.Console)
	}
	if err := ch.dropOldSeries(g, o.seriesKept); err != nil {
		return nil, err
	}
	// The APIs are installed, so the definitions are not needed any more. The config itself must stay: upstream checks
	// for it.
	g.config.OpenAPIV3Config.Definitions = nil
	for _, s := range []*genericapiserver.GenericAPIServer{
		ch.aggregator.GenericAPIServer, ch.core.ControlPlane.GenericAPIServer, ch.extensions.GenericAPIServer,
	} {
		if err := dropUnused(s); err != nil {
			return nil, err
		}
	}
	return ch, nil
}

// connectServers builds the servers from the last in the chain to the first.
func connectServers(aggregator aggregatorapiserver.CompletedConfig, core controlplane.CompletedConfig,
	extensions apiextensionsapiserver.CompletedConfig, metrics *metricsAPI) (*chain, error) {
	notFound := notfoundhandler.New(core.ControlPlane.Generic.Serializer, genericapifilters.NoMuxAndDiscoveryIncompleteKey)
	ch := chain{metrics: metrics}
	var err error
	ch.extensions, err = extensions.New(genericapiserver.NewEmptyDelegateWithCustomHandler(notFound))
	if err != nil {
		return nil, fmt.Errorf("building the API server for custom resources: %w", err)
	}
	if err := neverResync(ch.extensions.Informers.Apiextensions().V1().CustomResourceDefinitions().Informer()); err != nil {
		return nil, err
	}
	ch.core, err = core.New(ch.extensions.GenericAPIServer)
	if err != nil {
		return nil, fmt.Errorf("building the core API server: %w", err)
	}
	coreServer := ch.core.ControlPlane.GenericAPIServer
	if err := metrics.install(coreServer); err != nil {
		return nil, err
	}
	priorities := groupPriorities(coreServer.ListedPaths())
	delete(priorities, resourcemetrics.GroupVersion) // its APIService is metricsAPI's
	ch.aggregator, err = controlplaneapiserver.CreateAggregatorServer(aggregator, coreServer,
		ch.extensions.Informers.Apiextensions().V1().CustomResourceDefinitions(), true, priorities)
	if err != nil {
		return nil, fmt.Errorf("building the aggregator: %w", err)
	}
	return &ch, metrics.follow(ch.aggregator)
}

// neverResync turns off the resync of an informer that does not run yet. The informer of CustomResourceDefinitions
// would otherwise pass all objects to its handlers every five minutes, and one of upstream's controllers converts and
// checks all schemas each time (docs/adr/0040).
func neverResync(informer cache.SharedIndexInformer) error {
	for _, name := range []string{"resyncCheckPeriod", "defaultEventHandlerResyncPeriod"} {
		period, err := kubecompat.Field[time.Duration](informer, []string{"SharedIndexInformer", "SharedIndexInformer", name})
		if err != nil {
			return fmt.Errorf("the informer of CustomResourceDefinitions is not what it was: %w", err)
		}
		*period = 0
	}
	return nil
}

// dropUnused frees two things that an API server stores for each path and never uses (docs/memory.md). One is the
// regular expression of a route: the router that API servers choose compares paths word by word. The other is the stack
// that registered a path: it would only appear in the error about a path that is registered twice.
func dropUnused(s *genericapiserver.GenericAPIServer) error {
	for _, service := range s.Handler.GoRestfulContainer.RegisteredWebServices() {
		for _, route := range service.Routes() {
			matcher, err := kubecompat.Field[*regexp.Regexp](route, []string{"pathExpr", "Matcher"})
			if err != nil {
				return fmt.Errorf("a route of the API is not what it was: %w", err)
			}
			*matcher = nil
		}
	}
	stacks, err := kubecompat.Field[map[string]string](s.Handler.NonGoRestfulMux, []string{"pathStacks"})
	if err != nil {
		return fmt.Errorf("the paths of the API are not what they were: %w", err)
	}
	clear(*stacks)
	return nil
}
