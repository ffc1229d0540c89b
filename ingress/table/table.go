// SPDX-License-Identifier: Apache-2.0

// Package table holds the table that the ingress proxy serves by: hosts with their routes, certificates, and the
// endpoints of Services.
//
// It is the protocol between three programs. A server compiles objects of the API to hosts and certificates
// (ingress/compile). The node's agent adds the endpoints of the Services that they name (agent/ingress). The proxy
// serves by all of it (ingress/dataplane). A table is a set of sections, each with a key and a value in JSON. A change
// sends only the section that changed. The package has no code for Kubernetes and none for HTTP.
package table

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Sections are a table: the value of each section, in JSON, by the section's key.
type Sections map[string]json.RawMessage

// Kinds of sections. The kind is the text before the first slash of a key.
const (
	// KindHost is the kind of a Host. Its key is HostKey.
	KindHost = "host"
	// KindCertificate is the kind of a Certificate. Its key is CertificateKey.
	KindCertificate = "certificate"
	// KindEndpoints is the kind of Endpoints. Their key is Backend.Key.
	KindEndpoints = "endpoints"
	// KindSettings is the kind, and the key, of the single section with Settings.
	KindSettings = "settings"
	// KindSite is the kind of a Site. Its key is SiteKey.
	KindSite = "site"
	// KindHTTP3 is the kind of an HTTP3. Its key is HTTP3Key.
	KindHTTP3 = "http3"
	// KindAuthorities is the kind of Authorities. Their key is AuthoritiesKey.
	KindAuthorities = "authorities"
	// KindChallenges is the kind of Challenges. Their key is ChallengesKey.
	KindChallenges = "challenges"
	// KindSessions is the kind of Sessions. Their key is SessionsKey.
	KindSessions = "sessions"
)

// SiteIngress is the site of all Ingress objects. Each port of a Gateway is a site of its own.
const SiteIngress = "ingress"

// GatewaySite is the site of a port of a Gateway. It holds no slash and no comma.
func GatewaySite(namespace, name string, port int) string {
	return namespace + ":" + name + ":" + strconv.Itoa(port)
}

// SiteKey returns the key of a site's section.
func SiteKey(site string) string { return KindSite + "/" + site }

// Site holds the settings of a port of a Gateway, for all its hosts. SiteIngress has no such section.
type Site struct {
	// NodePort is the port of nodes' addresses at which the site is served.
	NodePort uint16 `json:"nodePort"`
	// TLS says that clients speak TLS.
	TLS bool `json:"tls,omitempty"`
	// ClientAuthorities is the key of the section with the authorities that must have signed clients' certificates.
	// Empty asks for no certificates. While the section is absent, no client is accepted.
	ClientAuthorities string `json:"clientAuthorities,omitempty"`
	// ClientOptional accepts clients whose certificate is absent or not signed by ClientAuthorities.
	ClientOptional bool `json:"clientOptional,omitempty"`
	// Listeners are the host names of the listeners that share the port, for a site with TLS. Each is "" for a listener
	// of all hosts, a name, or a wildcard that stands for one label or more. A host belongs to the listener with the
	// most specific match. A handshake for a name without a listener is refused. A request for a host of another
	// listener than the handshake's gets 421. If Listeners is empty, neither check is made.
	Listeners []string `json:"listeners,omitempty"`
}

// HTTP3Key is the key of the HTTP3 section of a site.
func HTTP3Key(site string) string { return KindHTTP3 + "/" + site }

// HTTP3SiteOf returns the site of a key that HTTP3Key made.
func HTTP3SiteOf(key string) (site string, ok bool) { return strings.CutPrefix(key, KindHTTP3+"/") }

// HTTP3 holds a node's settings for HTTP/3 at a site. The agent adds the section. While it is absent, no response
// offers HTTP/3.
type HTTP3 struct {
	// Port is the UDP port, on the site's addresses, that responses over TLS offer (Alt-Svc).
	Port uint16 `json:"port"`
	// Key is a secret of the node. With it, a process recognises tokens that earlier processes gave to clients.
	Key []byte `json:"key,omitempty"`
}

// AuthoritiesKey is the key of the authorities in an object, whose kind is configmap or secret.
func AuthoritiesKey(kind, namespace, name string) string {
	return KindAuthorities + "/" + kind + "/" + namespace + "/" + name
}

