// SPDX-License-Identifier: Apache-2.0

// Package compile turns Ingress objects into the table of the ingress proxy.
//
// Desired is a pure function of the cluster's objects: the order of its input changes nothing, and no object makes it
// fail. It also returns the problems of each object (Finding), which the leader writes as events. It reads and writes
// no API.
package compile

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/config"
)

// State is the input of Desired: the objects of the cluster.
type State struct {
	Ingresses []*networkingv1.Ingress
	Classes   []*networkingv1.IngressClass
	// Secrets are those of Wanted that exist. A nil map leaves certificates out, without a Finding.
	Secrets map[types.NamespacedName]*corev1.Secret
	// Default and Account are the Secrets of these names. Each is nil if there is none.
	Default, Account *corev1.Secret
	// ConfigMaps are those of WantedConfigMaps that exist. A nil map leaves their content out, without a Finding.
	ConfigMaps map[types.NamespacedName]*corev1.ConfigMap
	// Service returns a Service, or nil if there is none, or UnknownService. If the function is nil, Services are not
	// checked.
	Service func(namespace, name string) *corev1.Service
	// Defaults is the ConfigMap of this name. It is nil if there is none.
	Defaults *corev1.ConfigMap
	// Barred returns the endpoints of a Service to which the proxies open no connection, as ADDRESS:PORT. If it is nil,
	// endpoints are not checked.
	Barred func(namespace, name string) []string
	// OwnsAddress reports whether an address is the cluster's. If it is nil, only addresses of machines themselves,
	// such as loopback, are known.
	OwnsAddress func(netip.Addr) bool
	// AtNodes says that clients reach the ingress at addresses of nodes.
	AtNodes bool
	// Now is the time at which certificates are judged. If it is zero, their ends are not checked.
	Now time.Time
	// Rules are the operator's settings.
	Rules Rules
	// AllFindings lifts the limit of findings of one object.
	AllFindings bool
	// Memory is a cache that makes the next call with the same Memory faster. nil is for no cache.
	Memory *Memory
}

// UnknownService is what State.Service returns for a Service of which it is unknown whether it exists.
var UnknownService = &corev1.Service{}

// Rules are the settings of the cluster's operator.
type Rules = config.Ingress

// Finding is a problem of an object, or something that was left out of it.
type Finding struct {
	Reason string
	// Field is what the problem is in: an annotation, several separated by commas, a field such as spec.tls, or a key
	// of the ConfigMap Defaults. It is empty for the whole object.
	Field string
	// Message says what is wrong, what follows, and what to do.
	Message string
}

// Fields of an Ingress that findings are about.
const (
	fieldRules = "spec.rules"
	fieldTLS   = "spec.tls"
)

// fieldsOf returns the field of a finding about several annotations or keys.
func fieldsOf(prefix string, names []string) string {
	return prefix + strings.Join(names, ", "+prefix)
}

// Result is the output of Desired.
type Result struct {
	Sections table.Sections
	// Served are the Ingresses that coracle serves, in the order of their age.
	Served []*networkingv1.Ingress
	// Orders are the certificates to request by ACME, in the order of their Secrets' names.
	Orders []Order
	// Wanted are the Secrets that served Ingresses name.
	Wanted map[types.NamespacedName]bool
	// OfDefaults are the problems of the ConfigMap Defaults.
	OfDefaults []Finding
	// Next is when findings about the ends of certificates change without a change of objects; zero for never.
	Next time.Time
	// Findings are the findings by Ingress.
	Findings map[types.NamespacedName][]Finding
}

