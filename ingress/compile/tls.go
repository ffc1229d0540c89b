// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/certificate"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// keyAuthorities is the key of a Secret's data that holds authorities, in PEM.
const keyAuthorities = "ca.crt"

// guardAnnotations are the annotations that cannot apply to connections that are forwarded unread.
var guardAnnotations = []string{
	"allowlist-source-range", "auth-secret", "auth-tls-secret", "auth-type", "auth-url", "denylist-source-range",
	"limit-connections", "limit-rpm", "limit-rps",
	"whitelist-source-range",
}

// passthrough reads the annotation that forwards TLS connections unread.
func (o *options) passthrough(ing *networkingv1.Ingress) {
	if o.flag("ssl-passthrough", &o.streams); !o.streams {
		return
	}
	for _, name := range guardAnnotations {
		if _, ok := o.annotations[name]; ok {
			o.refuseFor(nginxPrefix+"ssl-passthrough",
				"the annotation %sssl-passthrough passes connections on without reading requests, so that %s cannot hold:"+
					" the Ingress' routes answer 503", nginxPrefix, name)
		}
	}
	root := func(r networkingv1.IngressRule) bool {
		isRoot := func(p networkingv1.HTTPIngressPath) bool { return cmp.Or(p.Path, "/") == "/" }
		return r.Host != "" && r.HTTP != nil && slices.ContainsFunc(r.HTTP.Paths, isRoot)
	}
	if len(ing.Spec.Rules) == 0 || slices.ContainsFunc(ing.Spec.Rules, func(r networkingv1.IngressRule) bool { return !root(r) }) {
		o.refuseFor(nginxPrefix+"ssl-passthrough",
			"the annotation %sssl-passthrough needs a host and the path / in each rule, whose backend gets the connections:"+
				" the Ingress' routes answer 503", nginxPrefix)
	}
}

// stream returns the stream that a host's TLS connections go to. It returns nil for a host whose requests are read.
func (c *compiler) stream(name string, h *host) *table.Stream {
	var first, stream *route
	for _, r := range h.routes {
		if first == nil || older(r.ing, first.ing) {
			first = r
		}
		if r.options.streams && r.written == "/" && !r.fallback && (stream == nil || older(r.ing, stream.ing)) {
			stream = r
		}
	}
	switch {
	case stream == nil:
		return nil
	case first.ing != stream.ing && older(first.ing, stream.ing):
		c.find(stream.ing, Finding{ReasonPathTaken, fieldRules, fmt.Sprintf(
			"%s has paths at the host %q already: its TLS connections are not passed on, and the path / answers 503",
			first.options.object, name)})
		stream.Refused, stream.Backends = "an older Ingress has paths at the host", nil
		return nil
	}
	for _, r := range h.routes {
		if r.ing != stream.ing {
			c.find(r.ing, Finding{ReasonPathTaken, fieldRules, fmt.Sprintf(
				"%s has the TLS connections of the host %q: this Ingress serves it without TLS alone", stream.options.object, name)})
		}
	}
	out := &table.Stream{} // a closed route has no backend: its connections are closed
	for _, b := range stream.Backends {
		b.Protocol, b.TLS = "", nil
		out.Backends = append(out.Backends, b)
	}
	return out
}

// older reports whether an Ingress comes before another in the order of served.
func older(a, b *networkingv1.Ingress) bool {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Namespace, b.Namespace),
		strings.Compare(a.Name, b.Name)) < 0
}

// secretOf reads an annotation that names a Secret of the Ingress' namespace.
func (o *options) secretOf(name string) (types.NamespacedName, bool) {
	text, ok := o.annotations[name]
	if !ok {
		return types.NamespacedName{}, false
	}
	if namespace, rest, ok := strings.Cut(text, "/"); ok {
		if namespace != o.namespace {
			o.refuseAnnotation(name, "a Secret of another namespace")
			return types.NamespacedName{}, false
		}
		text = rest
	}
	if text == "" || strings.ContainsAny(text, "/ ") {
		o.refuseAnnotation(name, "which is no name of a Secret")
		return types.NamespacedName{}, false
	}
	return types.NamespacedName{Namespace: o.namespace, Name: text}, true
}

// onOff reads an annotation that is on or off.
func (o *options) onOff(name string) bool {
	switch o.annotations[name] {
	case "on":
		return true
	case "", "off":
	default:
		o.refuseAnnotation(name, "which is neither on nor off")
	}
	return false
}

