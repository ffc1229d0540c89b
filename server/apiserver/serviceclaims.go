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
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	core "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"
	netutils "k8s.io/utils/net"

	"github.com/coracle-k8s/coracle/internal/lbports"
)

// serviceClaimsPlugin is the name with which the plugin can be switched off.
const serviceClaimsPlugin = "CoracleServiceClaims"

// serviceClaims is an admission plugin that refuses a Service an external IP with a port that a Service of another namespace has there already. Nodes
// serve the older one of two such Services, since no object says since when it has an external IP (proxy/claims.go): whoever has kept an old Service would
// get what a younger one has been served until then. Of two writes at once both may pass; then the older Service is served.
type serviceClaims struct {
	*admission.Handler
	services corelisters.ServiceLister
}

var (
	_ admission.ValidationInterface                       = &serviceClaims{}
	_ apiserveradmission.WantsExternalKubeInformerFactory = &serviceClaims{}
)

// addServiceClaims puts the plugin behind NodeRestriction.
func addServiceClaims(s *kubeoptions.ServerRunOptions) {
	a := s.Admission.GenericAdmission
	a.Plugins.Register(serviceClaimsPlugin, func(io.Reader) (admission.Interface, error) { return newServiceClaims(), nil })
	order := slices.Clone(a.RecommendedPluginOrder) // upstream's is one variable for all
	a.RecommendedPluginOrder = slices.Insert(order, slices.Index(order, noderestriction.PluginName)+1, serviceClaimsPlugin)
}

func newServiceClaims() *serviceClaims {
	return &serviceClaims{Handler: admission.NewHandler(admission.Create, admission.Update)}
}

// SetExternalKubeInformerFactory implements WantsExternalKubeInformerFactory.
func (p *serviceClaims) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	services := f.Core().V1().Services()
	p.services = services.Lister()
	p.SetReadyFunc(services.Informer().HasSynced)
}

// ValidateInitialization implements admission.InitializationValidator.
func (p *serviceClaims) ValidateInitialization() error {
	if p.services == nil {
		return errors.New(serviceClaimsPlugin + " has no Services to compare with")
	}
	return nil
}

// Validate implements admission.ValidationInterface.
func (p *serviceClaims) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != core.Resource("services") || a.GetSubresource() != "" {
		return nil
	}
	svc, ok := a.GetObject().(*core.Service)
	if !ok {
		return admission.NewForbidden(a, fmt.Errorf("unexpected type %T", a.GetObject()))
	}
	old, _ := a.GetOldObject().(*core.Service) // none when it is created
	w := wishOf(svc, old)
	if !w.more {
		return nil
	}
	if !p.WaitForReady() {
		return admission.NewForbidden(a, errors.New("the other Services are not known yet"))
	}
	all, err := p.services.List(labels.Everything())
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("looking for Services with its external IPs: %w", err))
	}
	if at, port, taken := w.taken(a.GetNamespace(), all); taken {
		return admission.NewForbidden(a, fmt.Errorf("a Service of another namespace has the external IP %s with port %s: take another address or port, or have it given up there", at, port))
	}
	return nil
}

// wish is what a Service wants as external IPs, and with which ports: true where it had that address, or that port, not before.
type wish struct {
	addresses map[netip.Addr]bool
	ports     map[lbports.Port]bool
	more      bool // there is a pair that it had not
}

func wishOf(svc, old *core.Service) wish {
	w := wish{addresses: map[netip.Addr]bool{}, ports: map[lbports.Port]bool{}}
	for _, ip := range svc.Spec.ExternalIPs { //nolint:staticcheck // deprecated for what this plugin refuses; it is served all the same
		if a, ok := sloppyIP(ip); ok {
			w.addresses[a] = true
		}
	}
	for _, p := range svc.Spec.Ports {
		w.ports[lbports.Of(corev1.Protocol(p.Protocol), p.Port)] = true
	}
	w.more = len(w.addresses) > 0 && len(w.ports) > 0
	if old == nil || !w.more {
		return w
	}
	before := wishOf(old, nil)
	w.more = false
	for a := range w.addresses {
		w.addresses[a] = !before.addresses[a]
		w.more = w.more || w.addresses[a]
	}
	for p := range w.ports {
		w.ports[p] = !before.ports[p]
		w.more = w.more || w.ports[p]
	}
	return w
}

// taken says whether a Service of another namespace has one of the new pairs, be it served or not: that may change by what is no new wish.
func (w wish) taken(namespace string, all []*corev1.Service) (at netip.Addr, port lbports.Port, taken bool) {
	for _, s := range all {
		if s.Namespace == namespace {
			continue
		}
		for _, ip := range s.Spec.ExternalIPs {
			a, ok := sloppyIP(ip)
			isNew, wanted := w.addresses[a]
			if !ok || !wanted {
				continue
			}
			for _, p := range s.Spec.Ports {
				port := lbports.Of(p.Protocol, p.Port)
				if newPort, wanted := w.ports[port]; wanted && (isNew || newPort) {
					return a, port, true
				}
			}
		}
	}
	return netip.Addr{}, lbports.Port{}, false
}

// sloppyIP reads an address as the nodes do: with leading zeros, too, which objects from before have.
func sloppyIP(text string) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(text))
	return a.Unmap(), ok
}
