// SPDX-License-Identifier: Apache-2.0

// Package netinformers is the one set of caches that a node's network parts share: the pod network, the Service proxy,
// the cluster DNS and what enforces NetworkPolicies read the same objects, held once and trimmed to what those parts
// use.
//
// It owns the watches with the network's read-only identity. Options say what is watched; nothing else ever is. It
// never writes to the API.
package netinformers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	networkinginformers "k8s.io/client-go/informers/networking/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubernetes/pkg/proxy/apis"
)

// NewClient makes the network identity's client from a kubeconfig file. Certificates that the file refers to by path
// may be renewed in place.
func NewClient(kubeconfig string) (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading the network kubeconfig: %w", err)
	}
	config.ContentType = runtime.ContentTypeProtobuf
	config.UserAgent = "coracle-network"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("using the network kubeconfig: %w", err)
	}
	return client, nil
}

// Options say what is watched. Client and NodeName are required. This node itself is always watched.
type Options struct {
	Client   kubernetes.Interface
	NodeName string
	// AllNodes watches every node instead of this one alone: for routes to their pods.
	AllNodes bool
	// Services watches what a Service proxy needs: Services that have an address, EndpointSlices that are not headless,
	// and ServiceCIDRs.
	Services bool
	// Names watches what the cluster DNS needs: all Services, all EndpointSlices, and Namespaces. The Service proxy's
	// are among them, so nothing is watched twice.
	Names bool
	// Policies watches what enforces NetworkPolicies: those, and from PolicyInformers.WatchPeers on Namespaces and the
	// pods of all nodes.
	Policies bool
}

// Informers are the caches. Make them with New, ask for those that the options name, add handlers, then Run.
type Informers struct {
	o       Options
	factory informers.SharedInformerFactory
	peers   informers.SharedInformerFactory // of what is watched only when it is needed
	needed  chan struct{}                   // closed when they are
	need    sync.Once
	running atomic.Bool
}

// New prepares the caches; Run fills them.
func New(o Options) (*Informers, error) {
	if o.Client == nil || o.NodeName == "" {
		return nil, errors.New("netinformers: Client and NodeName are required")
	}
	i := &Informers{
		o: o, needed: make(chan struct{}),
		factory: informers.NewSharedInformerFactoryWithOptions(o.Client, 0, informers.WithTransform(trim)),
		peers:   informers.NewSharedInformerFactoryWithOptions(o.Client, 0, informers.WithTransform(trim)),
	}
	i.watchNodes()
	if o.Services || o.Names {
		i.watchServices()
	}
	if o.Services {
		i.factory.Networking().V1().ServiceCIDRs().Informer()
	}
	if o.Names {
		i.factory.Core().V1().Namespaces().Informer()
	}
	if o.Policies {
		i.watchPolicies()
	}
	return i, nil
}

// The first to ask a factory for a type decides how it is listed: the accessors below share these.

func (i *Informers) watchNodes() {
	i.factory.InformerFor(&corev1.Node{}, func(c kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		return coreinformers.NewFilteredNodeInformer(c, resync, cache.Indexers{}, func(o *metav1.ListOptions) {
			if !i.o.AllNodes {
				o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, i.o.NodeName).String()
			}
		})
	})
}

// watchServices leaves out what a Service proxy does not serve, where no other user wants it; served says the same of
// an object.
func (i *Informers) watchServices() {
	i.factory.InformerFor(&corev1.Service{}, func(c kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		return coreinformers.NewFilteredServiceInformer(c, metav1.NamespaceAll, resync, cache.Indexers{}, func(o *metav1.ListOptions) {
			if !i.o.Names {
				o.LabelSelector = "!" + apis.LabelServiceProxyName
				o.FieldSelector = fields.OneTermNotEqualSelector("spec.clusterIP", corev1.ClusterIPNone).String()
			}
		})
	})
	i.factory.InformerFor(&discoveryv1.EndpointSlice{}, func(c kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		return discoveryinformers.NewFilteredEndpointSliceInformer(c, metav1.NamespaceAll, resync, cache.Indexers{},
			func(o *metav1.ListOptions) {
				if !i.o.Names {
					o.LabelSelector = "!" + corev1.IsHeadlessService
				}
			})
	})
}

func (i *Informers) watchPolicies() {
	i.factory.Networking().V1().NetworkPolicies().Informer()
	i.namespaces().Informer()
	i.peers.InformerFor(&corev1.Pod{}, func(c kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		return coreinformers.NewFilteredPodInformer(c, metav1.NamespaceAll, resync, byNamespace(), func(o *metav1.ListOptions) {
			// A pod that has ended has no address any more that a policy could speak of.
			o.FieldSelector = fields.AndSelectors(
				fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
				fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
			).String()
		})
	})
}

// namespaces are followed from the start where the cluster DNS needs them, and else when a policy does.
func (i *Informers) namespaces() coreinformers.NamespaceInformer {
	if i.o.Names {
		return i.factory.Core().V1().Namespaces()
	}
	return i.peers.Core().V1().Namespaces()
}

func byNamespace() cache.Indexers {
	return cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}
}

// Run fills the caches and follows the API until ctx is done; then it waits for the informers to end.
func (i *Informers) Run(ctx context.Context) error {
	i.running.Store(true)
	i.factory.Start(ctx.Done())
	select {
	case <-ctx.Done():
	case <-i.needed:
		i.peers.Start(ctx.Done())
		<-ctx.Done()
	}
	i.factory.Shutdown()
	i.peers.Shutdown()
	return nil
}

// Running says that Run has been called. Upstream's proxy configs lose events of informers that run already.
func (i *Informers) Running() bool { return i.running.Load() }

// NodeName is the name of the node that these caches are for.
func (i *Informers) NodeName() string { return i.o.NodeName }

// Nodes holds this node, or all with Options.AllNodes.
func (i *Informers) Nodes() coreinformers.NodeInformer { return i.factory.Core().V1().Nodes() }

// PolicyInformers are there with Options.Policies.
type PolicyInformers struct {
	NetworkPolicies networkinginformers.NetworkPolicyInformer
	Namespaces      coreinformers.NamespaceInformer
	// Pods are those of all nodes that have not ended.
	Pods coreinformers.PodInformer
	// WatchPeers begins to fill Pods, and Namespaces where no other user has them filled, once for all. A cluster
	// without policies need not hold every pod on every node.
	WatchPeers func()
}

// Policies returns an error when the options did not ask for policies.
func (i *Informers) Policies() (PolicyInformers, error) {
	if !i.o.Policies {
		return PolicyInformers{}, errors.New("netinformers: NetworkPolicies are not watched: set Options.Policies")
	}
	return PolicyInformers{
		NetworkPolicies: i.factory.Networking().V1().NetworkPolicies(),
		Namespaces:      i.namespaces(),
		Pods:            i.peers.Core().V1().Pods(),
		WatchPeers:      func() { i.need.Do(func() { close(i.needed) }) },
	}, nil
}