// Reasons of findings.
const (
	// ReasonPathTaken says that an older Ingress has the path, or that an expression of the class nginx takes requests
	// for it.
	ReasonPathTaken = "PathTaken"
	// ReasonHostTaken says that a host belongs to another namespace.
	ReasonHostTaken = "HostTaken"
	// ReasonUnsupported says that a route has a setting that is not supported.
	ReasonUnsupported = "Unsupported"
	// ReasonBadHost says that a host is no DNS name that can be served.
	ReasonBadHost = "BadHost"
	// ReasonSecret says that a Secret is missing or holds no certificate, and that a default takes its place.
	ReasonSecret = "BadCertificate"
	// ReasonAuthorities says that a Secret is missing or holds no authorities, so that no certificate is accepted.
	ReasonAuthorities = "BadAuthorities"
	// ReasonExpiring and ReasonExpired say that a certificate ends soon, or has ended.
	ReasonExpiring = "CertificateExpiring"
	ReasonExpired  = "CertificateExpired"
	// ReasonUnreachable says that the proxies open no connection to an address.
	ReasonUnreachable = "Unreachable"
	// ReasonCertificate says that a certificate is not ordered by ACME.
	ReasonCertificate = "NotOrdered"
	// ReasonIgnored says that annotations that only tune were ignored.
	ReasonIgnored = "Ignored"
	// ReasonDifferent says that an annotation is served in another way than by ingress-nginx. No event has it.
	ReasonDifferent = "Different"
	// ReasonUsers says that a Secret with users is missing, or that some of them cannot log in.
	ReasonUsers = "BadUsers"
	// ReasonService says that a Service or a port of it is missing, or that the Service is not served.
	ReasonService = "BadBackend"
	// ReasonCostly says that the expressions of a host take long, so that requests with long paths may be refused.
	ReasonCostly = "Costly"
	// ReasonTooLarge says that something was left out since the table would take too much memory.
	ReasonTooLarge = "TooLarge"
)

type compiler struct {
	s         State
	r         Result
	hosts     map[string]*host // of SiteIngress
	ingresses []annotatedIngress
	ownerOf   map[string]*networkingv1.Ingress // by host: the oldest Ingress with the host in a rule
	// usedMemory is what each namespace has used of maxTable. totalMemory is the sum over all namespaces.
	usedMemory  map[string]int
	totalMemory int
	secrets     map[string]bool // whether the section of a Secret fitted into maxTable, by its key
	common      *headers        // for all Ingresses; nil for none
	shadow      int             // what findShadowed has taken of maxShadow

	expressions map[chargedKey]bool              // whether the program of an expression fitted
	closed      map[*networkingv1.Ingress]string // why all routes of an Ingress are closed
}

type annotatedIngress struct {
	ing     *networkingv1.Ingress
	options *options
}

// host collects what a host's section is made from.
type host struct {
	namespace       string // of the Ingress that named it first
	certificate     string
	secret          types.NamespacedName // of the certificate
	routes          []*route
	ownerOfRoute    map[routeKey]string // the object that owns a path
	stream          *table.Stream
	secure          bool // an Ingress of the host has spec.tls, whether its Secret can be used or not
	wantsClientCert bool // clients are asked for certificates
	regex           bool // a quirk of ingress-nginx: all paths of the class nginx are expressions
}

// routeKey identifies a route of a host. Only one Ingress may have it.
type routeKey struct {
	path     string
	kind     table.PathKind
	fallback bool
}

// route is a table.Route with the values that its order and its form follow from.
type route struct {
	table.Route
	fallback    bool // an Ingress' default backend, which comes after all paths
	ing         *networkingv1.Ingress
	options     *options
	written     string // the path in the Ingress
	steps       int    // of its expression
	specific    bool   // of pathType ImplementationSpecific
	canary      *table.Canary
	legacy      bool     // the canary has no regard to sessions
	headers     *headers // of ConfigMaps; nil for none
	fallen      *table.Fallback
	clients     *table.Clients // of another Ingress of the host, where its own has none
	sharedBytes int            // bytes of the texts of other Ingresses: of canary and clients
}

// Desired compiles the state.
func Desired(s State) (Result, error) {
	c := &compiler{s: s, hosts: map[string]*host{}, ownerOf: map[string]*networkingv1.Ingress{}, usedMemory: map[string]int{}, r: Result{
		Sections: table.Sections{}, Wanted: map[types.NamespacedName]bool{}, Findings: map[types.NamespacedName][]Finding{},
	}}
	c.secrets, c.expressions, c.closed = map[string]bool{}, map[chargedKey]bool{}, map[*networkingv1.Ingress]string{}
	c.s.Memory = cmp.Or(c.s.Memory, &Memory{})
	c.s.Memory.evictUnused(s)
	c.r.OfDefaults = c.s.Memory.defaults.findings
	c.r.Served = servedIngresses(s)
	c.readCommon()
	for _, ing := range c.r.Served {
		if err := c.ingress(ing); err != nil {
			return Result{}, err
		}
	}
	c.canaries()
	if err := c.sessions(); err != nil {
		return Result{}, err
	}
	for _, name := range slices.Sorted(maps.Keys(c.hosts)) { // in a fixed order, which decides what is left out for its size
		c.finishHost(name, c.hosts[name])
	}
	c.names()
	c.targets()
	for name, h := range c.hosts {
		out := table.Host{
			Certificate: h.certificate, Final: c.final(h), Routes: make([]table.Route, 0, len(h.routes)), Stream: h.stream,
			AskClients: h.wantsClientCert,
		}
		for _, r := range h.routes {
			out.Routes = append(out.Routes, r.Route)
		}
		if err := c.r.Sections.Put(table.HostKey(table.SiteIngress, name), out); err != nil {
			return Result{}, err
		}
	}
	if len(s.Rules.TrustedProxies) > 0 {
		settings := table.Settings{TrustedProxies: s.Rules.TrustedProxies, ProxyProtocol: s.Rules.ProxyProtocol}
		if err := c.r.Sections.Put(table.KindSettings, settings); err != nil {
			return Result{}, err
		}
	}
	c.defaultCertificate()
	if err := c.orders(); err != nil {
		return c.r, err
	}
	return c.r, c.r.Sections.PutCharges("ingress", c.usedMemory, c.youngestObject)
}