// Authorities are the certificates of the authorities that sign other certificates.
type Authorities struct {
	// Certificates are in PEM.
	Certificates string `json:"certificates"`
}

// HostKey is the key of a host of a site. A site is a set of hosts that the same listeners serve. name is a DNS name in
// lower case, or one with a wildcard as its first label ("*.example.org"). The name "" is for requests whose host the
// site does not have.
func HostKey(site, name string) string { return KindHost + "/" + site + "/" + name }

// CertificateKey is the key of the certificate in a Secret.
func CertificateKey(namespace, secret string) string {
	return KindCertificate + "/" + namespace + "/" + secret
}

// DefaultCertificateKey is the key of the certificate for hosts that have none. While that section is absent, each
// proxy uses a certificate that it makes itself.
var DefaultCertificateKey = CertificateKey("kube-system", "ingress-default")

// ChallengesPath begins the paths at which an authority asks for the response to a challenge (RFC 8555, section 8.3).
const ChallengesPath = "/.well-known/acme-challenge/"

// ChallengesKey is the key of a host's Challenges. The host is one of SiteIngress and need not have a section of its
// own.
func ChallengesKey(host string) string { return KindChallenges + "/" + host }

// Challenges makes the proxy respond to challenges of an ACME account for a host, unless a route has their path. A
// response follows from the token in the path and the account alone, so the table does not change with each challenge.
type Challenges struct {
	// Thumbprint is the thumbprint of the account's key (RFC 7638), in base64url.
	Thumbprint string `json:"thumbprint"`
}

// SessionsKey is the key of the Sessions of an object's routes, by the name of the object in Route.Object.
func SessionsKey(object string) string { return KindSessions + "/" + object }

// Sessions is how far the cookies of Affinity bind clients, on the routes of one object. It is a section of its own, so
// that a proxy that does not know it serves the routes without it.
type Sessions struct {
	// Key is a secret with which cookies name what served a client. Without it the name would reveal addresses, and a
	// client could choose.
	Key []byte `json:"key"`
	// Persistent binds a client to its endpoint for as long as that is there. Otherwise new endpoints take their part
	// of the clients.
	Persistent bool `json:"persistent,omitempty"`
	// Canary binds a client of a canary to it, and other clients to the route's own backend.
	Canary bool `json:"canary,omitempty"`
}

// Kind returns the kind of a section by its key.
func Kind(key string) string {
	kind, _, _ := strings.Cut(key, "/")
	return kind
}

// HostOf returns the site and the name in a key that HostKey made.
func HostOf(key string) (site, name string, ok bool) {
	rest, ok := strings.CutPrefix(key, KindHost+"/")
	if !ok {
		return "", "", false
	}
	site, name, ok = strings.Cut(rest, "/")
	return site, name, ok
}

// Host is one host of a site.
type Host struct {
	// Certificate is the key of the section with the host's certificate. Empty is for the proxy's own, which no client
	// trusts.
	Certificate string `json:"certificate,omitempty"`
	// Routes are in the order in which they are tried. The first match serves a request.
	Routes []Route `json:"routes"`
	// Final says that a request that no route matches gets 404. Otherwise the routes of the site's default host are
	// tried.
	Final bool `json:"final,omitempty"`
	// AnyDepth says that the wildcard in the host's name stands for one label or more, and not for just one.
	AnyDepth bool `json:"anyDepth,omitempty"`
	// Stream forwards TLS connections for the host to backends. The host's routes then serve only requests without TLS.
	Stream *Stream `json:"stream,omitempty"`
	// AskClients asks clients for their certificates in the handshake. Policy.Clients says how routes use them.
	AskClients bool `json:"askClients,omitempty"`
}

// Stream forwards connections to backends without reading their content.
type Stream struct {
	Backends []Backend `json:"backends,omitempty"`
	// Terminate ends TLS at the proxy, with the host's certificate. Otherwise backends receive the connection with the
	// client's TLS.
	Terminate bool `json:"terminate,omitempty"`
}

// PathKind says how a route's path is compared with that of a request.
type PathKind string

const (
	// PathExact matches the same path.
	PathExact PathKind = "Exact"
	// PathPrefix matches paths that begin with the same elements between slashes, as pathType Prefix of Ingress v1
	// does: /a matches /a, /a/ and /a/b but not /ab.
	PathPrefix PathKind = "Prefix"
	// PathText matches paths that begin with the same text, as in nginx: /a matches /ab, too.
	PathText PathKind = "Text"
	// PathRegex and PathRegexFold match paths whose beginning matches an RE2 expression. PathRegex regards case, and
	// PathRegexFold ignores it.
	PathRegex     PathKind = "Regex"
	PathRegexFold PathKind = "RegexFold"
)

