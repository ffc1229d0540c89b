// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	apiserveradmission "k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	core "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"
	netutils "k8s.io/utils/net"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/server/roster"
)

// serviceExternalIPsPlugin is the name by which the plugin can be disabled.
const serviceExternalIPsPlugin = "CoracleServiceExternalIPs"

// serviceExternalIPs is the admission plugin that decides who may give a Service an external IP, and which one. Every
// node and pod sends the traffic to that address to the Service's pods (CVE-2020-8554), so the right to write Services
// is not enough. RBAC has to allow the verb "use" of clusterconfig.ExternalIPsResource, in the Service's namespace and
// with the address as the name. Addresses of the cluster itself and of other namespaces are refused.
//
// The plugin checks only what a write adds. A Service keeps what it has.
type serviceExternalIPs struct {
	*admission.Handler
	networks   []netip.Prefix
	servers    func() []netip.Addr
	authorizer authorizer.Authorizer
	services   corelisters.ServiceLister
	nodes      corelisters.NodeLister
}

var (
	_ admission.ValidationInterface                       = &serviceExternalIPs{}
	_ apiserveradmission.WantsExternalKubeInformerFactory = &serviceExternalIPs{}
	_ apiserveradmission.WantsAuthorizer                  = &serviceExternalIPs{}
)

// addServiceExternalIPs registers the plugin, to run after NodeRestriction. It uses the Networks and Servers of o.
func addServiceExternalIPs(s *kubeoptions.ServerRunOptions, o *AdmissionOptions) {
	a := s.Admission.GenericAdmission
	a.Plugins.Register(serviceExternalIPsPlugin, func(io.Reader) (admission.Interface, error) { return newServiceExternalIPs(o), nil })
	order := slices.Clone(a.RecommendedPluginOrder) // upstream's is a shared variable
	a.RecommendedPluginOrder = slices.Insert(order, slices.Index(order, noderestriction.PluginName)+1, serviceExternalIPsPlugin)
}

func newServiceExternalIPs(o *AdmissionOptions) *serviceExternalIPs {
	p := &serviceExternalIPs{Handler: admission.NewHandler(admission.Create, admission.Update)}
	if o != nil {
		p.networks, p.servers = o.Networks, o.Servers
	}
	return p
}

// SetExternalKubeInformerFactory implements WantsExternalKubeInformerFactory.
func (p *serviceExternalIPs) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	nodes, services := f.Core().V1().Nodes(), f.Core().V1().Services()
	p.nodes, p.services = nodes.Lister(), services.Lister()
	nodesKnown, servicesKnown := nodes.Informer().HasSynced, services.Informer().HasSynced
	p.SetReadyFunc(func() bool { return nodesKnown() && servicesKnown() })
}

// SetAuthorizer implements WantsAuthorizer.
func (p *serviceExternalIPs) SetAuthorizer(a authorizer.Authorizer) { p.authorizer = a }

// ValidateInitialization implements admission.InitializationValidator.
func (p *serviceExternalIPs) ValidateInitialization() error {
	if p.services == nil || p.nodes == nil || p.authorizer == nil {
		return errors.New(serviceExternalIPsPlugin + " lacks listers of Services or nodes, or an authorizer")
	}
	return nil
}

// Validate implements admission.ValidationInterface.
func (p *serviceExternalIPs) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != core.Resource("services") || a.GetSubresource() != "" {
		return nil
	}
	svc, ok := a.GetObject().(*core.Service)
	if !ok {
		return admission.NewForbidden(a, fmt.Errorf("unexpected type %T", a.GetObject()))
	}
	old, _ := a.GetOldObject().(*core.Service) // nil when the Service is created
	r := newExternalIPRequest(svc, old)
	if len(r.addresses) == 0 || !r.requestsMore() {
		return nil
	}
	if !p.WaitForReady() {
		return admission.NewForbidden(a, errors.New("the other Services and the nodes are not known yet: try again in a moment"))
	}
	for _, ip := range r.added() {
		err := p.authorize(ctx, a, ip)
		if err == nil {
			err = p.reserved(ip)
		}
		if err != nil {
			return admission.NewForbidden(a, err)
		}
	}
	if err := p.conflict(a.GetNamespace(), r); err != nil {
		return admission.NewForbidden(a, err)
	}
	return nil
}