// servedIngresses returns the Ingresses of served classes, the oldest first.
func servedIngresses(s State) []*networkingv1.Ingress {
	classes := servedClasses(s.Classes)
	var out []*networkingv1.Ingress
	for _, ing := range s.Ingresses {
		if ing.DeletionTimestamp == nil && classes.serve(ing) {
			out = append(out, ing)
		}
	}
	slices.SortFunc(out, func(a, b *networkingv1.Ingress) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Namespace, b.Namespace),
			strings.Compare(a.Name, b.Name))
	})
	return out
}

// Wanted returns the Secrets that served Ingresses name. It is the same as Result.Wanted, without building the table.
func Wanted(s State) map[types.NamespacedName]bool {
	out := map[types.NamespacedName]bool{}
	memory := s.memory()
	for _, ing := range servedIngresses(s) {
		o := memory.optionsOf(ing)
		if o.users != nil {
			out[o.users.secret] = true
		}
		for _, name := range []types.NamespacedName{o.tlsSecret, o.clientsSecret} {
			if name.Name != "" {
				out[name] = true
			}
		}
		for _, t := range TLS(ing.Spec.TLS) {
			if t.SecretName != "" {
				out[types.NamespacedName{Namespace: ing.Namespace, Name: t.SecretName}] = true
			}
		}
	}
	return out
}

// compareRoutes compares routes as Ingress v1 does: the longer path first, and of two paths with the same length an
// exact one. The paths of challenges come before all others, since no expression may have precedence over them.
func compareRoutes(a, b *route) int {
	if x, y := a.challenge(), b.challenge(); x != y {
		if y {
			return 1
		}
		return -1
	}
	if a.fallback != b.fallback {
		if a.fallback {
			return 1
		}
		return -1
	}
	return cmp.Or(len(b.length())-len(a.length()), strings.Compare(a.Path, b.Path), strings.Compare(string(a.Kind), string(b.Kind)))
}

// ingress adds the routes and sections of an Ingress.
func (c *compiler) ingress(ing *networkingv1.Ingress) error {
	o := c.s.Memory.optionsOf(ing)
	if !c.reserve(ing.Namespace, costOf(ing, o)) {
		c.find(ing, tooLarge(ing.Namespace, "this Ingress is not served"))
		return nil
	}
	if len(TLS(ing.Spec.TLS)) < len(ing.Spec.TLS) {
		c.find(ing, Finding{ReasonTooLarge, fieldTLS, fmt.Sprintf("spec.tls names more than %d hosts and Secrets: what comes after them is "+
			"left out (several Ingresses, or a certificate with a wildcard, mend it)", maxTLS)})
	}
	a := annotatedIngress{ing, o}
	c.ingresses = append(c.ingresses, a)
	for _, e := range o.expressions {
		if !c.charged(ing.Namespace, e) {
			problem := tooLarge(ing.Namespace, "the expressions in annotations of this Ingress are not compiled, so that its routes answer "+
				"503, or that as a canary it gets no requests")
			c.closed[ing] = problem.Message
			c.find(ing, problem)
		}
	}
	if err := c.usersOf(a); err != nil {
		return err
	}
	if err := c.tlsOf(a); err != nil {
		return err
	}
	headers := c.headersOf(ing, o)
	for _, f := range o.findings {
		c.find(ing, f)
	}
	if o.canary == nil { // canaries adds its backends to other Ingresses' routes
		c.hostsOf(ing, o, headers)
	}
	return nil
}

