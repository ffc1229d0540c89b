// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	apiserveradmission "k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	core "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/server/roster"
)

const (
	// nodeClaimsPlugin is the name by which the plugin can be disabled.
	nodeClaimsPlugin = "CoracleNodeClaims"
	// waitsForProvider is TaintExternalCloudProvider of k8s.io/cloud-provider/api.
	waitsForProvider = "node.cloudprovider.kubernetes.io/uninitialized"
	// wireGuardKeyBytes is the length of a public key (Curve25519).
	wireGuardKeyBytes = 32
	// maxAddresses is the most addresses that a machine joins with: an internal and an external one of each family.
	maxAddresses = 4
)

// AdmissionOptions are what this package's admission plugins, nodeClaims and serviceExternalIPs, know of the cluster.
type AdmissionOptions struct {
	// Networks are the cluster's own, for pods and Services. No machine has an address in them.
	Networks []netip.Prefix
	// Servers returns the addresses of the API servers. Only the nodes of servers may have them.
	Servers func() []netip.Addr
	// Own is the node on this server's machine, empty if there is none. Other servers' nodes are recognized by
	// ServerLabel.
	Own string
	// Certified returns the addresses in a node's serving certificate, none if the node has not joined. A nil Certified
	// means that all addresses are allowed.
	Certified func(ctx context.Context, node string) ([]netip.Addr, error)
	// JustJoined says whether a machine was admitted with a token so lately that its Node is not yet created. A nil
	// JustJoined means that all machines were.
	JustJoined func(ctx context.Context, node string) (bool, error)
	// ServerLabel is a label that the nodes of servers have and that no node can give itself.
	ServerLabel string
}

// nodeClaims is the admission plugin that limits what a node may write into its Node object with its own credentials.
// It is used beside upstream's NodeRestriction, which does not check pod networks and addresses, by which traffic is
// routed.
type nodeClaims struct {
	*admission.Handler
	AdmissionOptions
	identifier nodeidentifier.NodeIdentifier
	nodes      corelisters.NodeLister
	services   corelisters.ServiceLister
}

var (
	_ admission.MutationInterface                         = &nodeClaims{}
	_ admission.ValidationInterface                       = &nodeClaims{}
	_ apiserveradmission.WantsExternalKubeInformerFactory = &nodeClaims{}
)

// addNodeClaims registers the plugin, to run after NodeRestriction.
func addNodeClaims(s *kubeoptions.ServerRunOptions, o *AdmissionOptions) {
	if o == nil {
		return
	}
	a := s.Admission.GenericAdmission
	a.Plugins.Register(nodeClaimsPlugin, func(io.Reader) (admission.Interface, error) { return newNodeClaims(*o), nil })
	order := slices.Clone(a.RecommendedPluginOrder) // upstream's is a shared variable
	a.RecommendedPluginOrder = slices.Insert(order, slices.Index(order, noderestriction.PluginName)+1, nodeClaimsPlugin)
}

func newNodeClaims(o AdmissionOptions) *nodeClaims {
	return &nodeClaims{Handler: admission.NewHandler(admission.Create, admission.Update), AdmissionOptions: o,
		identifier: nodeidentifier.NewDefaultNodeIdentifier()}
}

// SetExternalKubeInformerFactory implements WantsExternalKubeInformerFactory.
func (p *nodeClaims) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	nodes, services := f.Core().V1().Nodes(), f.Core().V1().Services()
	p.nodes, p.services = nodes.Lister(), services.Lister()
	nodesKnown, servicesKnown := nodes.Informer().HasSynced, services.Informer().HasSynced
	p.SetReadyFunc(func() bool { return nodesKnown() && servicesKnown() })
}

// ValidateInitialization implements admission.InitializationValidator.
func (p *nodeClaims) ValidateInitialization() error {
	if p.nodes == nil || p.services == nil {
		return errors.New(nodeClaimsPlugin + " lacks listers of nodes and Services")
	}
	return nil
}

// Admit implements admission.MutationInterface. See clusterconfig.OwnAddressesLabel and withoutServicesLabel.
func (p *nodeClaims) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != core.Resource("nodes") || a.GetOperation() != admission.Create {
		return nil
	}
	node, ok := a.GetObject().(*core.Node)
	if _, isNode := p.identifier.NodeIdentity(a.GetUserInfo()); !isNode || !ok {
		return nil
	}
	if node.Labels[clusterconfig.OwnAddressesLabel] == "true" {
		node.Spec.Taints = slices.DeleteFunc(node.Spec.Taints, func(t core.Taint) bool { return t.Key == waitsForProvider })
	}
	return p.withoutServicesLabel(ctx, a, node)
}