// Route is a rule for requests to a host: what it matches, and the backends that serve it.
type Route struct {
	// Path, by its Kind, is a path or an expression. A path begins with a slash and is compared with the normalised
	// path of a request, with regard to case.
	Path string   `json:"path"`
	Kind PathKind `json:"kind"`
	// Method, unless it is empty, is the method of the requests that match.
	Method string `json:"method,omitempty"`
	// Headers and Query are further conditions, which a request must all meet.
	Headers []Condition `json:"headers,omitempty"`
	Query   []Condition `json:"query,omitempty"`
	// Object names the API object that the route was made from: kind/namespace/name.
	Object string `json:"object"`
	// Backends receive requests in proportion to their weights. Without any, the response is 503.
	Backends []Backend `json:"backends,omitempty"`
	// RedirectHTTPS is the status, such as 308, of a redirect to https for plain HTTP. 0 serves plain HTTP.
	RedirectHTTPS int `json:"redirectHTTPS,omitempty"`
	// Policy is nil for a route that sends requests to its backends as they are.
	Policy *Policy `json:"policy,omitempty"`
	// Refused is the reason for which the route is closed, as text for users. The response is 503.
	Refused string `json:"refused,omitempty"`
}

// Condition is met by a header, or a parameter of the query, that is present and has the value.
type Condition struct {
	// Name is the name of the header or parameter. Names of headers are compared without regard to case, those of
	// parameters with it. Of several parameters with the same name the first counts.
	Name string `json:"name"`
	// Value is the whole value. With Regex it is an RE2 expression for it.
	Value string `json:"value"`
	Regex bool   `json:"regex,omitempty"`
}

// Protocols of a backend.
const (
	// HTTP1 is HTTP/1.1 over TCP. It is the default protocol of a backend.
	HTTP1 = ""
	// H2C is HTTP/2 over TCP without TLS, as gRPC uses it.
	H2C = "h2c"
	// HTTPS1 is HTTP/1.1 over TLS. H2 is HTTP/2 over TLS. The endpoints' certificates are verified as Backend.TLS says.
	// Without Backend.TLS they are not verified.
	HTTPS1 = "https"
	H2     = "h2"
)

// Backend is a port of a Service.
type Backend struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	// Port is the number of the Service's port, or its name. Empty is the Service's first port.
	Port     string `json:"port"`
	Protocol string `json:"protocol,omitempty"`
	// Weight is the backend's fraction of the requests, relative to the weights of the route's other backends. 0 gets
	// none. A single backend gets all requests whatever its weight.
	Weight int `json:"weight,omitempty"`
	// Invalid is the reason for which the backend cannot be used, as text for users. Requests for the backend get 500,
	// and gRPC requests get the status UNAVAILABLE. The backend may name no Service then.
	Invalid string `json:"invalid,omitempty"`
	// RequestHeaders and ResponseHeaders change the headers of requests to this backend and of its responses.
	RequestHeaders  *Headers `json:"requestHeaders,omitempty"`
	ResponseHeaders *Headers `json:"responseHeaders,omitempty"`
	// TLS says how certificates are verified, for the protocols HTTPS1 and H2 and for streams. Without TLS they are not
	// verified.
	TLS *BackendTLS `json:"tls,omitempty"`
}

// BackendTLS holds the settings of TLS connections from the proxy to a backend.
type BackendTLS struct {
	// ServerName is the name that the proxy sends in the handshake (SNI). Without Names it is also the name that the
	// certificate must be for. It may be empty where Names are given.
	ServerName string `json:"serverName,omitempty"`
	// Names are DNS names and URIs. The certificate must be for one of them. DNS names may have a wildcard as their
	// first label.
	Names []string `json:"names,omitempty"`
	// Unverified accepts every certificate.
	Unverified bool `json:"unverified,omitempty"`
	// Authorities is the key of the section with the authorities that must have signed the certificate. Empty is for
	// the system's authorities. While the section is absent, no connection is made.
	Authorities string `json:"authorities,omitempty"`
	// Certificate is the key of the section with the proxy's own certificate for this backend. Empty is for none.
	Certificate string `json:"certificate,omitempty"`
}