// authorize asks RBAC whether the user may give Services of the namespace this external IP.
func (p *serviceExternalIPs) authorize(ctx context.Context, a admission.Attributes, ip netip.Addr) error {
	decision, _, err := p.authorizer.Authorize(ctx, authorizer.AttributesRecord{
		User: a.GetUserInfo(), Verb: clusterconfig.ExternalIPsVerb, Namespace: a.GetNamespace(), Name: ip.String(),
		APIGroup: clusterconfig.ExternalIPsGroup, APIVersion: "*", Resource: clusterconfig.ExternalIPsResource, ResourceRequest: true,
	})
	if decision == authorizer.DecisionAllow {
		return nil
	}
	name := a.GetUserInfo().GetName()
	refused := fmt.Errorf("%q may not give a Service the external IP %s, since all nodes and pods would send to its pods what is for "+
		"that address; nothing was changed. "+
		"An administrator allows it in this namespace: kubectl create rolebinding external-ips -n %s --clusterrole=%s --user=%q",
		name, ip, a.GetNamespace(), clusterconfig.ExternalIPsRole, name)
	if err != nil {
		return fmt.Errorf("%w (authorizer: %w)", refused, err)
	}
	return refused
}

// reserved returns an error if no Service may have the address as an external IP. Nodes serve no such address either,
// and check more (proxy).
func (p *serviceExternalIPs) reserved(ip netip.Addr) error {
	for _, n := range p.networks {
		if n.Contains(ip) {
			return fmt.Errorf("%s lies in %s, a network of pods or of Services: take another external IP", ip, n)
		}
	}
	if p.servers != nil && slices.Contains(p.servers(), ip) {
		return fmt.Errorf("%s is the address of an API server: take another external IP, or a Service of type LoadBalancer", ip)
	}
	nodes, err := p.nodes.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("listing the nodes: %w", err)
	}
	if slices.ContainsFunc(nodes, func(n *corev1.Node) bool { return roster.HasAddress(n, ip) }) {
		return fmt.Errorf("%s is the address of a node: take another external IP, or a Service of type LoadBalancer", ip)
	}
	return nil
}

// conflict returns an error if a Service of another namespace has a requested address from a load balancer, or a
// requested port at a requested address as its external IP. It does not matter whether that Service is served.
func (p *serviceExternalIPs) conflict(namespace string, r externalIPRequest) error {
	all, err := p.services.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("listing the Services: %w", err)
	}
	for _, s := range all {
		if s.Namespace == namespace {
			continue
		}
		for _, in := range s.Status.LoadBalancer.Ingress {
			if at, ok := parseLenientIP(in.IP); ok && r.addresses[at] {
				return fmt.Errorf("%s is the load balancer address of a Service of another namespace: take another external IP", at)
			}
		}
		for _, text := range s.Spec.ExternalIPs {
			at, _ := parseLenientIP(text)
			for _, sp := range s.Spec.Ports {
				if port := loadbalancer.PortOf(sp.Protocol, sp.Port); r.requestsNew(at, port) {
					return fmt.Errorf("a Service of another namespace has the external IP %s with port %s: take another address or port, "+
						"or remove it from that Service", at, port)
				}
			}
		}
	}
	return nil
}

// externalIPRequest is the external IPs and the ports that a Service requests. The value is true where the Service did
// not have the address or port before.
type externalIPRequest struct {
	addresses map[netip.Addr]bool
	ports     map[loadbalancer.Port]bool
}

func newExternalIPRequest(svc, old *core.Service) externalIPRequest {
	r := externalIPRequest{map[netip.Addr]bool{}, map[loadbalancer.Port]bool{}}
	for _, text := range svc.Spec.ExternalIPs { //nolint:staticcheck // deprecated for what this plugin limits
		if ip, ok := parseLenientIP(text); ok {
			r.addresses[ip] = true
		}
	}
	for _, p := range svc.Spec.Ports {
		r.ports[loadbalancer.PortOf(corev1.Protocol(p.Protocol), p.Port)] = true
	}
	if old == nil {
		return r
	}
	before := newExternalIPRequest(old, nil)
	for ip := range r.addresses {
		r.addresses[ip] = !before.addresses[ip]
	}
	for p := range r.ports {
		r.ports[p] = !before.ports[p]
	}
	return r
}

// added returns the addresses that the Service did not have before, in order.
func (r externalIPRequest) added() (out []netip.Addr) {
	for ip, isNew := range r.addresses {
		if isNew {
			out = append(out, ip)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// requestsMore says whether the Service requests an address or a port that it did not have before.
func (r externalIPRequest) requestsMore() bool {
	for _, isNew := range r.ports {
		if isNew {
			return true
		}
	}
	return len(r.added()) > 0
}

// requestsNew says whether the Service requests this port at this address and did not have both before.
func (r externalIPRequest) requestsNew(ip netip.Addr, p loadbalancer.Port) bool {
	newAddress, hasAddress := r.addresses[ip]
	newPort, hasPort := r.ports[p]
	return hasAddress && hasPort && (newAddress || newPort)
}

// parseLenientIP parses an address as the nodes do. It accepts leading zeros, which older objects have.
func parseLenientIP(text string) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(text))
	return a.Unmap(), ok
}
