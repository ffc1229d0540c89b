// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"context"
	"net/url"
	"slices"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// service has the fields of a Service that the check needs.
type service struct {
	ports    []corev1.ServicePort
	base     finding
	selector map[string]string
	young    bool
	external bool // it is another host's name
}

func judgeService(c *check, o *checkedObject, base finding, young bool) bool {
	s := parse[corev1.ServiceSpec](o.Spec)
	external := s.Type == corev1.ServiceTypeExternalName
	c.services[base.Namespace+"/"+base.Name] = service{
		ports: s.Ports, base: base, selector: s.Selector, young: young, external: external,
	}
	status := parse[corev1.ServiceStatus](o.Status)
	if s.Type == corev1.ServiceTypeLoadBalancer && len(status.LoadBalancer.Ingress) == 0 && !young {
		c.add(base, "noAddress", true)
	}
	return false
}

func judgeSlice(c *check, o *checkedObject, base finding, _ bool) bool {
	name := o.Metadata.Labels[discoveryv1.LabelServiceName]
	if name == "" {
		return false
	}
	n := c.ready[base.Namespace+"/"+name]
	endpoints := parse[[]discoveryv1.Endpoint](o.Endpoints)
	for i := range endpoints {
		n[1]++
		if ready := endpoints[i].Conditions.Ready; ready == nil || *ready {
			n[0]++
		}
	}
	c.ready[base.Namespace+"/"+name] = n
	return false
}

// backend is a Service that an Ingress leads to.
type backend struct {
	base    finding
	service networkingv1.IngressServiceBackend
}

func judgeIngress(c *check, o *checkedObject, base finding, young bool) bool {
	if young {
		return false
	}
	s := parse[networkingv1.IngressSpec](o.Spec)
	add := func(b *networkingv1.IngressBackend) {
		if b != nil && b.Service != nil {
			c.ingress = append(c.ingress, backend{base: base, service: *b.Service})
		}
	}
	add(s.DefaultBackend)
	for i := range s.Rules {
		if rule := s.Rules[i].HTTP; rule != nil {
			for j := range rule.Paths {
				add(&rule.Paths[j].Backend)
			}
		}
	}
	return false
}

// routeStatus has the status fields of Gateways and of their routes.
type routeStatus struct {
	Listeners []struct {
		Name       string      `json:"name"`
		Conditions []condition `json:"conditions"`
	} `json:"listeners"`
	Parents []struct {
		Conditions []condition `json:"conditions"`
	} `json:"parents"`
}

// judgeAccepted adds the first condition of a Gateway, a listener or a route that says that it does not work.
func (c *check) judgeAccepted(base finding, all []condition, change ...func(*finding)) (bad bool) {
	for _, kind := range []string{"Accepted", "ResolvedRefs", "Programmed"} {
		if x := find(all, kind); x != nil && x.Status != "True" {
			c.add(base, "condition", x.Status != "False", append(change, aboutName(kind), withText(x.text()))...)
			return true
		}
	}
	return false
}

func judgeGateway(c *check, o *checkedObject, base finding, young bool) bool {
	if young {
		return false
	}
	all := conditionsOf(o.Status)
	if len(all) == 0 {
		c.add(base, "ignored", true)
		return false
	}
	for _, l := range parse[routeStatus](o.Status).Listeners {
		if c.judgeAccepted(base, l.Conditions) { // the listener's words are closer to the cause
			return false
		}
	}
	c.judgeAccepted(base, all)
	return false
}

func judgeRoute(c *check, o *checkedObject, base finding, young bool) bool {
	if young {
		return false
	}
	parents := parse[routeStatus](o.Status).Parents
	if len(parents) == 0 {
		c.add(base, "ignored", true)
	}
	for _, p := range parents {
		if c.judgeAccepted(base, p.Conditions) {
			break
		}
	}
	return false
}

// maxWebhooks limits the Services of webhooks that one check asks for.
const maxWebhooks = 50

// webhook is a webhook that calls a Service.
type webhook struct {
	base       finding
	service    string // its namespace and name
	failClosed bool   // requests are refused while it does not answer
}

type webhooks []webhook

func judgeWebhooks(c *check, o *checkedObject, base finding, young bool) bool {
	if young {
		return false
	}
	// The fields that are read are those of both kinds of webhooks.
	for _, h := range parse[[]admissionv1.ValidatingWebhook](o.Webhooks) {
		s := h.ClientConfig.Service
		if s == nil || len(c.webhooks) >= maxWebhooks {
			continue
		}
		name := s.Namespace + "/" + s.Name
		fail := h.FailurePolicy == nil || *h.FailurePolicy == admissionv1.Fail
		if i := slices.IndexFunc(c.webhooks, func(w webhook) bool { return w.base.UID == base.UID && w.service == name }); i >= 0 {
			c.webhooks[i].failClosed = c.webhooks[i].failClosed || fail
			continue
		}
		c.webhooks = append(c.webhooks, webhook{base, name, fail})
	}
	return false
}

// checkEndpoints adds a finding for each webhook whose Service has no ready endpoint. The Services may be in other
// namespaces than the check's. One of which the user may not know is left out.
func (w webhooks) checkEndpoints(ctx context.Context, c *check, u *user) {
	found := map[string]int32{}
	for i := range w {
		n, known := found[w[i].service]
		if !known {
			namespace, name, _ := strings.Cut(w[i].service, "/")
			query := url.Values{"labelSelector": {discoveryv1.LabelServiceName + "=" + name}}
			var list struct{ Items []discoveryv1.EndpointSlice }
			if u.get(ctx, "/apis/discovery.k8s.io/v1/namespaces/"+namespace+"/endpointslices", query, &list) != nil {
				n = -1
			}
			for j := range list.Items {
				for k := range list.Items[j].Endpoints {
					if ready := list.Items[j].Endpoints[k].Conditions.Ready; ready == nil || *ready {
						n++
					}
				}
			}
			found[w[i].service] = n
		}
		if n == 0 {
			c.add(w[i].base, "webhook", !w[i].failClosed, aboutName(w[i].service))
		}
	}
}

func (c *check) findBackends() {
	found := map[string]bool{}
	for _, b := range c.ingress {
		key := b.base.Namespace + "/" + b.service.Name
		s, known := c.services[key]
		if found[b.base.UID+key] {
			continue
		}
		port := b.service.Port
		switch {
		case !known:
			c.add(b.base, "backend", false, aboutName(b.service.Name))
		case !s.external && !slices.ContainsFunc(s.ports, func(p corev1.ServicePort) bool {
			return port.Name != "" && p.Name == port.Name || port.Name == "" && p.Port == port.Number
		}):
			c.add(b.base, "backendPort", false, aboutName(b.service.Name), withText(cmp.Or(port.Name, strconv.Itoa(int(port.Number)))))
		default:
			continue
		}
		found[b.base.UID+key] = true
	}
}