// Headers are changes of headers: first Remove, then Set, then Add. A route that changes a header of the connection,
// such as Connection or Content-Length, is closed. Host can only be set, and only on the way to the backend.
type Headers struct {
	Set    []Header `json:"set,omitempty"`
	Add    []Header `json:"add,omitempty"`
	Remove []string `json:"remove,omitempty"`
}

// Header is a header with its value.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Key is the key of the section with the backend's endpoints.
func (b Backend) Key() string {
	return KindEndpoints + "/" + b.Namespace + "/" + b.Service + "/" + b.Port
}

// Endpoints are the current addresses of a backend.
type Endpoints struct {
	// Addresses are of the form 10.42.0.7:8080 or [fd00::7]:8080.
	Addresses []string `json:"addresses"`
}

// Certificate is a certificate chain with its key.
type Certificate struct {
	// Chain and Key are in PEM.
	Chain string `json:"chain"`
	Key   string `json:"key"`
}

// Settings are the settings of the whole proxy.
type Settings struct {
	// TrustedProxies are networks, in CIDR notation, whose X-Forwarded-* headers are trusted. Headers from other
	// clients are replaced.
	TrustedProxies []string `json:"trustedProxies,omitempty"`
	// ProxyProtocol says that TCP connections from TrustedProxies begin with a header of the PROXY protocol, version 1
	// or 2.
	ProxyProtocol bool `json:"proxyProtocol,omitempty"`
	// ClusterNetworks are the networks of pods, Services and nodes. An external host name in a route may not resolve
	// into them.
	ClusterNetworks []string `json:"clusterNetworks,omitempty"`
}

// Change is one line of a stream of sections. A stream begins with all sections. Commit ends a group of lines that take
// effect at the same time. The first Commit ends the initial sections.
type Change struct {
	Key string `json:"key,omitempty"`
	// Value is null for a section that was removed.
	Value json.RawMessage `json:"value,omitempty"`
	// Commit is set without other fields: the lines before it take effect.
	Commit bool `json:"commit,omitempty"`
	// Stats, which an agent sends with a Commit, asks the proxy for its counters.
	Stats bool `json:"stats,omitempty"`
	// Sockets, which an agent sends without other fields, asks the proxy for duplicates of its listening sockets
	// (Response.Sockets). A server never sends it.
	Sockets bool `json:"sockets,omitempty"`
	// Listen names listening sockets that the proxy serves from the next Commit on. Their descriptors are sent with the
	// line, in this order (Send). Close names sockets that the proxy closes at that Commit, while requests on their
	// connections may still end. An agent sends Listen and Close without other fields. A server never sends them.
	Listen []string `json:"listen,omitempty"`
	Close  []string `json:"close,omitempty"`
}

// Diff returns the changes from one table to another: sections that were removed, added or changed, ordered by key.
func Diff(from, to Sections) []Change {
	var out []Change
	for key := range from {
		if _, ok := to[key]; !ok {
			out = append(out, Change{Key: key})
		}
	}
	for key, value := range to {
		if have, ok := from[key]; !ok || !bytes.Equal(have, value) {
			out = append(out, Change{Key: key, Value: value})
		}
	}
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// Apply changes a table by one line of a stream, which is not a Commit.
func (s Sections) Apply(c Change) {
	if len(c.Value) == 0 || bytes.Equal(c.Value, []byte("null")) {
		delete(s, c.Key)
		return
	}
	s[c.Key] = c.Value
}

// Put adds a section. value must be one that can be written as JSON.
func (s Sections) Put(key string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("writing the section %s of the ingress table: %w", key, err)
	}
	s[key] = text
	return nil
}

// Backends returns the backends that hosts name, each once, by their keys.
func (s Sections) Backends() (map[string]Backend, error) {
	out := map[string]Backend{}
	for key, value := range s {
		if Kind(key) != KindHost {
			continue
		}
		var h Host
		if err := json.Unmarshal(value, &h); err != nil {
			return nil, fmt.Errorf("reading the section %s of the ingress table: %w", key, err)
		}
		for _, r := range h.Routes {
			for _, b := range slices.Concat(r.Backends, r.Policy.backends()) {
				if b.Service != "" {
					out[b.Key()] = b
				}
			}
		}
		if h.Stream != nil {
			for _, b := range h.Stream.Backends {
				if b.Service != "" {
					out[b.Key()] = b
				}
			}
		}
	}
	return out, nil
}
