// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/outside"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// targets adds findings about what annotations make the proxies connect to beside the backends of paths. It is called
// when all hosts are known.
func (c *compiler) targets() {
	for _, a := range c.ingresses {
		o := a.options
		if o.refused != "" {
			continue
		}
		if e := o.policy.External; e != nil && !e.Self {
			field := nginxPrefix + "auth-url"
			if o.global {
				field = "global-auth-url"
			}
			c.target(a.ing, field, e.URL, e.Backend, "requests answer 500")
		}
		for _, m := range o.policy.Mirrors {
			backend := &m.Backend
			if backend.Service == "" {
				backend = nil
			}
			c.target(a.ing, nginxPrefix+"mirror-target", m.URL, backend, "no copy is sent")
		}
		if f := o.policy.Fallback; f != nil {
			c.service(a.ing, nginxPrefix+"default-backend", f.Backend, "it makes no answers")
		}
	}
}

// target adds findings about a URL, or about the Service that it names. so is the consequence.
func (c *compiler) target(ing *networkingv1.Ingress, field, url string, backend *table.Backend, so string) {
	if backend != nil {
		c.service(ing, field, *backend, so)
		return
	}
	_, host, _ := strings.Cut(url, "://")
	if at := strings.IndexAny(host, "/?$"); at >= 0 {
		host = host[:at]
	}
	name := strings.TrimSuffix(strings.ToLower(withoutPort(host)), ".")
	ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
	switch {
	case err == nil && (outside.Local(ip.Unmap()) || c.s.OwnsAddress != nil && c.s.OwnsAddress(ip.Unmap())),
		name == "localhost" || strings.HasSuffix(name, ".localhost"):
		c.find(ing, Finding{ReasonUnreachable, field, fmt.Sprintf("the host %s is an address of a machine itself or of the cluster, to which "+
			"proxies open no connection: %s. Name a Service, as http://NAME.%s.svc", host, so, ing.Namespace)})
	case c.s.AtNodes && (c.hosts[name] != nil || c.hosts[wildcard(name)] != nil):
		c.find(ing, Finding{ReasonUnreachable, field, fmt.Sprintf("this ingress serves the host %s, at addresses of nodes, to which proxies "+
			"open no connection: %s. Name the Service of that host, as http://NAME.%s.svc, or give the Service %s an address of a pool",
			host, so, ing.Namespace, table.Service)})
	}
}

func withoutPort(host string) string {
	if at := strings.LastIndexByte(host, ':'); at > strings.LastIndexByte(host, ']') {
		return host[:at]
	}
	return host
}

// service adds findings about the Service of a backend. field names the Service, and so is the consequence of one that
// is not served.
func (c *compiler) service(ing *networkingv1.Ingress, field string, b table.Backend, so string) {
	if c.s.Service == nil {
		return
	}
	svc := c.s.Service(b.Namespace, b.Service)
	switch svc {
	case UnknownService:
		return
	case nil:
		c.find(ing, Finding{ReasonService, field, fmt.Sprintf("there is no Service %s in the namespace %s", b.Service, b.Namespace)})
		return
	}
	if field == fieldRules {
		c.traefikService(ing, svc)
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		c.find(ing, Finding{ReasonUnsupported, field, fmt.Sprintf(
			"the Service %s is of the type ExternalName, which is not served: %s", b.Service, so)})
		return
	}
	if b.Port != "" && !slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool {
		return p.Name == b.Port || strconv.Itoa(int(p.Port)) == b.Port
	}) {
		c.find(ing, Finding{ReasonService, field, fmt.Sprintf("the Service %s has no port %s", b.Service, b.Port)})
	}
	if c.s.Barred == nil {
		return
	}
	if at := c.s.Barred(b.Namespace, b.Service); len(at) > 0 {
		c.find(ing, Finding{ReasonUnreachable, field, fmt.Sprintf("the Service %s has endpoints at %s, to which proxies open no connection, "+
			"since they are addresses of Services or ports of the cluster's own programs: requests for them answer 502. Correct its "+
			"EndpointSlices", b.Service, strings.Join(at[:min(len(at), maxNamedEndpoints)], ", "))})
	}
}

// maxNamedEndpoints limits how many endpoints a finding names.
const maxNamedEndpoints = 3
