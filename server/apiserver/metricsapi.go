// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/tools/cache"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	apiregistrationclient "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/typed/apiregistration/v1"
	apiregistrationlisters "k8s.io/kube-aggregator/pkg/client/listers/apiregistration/v1"
	"k8s.io/kubernetes/pkg/controlplane"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/server/resourcemetrics"
)

// metricsAPIService is the name of the APIService of metrics.k8s.io. This server serves the group if it names no
// Service.
var metricsAPIService = resourcemetrics.GroupVersion.Version + "." + resourcemetrics.GroupVersion.Group

// metricsRetry is how long to wait before a failed write of the APIService is tried again.
const metricsRetry = 5 * time.Second

// metricsAPI serves metrics.k8s.io and maintains its APIService. It does not use upstream's controller for APIServices
// of built-in groups: at each start of a server that one would undo a user's changes to the APIService.
type metricsAPI struct {
	collector *resourcemetrics.Collector // nil when this server does not serve the group
	part      *status.Part
	log       *slog.Logger

	client   apiregistrationclient.APIServiceInterface
	services apiregistrationlisters.APIServiceLister
	changed  timers.Signal // the goroutine of run receives it and checks the APIService
}

func newMetricsAPI(core *controlplane.Config, g *generic, o Options) (*metricsAPI, error) {
	client, err := apiregistrationclient.NewForConfig(g.config.LoopbackClientConfig)
	if err != nil {
		return nil, fmt.Errorf("building a client for APIServices: %w", err)
	}
	m := &metricsAPI{part: o.MetricsPart, log: o.Logger, client: client.APIServices(), changed: timers.NewSignal()}
	if o.Cluster.Disabled.Has(clusterconfig.PartMetrics) {
		m.part.Set(status.Disabled, "")
		return m, nil
	}
	kubelets := core.Extra.KubeletClientConfig
	transport, err := kubeletclient.MakeTransport(&kubelets)
	if err != nil {
		return nil, fmt.Errorf("connecting to kubelets for their metrics: %w", err)
	}
	addresses := convert.Slice(kubelets.PreferredAddressTypes, func(t string) corev1.NodeAddressType { return corev1.NodeAddressType(t) })
	m.collector, err = resourcemetrics.New(resourcemetrics.Options{
		// the Node authorizer needs both informers anyway
		Nodes: g.informers.Core().V1().Nodes().Lister(), Pods: g.informers.Core().V1().Pods().Lister(),
		Namespaces: g.informers.Core().V1().Namespaces().Lister(), // admission needs this informer anyway
		Transport:  transport, AddressTypes: addresses, Part: o.MetricsPart, Logger: o.Logger,
	})
	return m, err
}

// install adds the group to the core server, where requests reach it without an APIService.
func (m *metricsAPI) install(core *genericapiserver.GenericAPIServer) error {
	if m.collector == nil {
		return nil
	}
	return m.collector.Install(core)
}

func (m *metricsAPI) follow(aggregator *aggregatorapiserver.APIAggregator) error {
	informer := aggregator.APIRegistrationInformers.Apiregistration().V1().APIServices()
	m.services = informer.Lister()
	if m.collector == nil {
		return nil
	}
	gv := metav1.GroupVersion(resourcemetrics.GroupVersion)
	aggregator.GenericAPIServer.AggregatedDiscoveryGroupManager.SetGroupVersionPriority(gv, metricsPriority, metricsPriority)
	look := func(obj any) {
		if name, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err != nil || name != metricsAPIService {
			return
		}
		m.changed.Send()
	}
	_, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: look, UpdateFunc: func(_, obj any) { look(obj) }, DeleteFunc: look,
	})
	if err != nil {
		return fmt.Errorf("watching APIServices: %w", err)
	}
	return nil
}

// run maintains the APIService and runs the collector. The APIService is not written before ready. run returns when ctx
// is done.
func (m *metricsAPI) run(ctx context.Context, ready <-chan struct{}) {
	var collecting sync.WaitGroup
	defer collecting.Wait()
	if m.collector != nil {
		collecting.Go(func() { m.collector.Run(ctx) })
	}
	select {
	case <-ready:
	case <-ctx.Done():
		return
	}
	for last := ""; ctx.Err() == nil; {
		var retry <-chan time.Time
		switch err := m.sync(ctx); {
		case err == nil && m.collector == nil:
			return
		case err != nil && ctx.Err() == nil:
			if err.Error() != last {
				last = err.Error()
				m.log.Warn("the APIService of metrics.k8s.io could not be set up; retrying", "error", err)
			}
			retry = time.After(metricsRetry)
		}
		select {
		case <-ctx.Done():
		case <-m.changed:
		case <-retry:
		}
	}
}

// sync creates the APIService if there is none. It leaves alone an APIService that names a Service: that belongs to
// another provider. A server that is not to serve the group deletes, once, the APIService that a serving server left.
// Otherwise servers with different settings would create and delete it again and again.
func (m *metricsAPI) sync(ctx context.Context) error {
	have, err := m.services.Get(metricsAPIService)
	switch {
	case apierrors.IsNotFound(err) && m.collector != nil:
		m.collector.SetOtherProvider("")
		if _, err = m.client.Create(ctx, localMetrics(), metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
			return nil // another server or a user created it first
		}
		return err
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return err
	case m.collector != nil:
		other := ""
		if s := have.Spec.Service; s != nil {
			other = s.Namespace + "/" + s.Name
		}
		m.collector.SetOtherProvider(other)
		return nil
	case have.Spec.Service == nil:
		err = m.client.Delete(ctx, metricsAPIService, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &have.UID, ResourceVersion: &have.ResourceVersion},
		})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	return nil
}

// metricsPriority is the priority that metrics-server uses: after all built-in groups.
const metricsPriority = 100

// localMetrics returns an APIService of a group that the API server serves itself.
func localMetrics() *apiregistrationv1.APIService {
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: metricsAPIService},
		Spec: apiregistrationv1.APIServiceSpec{
			Group: resourcemetrics.GroupVersion.Group, Version: resourcemetrics.GroupVersion.Version,
			GroupPriorityMinimum: metricsPriority, VersionPriority: metricsPriority,
		},
	}
}