// Validate implements admission.ValidationInterface.
func (p *nodeClaims) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != core.Resource("nodes") {
		return nil
	}
	node, ok := a.GetObject().(*core.Node)
	if !ok {
		return admission.NewForbidden(a, fmt.Errorf("unexpected type %T", a.GetObject()))
	}
	old, _ := a.GetOldObject().(*core.Node) // nil when the Node is created
	if old == nil {
		old = &core.Node{}
	}
	name, isNode := p.identifier.NodeIdentity(a.GetUserInfo())
	isNode = isNode && name != ""
	if err := checkAutonomy(ctx, isNode, node, old); err != nil {
		return admission.NewForbidden(a, err)
	}
	if !isNode {
		return nil
	}
	if !slices.Equal(node.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		return admission.NewForbidden(a, errors.New("a node does not choose its own pod network: the controllers give it one"))
	}
	if node.Annotations[clusterconfig.ServerIDAnnotation] != old.Annotations[clusterconfig.ServerIDAnnotation] ||
		slices.Contains(node.Finalizers, clusterconfig.MemberFinalizer) != slices.Contains(old.Finalizers, clusterconfig.MemberFinalizer) {
		return admission.NewForbidden(a, errors.New("only servers may label a node as a server's"))
	}
	// A kubelet's credentials are not a server's: they alone must not suffice to remove a voter from the store. A Node
	// that is being created may have the annotation, as it may become a server's.
	if node.Annotations[clusterconfig.LeaveAnnotation] != old.Annotations[clusterconfig.LeaveAnnotation] &&
		(a.GetOldObject() == nil || slices.Contains(old.Finalizers, clusterconfig.MemberFinalizer)) {
		return admission.NewForbidden(a, errors.New("the node of a server leaves by an administrator's order: coracle leave on that "+
			"machine, or coracle node remove"))
	}
	if label := servicesLabel(node, old); label != "" && a.GetOperation() == admission.Update {
		return admission.NewForbidden(a, fmt.Errorf("the label %s is the administrator's: with it a node gets the Services of others. "+
			"Give it with kubectl label node, or as --node-label when the machine joins", label))
	}
	if removesLabel(corev1.LabelNodeExcludeBalancers, node, old) {
		return admission.NewForbidden(a, fmt.Errorf("the label %s excludes a node from Services of type LoadBalancer: it is removed by "+
			"an administrator, with kubectl label node", corev1.LabelNodeExcludeBalancers))
	}
	if key := node.Annotations[clusterconfig.WireGuardAnnotation]; key != "" && key != old.Annotations[clusterconfig.WireGuardAnnotation] {
		if err := p.checkWireGuardKey(node.Name, key); err != nil {
			return admission.NewForbidden(a, err)
		}
	}
	if said := node.Annotations[loadbalancer.NetworksAnnotation]; said != old.Annotations[loadbalancer.NetworksAnnotation] {
		if err := mayBeIn(said); err != nil {
			return admission.NewForbidden(a, err)
		}
	}
	if slices.Equal(node.Status.Addresses, old.Status.Addresses) {
		return nil
	}
	if n := distinctAddresses(node); n > maxAddresses && n > distinctAddresses(old) {
		return admission.NewForbidden(a, fmt.Errorf("a node has %d addresses at most, an internal and an external one of each family, "+
			"not %d. A node with a new address has to remove the old one", maxAddresses, n))
	}
	if !p.WaitForReady() {
		return admission.NewForbidden(a, errors.New("the other nodes are not known yet"))
	}
	for _, address := range node.Status.Addresses {
		if slices.Contains(old.Status.Addresses, address) {
			continue // an update without a new address would not be refused for this either
		}
		if err := p.mayHave(ctx, node, address); err != nil {
			return admission.NewForbidden(a, err)
		}
	}
	return nil
}

// checkAutonomy refuses a change of a node's autonomy by the node itself. It warns other users who write one that is
// malformed.
func checkAutonomy(ctx context.Context, byNode bool, now, old *core.Node) error {
	value := now.Annotations[clusterconfig.AutonomyAnnotation]
	if value == old.Annotations[clusterconfig.AutonomyAnnotation] {
		return nil
	}
	if byNode {
		return fmt.Errorf("the annotation %s is the administrator's: with it the pods of a lost node are not replaced. Set it with "+
			"kubectl annotate node", clusterconfig.AutonomyAnnotation)
	}
	if _, err := clusterconfig.ParseAutonomy(value); err != nil {
		warning.AddWarning(ctx, "", err.Error())
	}
	return nil
}

