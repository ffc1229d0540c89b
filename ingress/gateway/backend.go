// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// appProtocols are the supported protocols of a Service's port, as named in the table without and with TLS. Other
// protocols outside of the domain kubernetes.io are served as HTTP/1.1, since their meaning is not defined.
var appProtocols = map[string]struct{ plain, tls string }{
	"kubernetes.io/h2c": {table.H2C, table.H2},
	"kubernetes.io/ws":  {table.HTTP1, table.HTTPS1},
	"kubernetes.io/wss": {table.HTTPS1, table.HTTPS1},
}

// backend resolves a reference of a route. For one that cannot be used it sets Invalid to the reason.
func (c *compiler) backend(r *route, ref gatewayv1.BackendObjectReference) (out table.Backend, p problem) {
	defer func() { out.Invalid = p.message }()
	if group, kind := ptr.Deref(ref.Group, ""), ptr.Deref(ref.Kind, "Service"); group != "" || kind != "Service" {
		return out, problem{string(gatewayv1.RouteReasonInvalidKind),
			fmt.Sprintf("the backend %s is of the kind %s in the group %q: only Services are served", ref.Name, kind, group)}
	}
	name := types.NamespacedName{Namespace: string(ptr.Deref(ref.Namespace, gatewayv1.Namespace(r.object.GetNamespace()))),
		Name: string(ref.Name)}
	from, to := referrer{r.kind, r.object.GetNamespace()}, referent{"Service", name}
	if !c.permitted(from, to) {
		return out, problem{string(gatewayv1.RouteReasonRefNotPermitted), refusedReference(from, to)}
	}
	r.services[name] = true
	service := c.service(name)
	notFound := string(gatewayv1.RouteReasonBackendNotFound)
	switch {
	case service == nil:
		return out, problem{notFound, fmt.Sprintf("there is no Service %s", name)}
	case service.Spec.Type == corev1.ServiceTypeExternalName:
		return out, problem{string(gatewayv1.RouteReasonInvalidKind),
			fmt.Sprintf("the Service %s is of the type ExternalName, which is not served", name)}
	case ref.Port == nil:
		return out, problem{notFound, fmt.Sprintf("the backend %s has no port", name)}
	}
	at := slices.IndexFunc(service.Spec.Ports, func(s corev1.ServicePort) bool {
		return s.Port == *ref.Port && (s.Protocol == corev1.ProtocolTCP || s.Protocol == "")
	})
	if at < 0 {
		return out, problem{notFound, fmt.Sprintf("the Service %s has no port %d of TCP", name, *ref.Port)}
	}
	out = table.Backend{Namespace: name.Namespace, Service: name.Name, Port: strconv.Itoa(int(*ref.Port))}
	return out, c.protocol(r, &out, name, service.Spec.Ports[at])
}

func (c *compiler) protocol(r *route, b *table.Backend, service types.NamespacedName, port corev1.ServicePort) problem {
	policy := c.policies.policyFor(service, port.Name)
	if r.kind == kindTLS {
		if policy == nil || r.passthrough {
			return problem{}
		}
		b.TLS = new(policy.tls)
		return policy.problemForUse()
	}
	known, ok := appProtocols[ptr.Deref(port.AppProtocol, "")]
	switch {
	case !ok && isKubernetes(ptr.Deref(port.AppProtocol, "")):
		return problem{string(gatewayv1.RouteReasonUnsupportedProtocol),
			fmt.Sprintf("the Service %s has the appProtocol %s, which is not served", service, *port.AppProtocol)}
	case r.kind == kindGRPC:
		known = struct{ plain, tls string }{table.H2C, table.H2}
	case !ok:
		known = struct{ plain, tls string }{table.HTTP1, table.HTTPS1}
	}
	b.Protocol = known.plain
	if policy != nil {
		b.Protocol, b.TLS = known.tls, new(policy.tls)
		return policy.problemForUse()
	}
	return problem{}
}

func isKubernetes(appProtocol string) bool {
	const domain = "kubernetes.io/"
	return len(appProtocol) >= len(domain) && appProtocol[:len(domain)] == domain
}

// problemForUse returns the reason why the policy permits no connection.
func (p *policy) problemForUse() problem {
	if p.flaw.ok() {
		return problem{}
	}
	return problem{p.flaw.reason, fmt.Sprintf("the BackendTLSPolicy %s cannot be used: %s", p.object.Name, p.flaw.message)}
}

// backends resolves references with their weights. each may change the backend of a reference. If no backend gets
// requests, the result is one invalid backend with the reason.
func (c *compiler) backends(r *route, refs []gatewayv1.BackendRef, each func(i int, b *table.Backend)) (out []table.Backend, p problem) {
	for i, ref := range refs {
		b, why := c.backend(r, ref.BackendObjectReference)
		p = firstProblem(p, why)
		if each != nil {
			each(i, &b)
		}
		if b.Weight = int(ptr.Deref(ref.Weight, 1)); b.Weight > 0 {
			out = append(out, b)
		}
	}
	switch {
	case len(out) > 0:
	case len(refs) > 0:
		out = []table.Backend{{Weight: 1, Invalid: "all backends have the weight 0"}}
	default:
		out = []table.Backend{{Weight: 1, Invalid: "the rule names no backend"}}
	}
	return out, p
}

// withCertificate returns a backend with the certificate that a Gateway sends to backends.
func withCertificate(b table.Backend, g *gateway) table.Backend {
	if b.TLS != nil && g.certificate != nil {
		tls := *b.TLS
		tls.Certificate = g.certificate.key
		b.TLS = &tls
	}
	return b
}