// hostsOf adds the hosts and paths of an Ingress.
func (c *compiler) hostsOf(ing *networkingv1.Ingress, o *options, headers *headers) {
	certificates := c.certificatesOf(ing)
	for _, rule := range ing.Spec.Rules {
		name, ok := hostName(rule.Host)
		if !ok {
			c.find(ing, Finding{ReasonBadHost, fieldRules, fmt.Sprintf("the host %q is no DNS name: its rule is left out", rule.Host)})
			continue
		}
		if !c.mayHaveHost(ing, name) {
			continue
		}
		h := c.host(ing.Namespace, name)
		h.secure = h.secure || len(ing.Spec.TLS) > 0
		if key := c.certificateFor(ing, certificates, name); key != "" && h.certificate == "" {
			h.certificate, h.secret = key, certificates.certificateOf(name)
		}
		if rule.HTTP == nil || len(rule.HTTP.Paths) == 0 {
			if ing.Spec.DefaultBackend == nil {
				c.find(ing, Finding{ReasonUnsupported, fieldRules,
					fmt.Sprintf("the rule of the host %q has no path, and the Ingress no default backend", rule.Host)})
			}
		} else {
			for i := range rule.HTTP.Paths {
				c.path(ing, o, headers, h, name, &rule.HTTP.Paths[i])
			}
		}
		c.fallback(ing, o, headers, h, name)
	}
	if len(ing.Spec.Rules) == 0 && ing.Spec.DefaultBackend != nil && c.mayHaveHost(ing, "") {
		h := c.host(ing.Namespace, "")
		if key := c.certificateFor(ing, certificates, ""); key != "" && h.certificate == "" {
			h.certificate = key
		}
		c.fallback(ing, o, headers, h, "")
	}
}

func (c *compiler) path(ing *networkingv1.Ingress, o *options, headers *headers, h *host, name string, p *networkingv1.HTTPIngressPath) {
	kind, path := table.PathPrefix, cmp.Or(p.Path, "/")
	r := &route{ing: ing, options: o, headers: headers, written: path}
	switch {
	case p.PathType != nil && *p.PathType == networkingv1.PathTypeExact:
		kind = table.PathExact
	case p.PathType == nil || *p.PathType == networkingv1.PathTypeImplementationSpecific:
		r.specific = true
		if o.nginx {
			kind = table.PathText
		} else if o.specific != "" {
			kind = o.specific
		}
	}
	if kind == table.PathPrefix && !r.ownRegex() { // /a and /a/ match the same requests
		path = "/" + strings.Trim(path, "/")
	}
	r.Route = table.Route{Path: path, Kind: kind}
	c.add(h, name, r, &p.Backend)
}

// fallback adds the default backend of an Ingress to one of its hosts.
func (c *compiler) fallback(ing *networkingv1.Ingress, o *options, headers *headers, h *host, name string) {
	if ing.Spec.DefaultBackend != nil {
		r := &route{Route: table.Route{Path: "/", Kind: table.PathPrefix}, fallback: true, ing: ing, options: o, headers: headers,
			written: "/"}
		c.add(h, name, r, ing.Spec.DefaultBackend)
	}
}

func (c *compiler) add(h *host, name string, r *route, b *networkingv1.IngressBackend) {
	ing, o := r.ing, r.options
	at := routeKey{r.Path, r.Kind, r.fallback}
	if who, taken := h.ownerOfRoute[at]; taken {
		if who != o.object || !r.fallback { // an Ingress may name a host twice
			c.find(ing, Finding{ReasonPathTaken, fieldRules, fmt.Sprintf(
				"%s has %s at the host %q already: the older Ingress keeps it", who, r.Path,
				name)})
		}
		return
	}
	h.ownerOfRoute[at] = o.object
	r.Object, r.Refused, r.fallen = o.object, o.refused, namedBy(o.policy.Fallback, b)
	if r.Refused == "" {
		r.Refused = c.refuses(r)
	}
	if r.isExpression() { // an error closes the route in finish
		_, _ = c.steps(ing.Namespace, r.written, r.formOf())
	}
	port, why := portOf(b)
	if why != "" {
		r.Refused = why
		c.find(ing, Finding{ReasonUnsupported, fieldRules, why})
	} else {
		backend := table.Backend{Namespace: ing.Namespace, Service: b.Service.Name, Port: port, Protocol: o.protocol, Weight: 1}
		c.service(ing, fieldRules, backend, "its paths answer 503") // also of a route that is refused, so that all is said at once
		if r.Refused == "" {
			backend.TLS = c.tlsTo(o)
			r.Backends = []table.Backend{backend}
		}
	}
	h.routes = append(h.routes, r)
}