// checkWireGuardKey says whether a node may publish a WireGuard key. A node that publishes another node's key cannot
// read what is sent to it, but the other node does not receive it either.
func (p *nodeClaims) checkWireGuardKey(name, key string) error {
	raw, err := base64.StdEncoding.DecodeString(key) // one key has several encodings
	if err != nil || len(raw) != wireGuardKeyBytes {
		return fmt.Errorf("%q is no WireGuard key", key)
	}
	if !p.WaitForReady() {
		return errors.New("the other nodes are not known yet")
	}
	others, err := p.nodes.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("finding other nodes with the WireGuard key: %w", err)
	}
	for _, other := range others {
		its, err := base64.StdEncoding.DecodeString(other.Annotations[clusterconfig.WireGuardAnnotation])
		if err == nil && other.Name != name && bytes.Equal(raw, its) {
			return fmt.Errorf("the WireGuard key is that of the node %s. If this machine had that name before, delete that Node",
				other.Name)
		}
	}
	return nil
}

// mayBeIn checks networks that a node names as those of its machine's interfaces. Any networks are accepted, except one
// that is wider than loadbalancer.WidestNetwork: no machine is in all networks.
func mayBeIn(networks string) error {
	if networks == "" {
		return nil
	}
	for text := range strings.SplitSeq(networks, ",") {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			return fmt.Errorf("the annotation %s: %q is no network", loadbalancer.NetworksAnnotation, text)
		case p.Bits() < loadbalancer.WidestNetwork:
			return fmt.Errorf("the annotation %s: no interface is in a network as wide as %s; /%d is the widest",
				loadbalancer.NetworksAnnotation, p, loadbalancer.WidestNetwork)
		}
	}
	return nil
}

// distinctAddresses counts the different IP addresses of a Node, of every type and in every notation.
func distinctAddresses(n *core.Node) int {
	known := map[netip.Addr]bool{}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			known[ip.Unmap()] = true
		}
	}
	return len(known)
}

func removesLabel(label string, now, old *core.Node) bool {
	was, had := old.Labels[label]
	is, has := now.Labels[label]
	return had && (!has || is != was)
}

// mayHave returns an error if the node may not have the address.
func (p *nodeClaims) mayHave(ctx context.Context, node *core.Node, address core.NodeAddress) error {
	ip, err := netip.ParseAddr(address.Address)
	routed := address.Type == core.NodeInternalIP || address.Type == core.NodeExternalIP
	switch {
	case err != nil && !routed:
		return nil // a host name: nothing is routed by it
	case err != nil:
		return fmt.Errorf("%q is no IP address", address.Address)
	}
	mapped := ip.Is4In6()
	if ip = ip.Unmap(); !ip.IsGlobalUnicast() || ip.Zone() != "" {
		return fmt.Errorf("%s cannot be the address of a machine: others could not reach it", ip)
	}
	if slices.ContainsFunc(p.Networks, func(n netip.Prefix) bool { return n.Contains(ip) }) {
		return fmt.Errorf("%s lies in the cluster's network for pods or Services and is no address of a machine", ip)
	}
	// A server's node is not checked further: an attacker who has a server's keys can do worse than take an address.
	// And two servers that exchange their addresses must not wait for one another.
	if _, isServer := node.Labels[p.ServerLabel]; isServer || node.Name == p.Own {
		return nil
	}
	if p.Servers != nil && slices.Contains(p.Servers(), ip) {
		return fmt.Errorf("%s is the address of a server", ip)
	}
	if p.Certified != nil {
		certified, err := p.Certified(ctx, node.Name)
		if err != nil {
			return err
		}
		if !slices.Contains(certified, ip) {
			return fmt.Errorf("%s is not an address for which the node %s has a certificate. A machine gets one for --node-ip and "+
				"--node-external-ip when coracle starts there", ip, node.Name)
		}
	}
	if err := p.mayHaveBesideServices(ip); err != nil {
		return err
	}
	others, err := p.nodes.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("finding other nodes with the address %s: %w", ip, err)
	}
	for _, other := range others {
		if other.Name != node.Name && roster.Lives(other) && roster.HasAddress(other, ip) {
			return fmt.Errorf("%s is the address of the node %s, which is alive", ip, other.Name)
		}
	}
	if mapped && routed {
		return fmt.Errorf("%q has to be written as %s: a Service's status accepts only that form", address.Address, ip)
	}
	return nil
}
