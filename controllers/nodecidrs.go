// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/core"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/controller-manager/pkg/clientbuilder"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

// nodeCIDRs lets upstream's node IPAM controller see its own writes. It gives a node a pod CIDR when its informer's copy of
// the node has none (pkg/controller/nodeipam/ipam, range_allocator.go). A change of the node's status that comes between
// the write and the informer's hearing of it makes it look again, at a copy that is older than its write: it draws a
// second CIDR, the API server refuses that ("may specify no more than one CIDR for each IP family"), and the node gets an
// event that its CIDR could not be assigned. It was seen at starts under a tight memory limit.
type nodeCIDRs struct {
	mu      sync.Mutex
	written map[string]writtenCIDRs // by node; gone when the informer has them
}

type writtenCIDRs struct {
	node  types.UID
	cidrs []string
}

// seesOwnWrites returns inputs for the node IPAM controller, and for no other.
func seesOwnWrites(cc app.ControllerContext) app.ControllerContext {
	n := &nodeCIDRs{written: map[string]writtenCIDRs{}}
	cc.ClientBuilder = cidrClients{cc.ClientBuilder, n}
	cc.InformerFactory = cidrFactory{cc.InformerFactory, n}
	return cc
}

// note remembers the CIDRs of a node as the API server has it.
func (n *nodeCIDRs) note(node *v1.Node) {
	if len(node.Spec.PodCIDRs) == 0 {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.written[node.Name] = writtenCIDRs{node.UID, slices.Clone(node.Spec.PodCIDRs)}
}

// current returns an informer's copy of a node with the CIDRs that were written meanwhile. A node's CIDRs never change
// once they are set, so the copy is older when it has none.
func (n *nodeCIDRs) current(node *v1.Node) *v1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	w, ok := n.written[node.Name]
	if !ok {
		return node
	}
	if len(node.Spec.PodCIDRs) > 0 || node.UID != w.node {
		delete(n.written, node.Name)
		return node
	}
	node = node.DeepCopy()
	node.Spec.PodCIDRs, node.Spec.PodCIDR = slices.Clone(w.cidrs), w.cidrs[0]
	return node
}

// What follows puts current and note behind upstream's interfaces, each of which returns the next.

type cidrClients struct {
	clientbuilder.ControllerClientBuilder
	n *nodeCIDRs
}

func (c cidrClients) Client(name string) (kubernetes.Interface, error) {
	client, err := c.ControllerClientBuilder.Client(name)
	if err != nil {
		return nil, err
	}
	return cidrClient{client, c.n}, nil
}

type cidrClient struct {
	kubernetes.Interface
	n *nodeCIDRs
}

func (c cidrClient) CoreV1() coreclient.CoreV1Interface {
	return cidrCore{c.Interface.CoreV1(), c.n}
}

type cidrCore struct {
	coreclient.CoreV1Interface
	n *nodeCIDRs
}

func (c cidrCore) Nodes() coreclient.NodeInterface { return cidrNodes{c.CoreV1Interface.Nodes(), c.n} }

type cidrNodes struct {
	coreclient.NodeInterface
	n *nodeCIDRs
}

// Patch notes the CIDRs that the node has then. After an error it asks for them: the patch may have been done nevertheless.
func (c cidrNodes) Patch(ctx context.Context, name string, pt types.PatchType, data []byte, o metav1.PatchOptions, subresources ...string) (*v1.Node, error) {
	node, err := c.NodeInterface.Patch(ctx, name, pt, data, o, subresources...)
	if err == nil {
		c.n.note(node)
	} else if now, getErr := c.Get(ctx, name, metav1.GetOptions{}); getErr == nil {
		c.n.note(now)
	}
	return node, err
}

type cidrFactory struct {
	informers.SharedInformerFactory
	n *nodeCIDRs
}

func (f cidrFactory) Core() core.Interface { return cidrGroup{f.SharedInformerFactory.Core(), f.n} }

type cidrGroup struct {
	core.Interface
	n *nodeCIDRs
}

func (g cidrGroup) V1() coreinformers.Interface { return cidrVersion{g.Interface.V1(), g.n} }

type cidrVersion struct {
	coreinformers.Interface
	n *nodeCIDRs
}

func (v cidrVersion) Nodes() coreinformers.TypedNodeInformer {
	return cidrInformer{v.Interface.Nodes(), v.n}
}

type cidrInformer struct {
	coreinformers.TypedNodeInformer
	n *nodeCIDRs
}

func (i cidrInformer) Lister() corelisters.NodeLister {
	return cidrLister{i.TypedNodeInformer.Lister(), i.n}
}

type cidrLister struct {
	corelisters.NodeLister
	n *nodeCIDRs
}

func (l cidrLister) Get(name string) (*v1.Node, error) {
	node, err := l.NodeLister.Get(name)
	if err != nil {
		return nil, err
	}
	return l.n.current(node), nil
}
