// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// traefikPrefix is the prefix of Traefik's annotations.
const traefikPrefix = "traefik.ingress.kubernetes.io/"

// traefik reads Traefik's annotations of an Ingress. With the class nginx they have no effect, since ingress-nginx does
// not support them.
func (o *options) traefik(ing *networkingv1.Ingress) {
	if o.nginx {
		return
	}
	var ignored []string
	for _, name := range slices.Sorted(maps.Keys(ing.Annotations)) {
		short, ok := strings.CutPrefix(name, traefikPrefix)
		value := strings.TrimSpace(ing.Annotations[name])
		if !ok || value == "" {
			continue
		}
		switch {
		case short == "router.entrypoints":
			o.entryPoints(name, value)
		case short == "router.tls" && value == "true": // Traefik has no such route without TLS
			o.forceHTTPS = true
		case short == "router.tls" && value == "false":
		case short == "router.pathmatcher":
			o.pathMatcher(name, value)
		case short == "router.middlewares":
			o.refuseFor(name,
				"the annotation %s is not served: the Ingress' routes answer 503, for a middleware may restrict who gets in. "+
					"docs/ingress-traefik.md has what takes"+
					" the place of each kind; then remove the annotation", name)
		case short == "router.tls.certresolver" || strings.HasPrefix(short, "router.tls.domains.") || short == "router.rulesyntax" ||
			strings.HasPrefix(short, "router.observability."):
			ignored = append(ignored, short)
		default:
			o.refuseFor(name,
				"the annotation %s is not served: the Ingress' routes answer 503, for it may restrict who gets in or change what they get",
				name)
		}
	}
	if len(ignored) > 0 {
		o.findings = append(o.findings, Finding{ReasonIgnored, fieldsOf(traefikPrefix, ignored), fmt.Sprintf(
			"the Ingress is served without these annotations of %s*, which only tune: %s", traefikPrefix, strings.Join(ignored, ", "))})
	}
}

// entryPoints reads the Traefik entry points, as k3s names them, at which an Ingress is served: web is port 80 and
// websecure 443.
func (o *options) entryPoints(name, value string) {
	web, secure := false, false
	for part := range strings.SplitSeq(value, ",") {
		switch strings.TrimSpace(part) {
		case "web":
			web = true
		case "websecure":
			secure = true
		default:
			o.refuseFor(name,
				"the annotation %s names the entry point %q: the Ingress' routes answer 503, for only web (port 80) and websecure "+
					"(port 443) are here",
				name, strings.TrimSpace(part))
		}
	}
	if secure && !web {
		o.forceHTTPS = true
	}
}

func (o *options) pathMatcher(name, value string) {
	switch value {
	case "PathPrefix":
	case "Path":
		o.specific = table.PathExact
	default:
		o.refuseFor(name, "the annotation %s is %q: the Ingress' routes answer 503, for only PathPrefix and Path are served", name, value)
	}
}

// traefikService adds findings about Traefik's annotations of a Service, none of which is read.
func (c *compiler) traefikService(ing *networkingv1.Ingress, svc *corev1.Service) {
	if ClassOf(ing) != "traefik" {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(svc.Annotations)) {
		if strings.HasPrefix(name, traefikPrefix) {
			c.find(ing, Finding{ReasonIgnored, fieldRules, fmt.Sprintf(
				"the Service %s has the annotation %s, which is not read: docs/ingress-traefik.md has the annotation of the Ingress that "+
					"takes its place", svc.Name, name)})
		}
	}
}