// portOf returns the port that a backend names, or the reason for which the backend is not served.
func portOf(b *networkingv1.IngressBackend) (port, why string) {
	switch {
	case b.Resource != nil:
		return "", fmt.Sprintf("a backend is the resource %s/%s: only Services are served", b.Resource.Kind, b.Resource.Name)
	case b.Service == nil:
		return "", "a backend names no Service"
	case b.Service.Port.Name != "":
		return b.Service.Port.Name, ""
	}
	return strconv.Itoa(int(b.Service.Port.Number)), ""
}

func (c *compiler) host(namespace, name string) *host {
	h := c.hosts[name]
	if h == nil {
		h = &host{namespace: namespace, ownerOfRoute: map[routeKey]string{}}
		c.hosts[name] = h
	}
	return h
}

// find records a finding, once for each object.
func (c *compiler) find(ing *networkingv1.Ingress, f Finding) {
	key := types.NamespacedName{Namespace: ing.Namespace, Name: ing.Name}
	switch have := c.r.Findings[key]; {
	case !c.s.AllFindings && len(have) > maxFindings || slices.Contains(have, f):
	case !c.s.AllFindings && len(have) == maxFindings:
		c.r.Findings[key] = append(have, Finding{f.Reason, "", "more is wrong with this object than events say: mend what they say, and " +
			"others will say the rest"})
	default:
		c.r.Findings[key] = append(have, f)
	}
}

// hostName returns a host in the form of the table. It returns false for invalid names, which an earlier API version
// may have permitted.
func hostName(text string) (string, bool) {
	name := strings.TrimSuffix(strings.ToLower(text), ".")
	return name, !strings.ContainsAny(name, "/ \t\r\n:") && len(name) <= 253
}

// certificateNames are the Secrets of an Ingress' certificates by host. The key "" is for hosts that are not listed.
type certificateNames map[string]types.NamespacedName

func (n certificateNames) certificateOf(host string) types.NamespacedName {
	if key, ok := n[host]; ok {
		return key
	}
	if _, rest, ok := strings.Cut(host, "."); ok && !strings.HasPrefix(host, "*.") {
		if key, ok := n["*."+rest]; ok {
			return key
		}
	}
	return n[""]
}

// certificatesOf returns the certificates that an Ingress names and that can be used.
func (c *compiler) certificatesOf(ing *networkingv1.Ingress) certificateNames {
	out, full := certificateNames{}, false
	for _, t := range TLS(ing.Spec.TLS) {
		if t.SecretName == "" {
			continue
		}
		secret := types.NamespacedName{Namespace: ing.Namespace, Name: t.SecretName}
		c.r.Wanted[secret] = true
		if c.s.Secrets != nil {
			if why := c.s.Memory.certificateOf(c.s.Secrets[secret]).flaw; why != "" {
				if !asksACME(ing) || c.s.Account == nil || c.s.Secrets[secret] != nil { // an ordered certificate has events of its own
					c.find(ing, Finding{ReasonSecret, fieldTLS, fmt.Sprintf("the Secret %s %s: its hosts have the default certificate%s",
						t.SecretName, why, c.acmeHint(ing))})
				}
				continue
			}
			if !c.certificate(secret) {
				full = true
				continue
			}
			s := c.s.Secrets[secret]
			c.ending(ing, fieldTLS, s, c.s.Memory.certificateOf(s).validity, "certificate", "clients refuse it")
		}
		hosts := t.Hosts
		if len(hosts) == 0 {
			hosts = []string{""}
		}
		for _, text := range hosts {
			if name, ok := hostName(text); ok && out[name].Name == "" {
				out[name] = secret
			}
		}
	}
	if full {
		c.find(ing, tooLarge(ing.Namespace, "hosts of this Ingress have the default certificate"))
	}
	return out
}

// certificateFor returns the key of an Ingress' certificate for a host; "" for none. A certificate for other names is
// not served, as with ingress-nginx, since the default certificate may be for the host.
func (c *compiler) certificateFor(ing *networkingv1.Ingress, of certificateNames, host string) string {
	secret := of.certificateOf(host)
	if secret.Name == "" {
		return ""
	}
	if s := c.s.Secrets[secret]; s != nil && host != "" && !c.s.Memory.certificateOf(s).isFor(host) {
		c.find(ing, Finding{ReasonSecret, fieldTLS, fmt.Sprintf(
			"the Secret %s holds a certificate of other names than %s, which has the default certificate", secret.Name, host)})
		return ""
	}
	return table.CertificateKey(secret.Namespace, secret.Name)
}
