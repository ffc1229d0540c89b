// SPDX-License-Identifier: Apache-2.0

// Package netinformers holds the caches that a node's network parts share. The pod network, the Service proxy, the
// cluster DNS and the enforcement of NetworkPolicies read the same objects, which are held once and trimmed to the
// fields that those parts use.
//
// It owns the watches with the network's read-only identity. Options say what is watched, and nothing else is. It never
// writes to the API.
package netinformers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
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

// NewClient makes a client with the network identity of a kubeconfig file. Certificates that the file names by path may
// be renewed in place.
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

// Options select what is watched. Client and NodeName are required. The Node of this node is always watched.
type Options struct {
	Client   kubernetes.Interface
	NodeName string
	// AllNodes watches every Node instead of this node's alone, for routes to the pods of other nodes.
	AllNodes bool
	// Services watches what a Service proxy needs: Services with a cluster IP, EndpointSlices that are not headless,
	// and ServiceCIDRs.
	Services bool
	// Names watches what the cluster DNS needs: all Services, all EndpointSlices, and Namespaces. These include the
	// objects of Services, so nothing is watched twice.
	Names bool
	// Policies watches what the enforcement of NetworkPolicies needs: the policies, and from the call of
	// PolicyInformers.WatchPeers on, Namespaces and the pods of all nodes.
	Policies bool
}

// Informers are the caches. Make them with New, get those that the options select, add handlers, then call Run.
type Informers struct {
	o           Options
	factory     informers.SharedInformerFactory
	peers       informers.SharedInformerFactory // of objects that are watched only when a policy needs them
	peersNeeded chan struct{}                   // closed when a policy needs them
	needOnce    sync.Once
	running     atomic.Bool
}

// New prepares the caches; Run fills them.
func New(o Options) (*Informers, error) {
	if o.Client == nil || o.NodeName == "" {
		return nil, errors.New("netinformers: Client and NodeName are required")
	}
	i := &Informers{
		o: o, peersNeeded: make(chan struct{}),
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

// watchNodes determines how Nodes are listed. The first call that asks a factory for a type determines that, and the
// accessors below share the informer.

func (i *Informers) watchNodes() {
	i.factory.InformerFor(&corev1.Node{}, func(c kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		return coreinformers.NewFilteredNodeInformer(c, resync, cache.Indexers{}, func(o *metav1.ListOptions) {
			if !i.o.AllNodes {
				o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, i.o.NodeName).String()
			}
		})
	})
}

// watchServices excludes objects that a Service proxy does not serve, unless the cluster DNS needs them. The function
// served checks the same for a single object.
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
			// A pod that has ended has no address any more that a policy could select.
			o.FieldSelector = fields.AndSelectors(
				fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
				fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
			).String()
		})
	})
}

// namespaces returns the informer for Namespaces. It runs from the start where the cluster DNS needs it, and otherwise
// from the time when a policy needs it.
func (i *Informers) namespaces() coreinformers.NamespaceInformer {
	if i.o.Names {
		return i.factory.Core().V1().Namespaces()
	}
	return i.peers.Core().V1().Namespaces()
}

func byNamespace() cache.Indexers {
	return cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}
}

// Run fills the caches and follows the API until ctx is done. Then it waits for the informers to end.
func (i *Informers) Run(ctx context.Context) error {
	i.running.Store(true)
	i.factory.Start(ctx.Done())
	select {
	case <-ctx.Done():
	case <-i.peersNeeded:
		i.peers.Start(ctx.Done())
		<-ctx.Done()
	}
	i.factory.Shutdown()
	i.peers.Shutdown()
	return nil
}

// Running says whether Run has been called. Upstream's proxy configs lose events of informers that run already.
func (i *Informers) Running() bool { return i.running.Load() }

// NodeName returns the name of the node for which these caches are.
func (i *Informers) NodeName() string { return i.o.NodeName }

// Nodes returns the informer for this node's Node, or for all Nodes with Options.AllNodes.
func (i *Informers) Nodes() coreinformers.NodeInformer { return i.factory.Core().V1().Nodes() }

// PolicyInformers are the informers that exist with Options.Policies.
type PolicyInformers struct {
	NetworkPolicies networkinginformers.NetworkPolicyInformer
	Namespaces      coreinformers.NamespaceInformer
	// Pods holds the pods of all nodes that have not ended.
	Pods coreinformers.PodInformer
	// WatchPeers starts to fill Pods, and Namespaces unless these are filled for another user. Further calls have no
	// effect. A cluster without policies need not hold every pod on every node.
	WatchPeers func()
}

// Policies returns the informers for policies, and an error when the options did not select policies.
func (i *Informers) Policies() (PolicyInformers, error) {
	if !i.o.Policies {
		return PolicyInformers{}, errors.New("netinformers: NetworkPolicies are not watched: set Options.Policies")
	}
	return PolicyInformers{
		NetworkPolicies: i.factory.Networking().V1().NetworkPolicies(),
		Namespaces:      i.namespaces(),
		Pods:            i.peers.Core().V1().Pods(),
		WatchPeers:      func() { i.needOnce.Do(func() { close(i.peersNeeded) }) },
	}, nil
}

// Sandbox is a pod's network on this node, as the pod network passes it to the enforcement of NetworkPolicies.
type Sandbox struct {
	ID                   string // of the attachment
	Namespace, Name, UID string // the pod's
	IPs                  []netip.Addr
}