// backendTLS reads the annotations about TLS to backends.
func (o *options) backendTLS() {
	name, named := o.annotations["proxy-ssl-name"]
	if named && (!dnsName.MatchString(strings.ToLower(name)) || strings.HasPrefix(name, "*")) {
		o.refuseAnnotation("proxy-ssl-name", "which is no DNS name")
	}
	for _, text := range strings.Fields(o.annotations["proxy-ssl-protocols"]) {
		if !slices.Contains([]string{"SSLv2", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"}, text) {
			o.refuseAnnotation("proxy-ssl-protocols", "in which a part is no protocol")
		}
	}
	if text, ok := o.annotations["proxy-ssl-protocols"]; ok && !strings.Contains(text, "TLSv1.2") && !strings.Contains(text, "TLSv1.3") {
		o.refuseAnnotation("proxy-ssl-protocols", "and TLS 1.2 and 1.3 alone are spoken")
	}
	asks, verifies := o.onOff("proxy-ssl-server-name"), o.onOff("proxy-ssl-verify")
	secret, has := o.secretOf("proxy-ssl-secret")
	if !has && !named && !verifies {
		return
	}
	t := &table.BackendTLS{Unverified: !verifies}
	switch {
	case asks:
		t.ServerName = name
	case verifies:
		t.Names = []string{name}
	}
	switch {
	case verifies && !has:
		o.refuseAnnotation("proxy-ssl-verify", "and proxy-ssl-secret names no Secret with ca.crt")
	case verifies && !named:
		o.refuseAnnotation("proxy-ssl-verify", "and proxy-ssl-name says not for which name the certificates of backends are")
	}
	if has && verifies {
		t.Authorities = table.AuthoritiesKey("secret", secret.Namespace, secret.Name)
	}
	o.tls, o.tlsSecret = t, secret
}

// clientCertificates reads the annotations about clients' certificates.
func (o *options) clientCertificates() {
	secret, ok := o.secretOf("auth-tls-secret")
	if !ok {
		for _, name := range []string{"auth-tls-verify-client", "auth-tls-match-cn"} {
			if text, ok := o.annotations[name]; ok && text != "off" {
				o.refuseAnnotation(name, "and auth-tls-secret names no Secret with ca.crt")
			}
		}
		return
	}
	c := &table.Clients{Authorities: table.AuthoritiesKey("secret", secret.Namespace, secret.Name)}
	switch o.annotations["auth-tls-verify-client"] {
	case "", "on":
	case "off":
		return
	case "optional":
		c.Optional = true
	case "optional_no_ca":
		c.Optional, c.Unverified = true, true
	default:
		o.refuseAnnotation("auth-tls-verify-client", "which is none of on, off, optional and optional_no_ca")
	}
	if c.Subject = o.expression("auth-tls-match-cn"); c.Subject != "" {
		if !strings.HasPrefix(c.Subject, "CN=") {
			o.refuseAnnotation("auth-tls-match-cn", "which does not begin with CN=")
		}
	}
	if c.ErrorPage = o.annotations["auth-tls-error-page"]; c.ErrorPage != "" {
		scheme, rest, _ := strings.Cut(c.ErrorPage, "://")
		if scheme != "http" && scheme != "https" || rest == "" || !isVisible(rest) || strings.Contains(rest, "$") {
			o.refuseAnnotation("auth-tls-error-page", "which is no URL of http or https without variables")
		}
	}
	o.flag("auth-tls-pass-certificate-to-upstream", &c.Pass)
	o.policy.Clients, o.clientsSecret = c, secret
}

// tlsOf adds the sections of the Secrets that an Ingress names for TLS to backends and for clients' certificates.
func (c *compiler) tlsOf(a annotatedIngress) error {
	o := a.options
	if o.tlsSecret.Name != "" {
		c.r.Wanted[o.tlsSecret] = true
	}
	if o.clientsSecret.Name != "" {
		c.r.Wanted[o.clientsSecret] = true
	}
	if c.s.Secrets == nil {
		return nil
	}
	if o.clientsSecret.Name != "" {
		if err := c.authoritiesOf(a.ing, nginxPrefix+"auth-tls-secret", o.clientsSecret, "the Ingress' routes answer 503"); err != nil {
			return err
		}
	}
	if o.tls == nil || o.tlsSecret.Name == "" {
		return nil
	}
	if o.tls.Authorities != "" {
		if err := c.authoritiesOf(a.ing, nginxPrefix+"proxy-ssl-secret", o.tlsSecret, "its backends are not spoken to"); err != nil {
			return err
		}
	}
	s := c.s.Secrets[o.tlsSecret]
	if s == nil {
		if o.tls.Authorities == "" {
			c.find(a.ing, Finding{ReasonSecret, nginxPrefix + "proxy-ssl-secret", fmt.Sprintf(
				"the Secret %s does not exist: backends are not shown a certificate", o.tlsSecret.Name)})
		}
		return nil
	}
	switch why := c.s.Memory.certificateOf(s).flaw; {
	case why != "" && len(s.Data[corev1.TLSCertKey]) > 0:
		c.find(a.ing, Finding{ReasonSecret, nginxPrefix + "proxy-ssl-secret", fmt.Sprintf(
			"the Secret %s %s: backends are not shown a certificate", o.tlsSecret.Name, why)})
	case why == "" && !c.certificate(o.tlsSecret):
		c.find(a.ing, tooLarge(o.namespace, "its backends are not shown a certificate"))
	}
	c.ending(a.ing, nginxPrefix+"proxy-ssl-secret", s, c.s.Memory.certificateOf(s).validity, "certificate", "backends refuse it")
	return nil
}

// authoritiesOf adds the section of the authorities in a Secret. Without the section the proxy accepts no certificate.
// field is the annotation that names it, and so the consequence, for a finding.
func (c *compiler) authoritiesOf(ing *networkingv1.Ingress, field string, secret types.NamespacedName, so string) error {
	s := c.s.Secrets[secret]
	switch {
	case s == nil:
		c.find(ing, Finding{ReasonAuthorities, field, fmt.Sprintf("the Secret %s does not exist: %s", secret.Name, so)})
		return nil
	case len(s.Data[keyAuthorities]) > certificate.MaxChain:
		c.find(ing, Finding{ReasonAuthorities, field, fmt.Sprintf(
			"the Secret %s has more than %d bytes in the key %s: %s", secret.Name, certificate.MaxChain, keyAuthorities, so)})
		return nil
	case !c.s.Memory.certificateOf(s).isAuthority:
		c.find(ing, Finding{ReasonAuthorities, field, fmt.Sprintf(
			"the Secret %s has no certificates of authorities in the key %s: %s", secret.Name, keyAuthorities, so)})
		return nil
	}
	c.ending(ing, field, s, c.s.Memory.certificateOf(s).authorities, "authority", so)
	key := table.AuthoritiesKey("secret", secret.Namespace, secret.Name)
	if !c.reserveSecret(secret.Namespace, key, len(s.Data[keyAuthorities])) {
		what := fmt.Sprintf("the authorities of the Secret %s are left out, and %s", secret.Name, so)
		c.find(ing, tooLarge(secret.Namespace, what))
		return nil
	}
	if c.r.Sections[key] != nil { // of another Ingress
		return nil
	}
	return c.r.Sections.Put(key, table.Authorities{Certificates: string(s.Data[keyAuthorities])})
}

// ownCertificate returns the key of the certificate that the proxy sends to backends of an Ingress; "" for none.
func (c *compiler) ownCertificate(o *options) string {
	s := c.s.Secrets[o.tlsSecret]
	if o.tlsSecret.Name == "" || s == nil || c.s.Memory.certificateOf(s).flaw != "" || !c.certificate(o.tlsSecret) {
		return ""
	}
	return table.CertificateKey(o.tlsSecret.Namespace, o.tlsSecret.Name)
}

// tlsTo returns the TLS settings for backends of an Ingress. It returns nil if certificates are not verified.
func (c *compiler) tlsTo(o *options) *table.BackendTLS {
	if o.tls == nil || o.protocol != table.HTTPS1 && o.protocol != table.H2 {
		return nil
	}
	out := *o.tls
	out.Certificate = c.ownCertificate(o)
	return &out
}

// shareClients copies the settings for clients' certificates to those routes of the class nginx in the same namespace
// that have none, from the oldest Ingress that has them: ingress-nginx has these settings for a whole server. A route
// is closed when there is no memory for them. It reports whether any route asks clients for certificates.
func (c *compiler) shareClients(h *host) (asks bool) {
	first := map[string]*route{} // by namespace
	for _, r := range h.routes {
		if r.options.policy.Clients == nil {
			continue
		}
		asks = true
		if f := first[r.ing.Namespace]; r.options.nginx && (f == nil || older(r.ing, f.ing)) {
			first[r.ing.Namespace] = r
		}
	}
	for _, r := range h.routes {
		if f := first[r.ing.Namespace]; f != nil && r.options.nginx && r.options.policy.Clients == nil {
			r.clients = f.options.policy.Clients
			texts := len(r.clients.Subject) + len(r.clients.ErrorPage)
			if r.sharedBytes += texts; c.closed[f.ing] != "" {
				r.Refused = c.closed[f.ing]
			} else if !c.reserve(r.ing.Namespace, textFactor*texts) {
				problem := tooLarge(r.ing.Namespace, "a route with another Ingress' settings for clients' certificates answers 503")
				r.Refused = problem.Message
				c.find(r.ing, problem)
			}
		}
	}
	return asks
}
