// SPDX-License-Identifier: Apache-2.0

// Package table holds what the ingress proxy goes by: hosts with their routes, certificates, and the endpoints of
// Services.
//
// It is the protocol between three parts: a server compiles objects of the API to hosts and certificates
// (ingress/compile), the node's agent adds the endpoints of the Services that they name (agent/ingress), and the proxy
// serves by all of it (ingress/dataplane). A table is a set of sections, each with a key and a value in JSON, so that a
// change sends the section that changed alone. The package knows nothing of Kubernetes and nothing of HTTP.
package table

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Sections are a table: the value of each section, in JSON, by its key.
type Sections map[string]json.RawMessage

// Kinds of sections: what stands before the first slash of a key.
const (
	// KindHost is a Host; its key is HostKey.
	KindHost = "host"
	// KindCertificate is a Certificate; its key is CertificateKey.
	KindCertificate = "certificate"
	// KindEndpoints are Endpoints; its key is Backend.Key.
	KindEndpoints = "endpoints"
	// KindSettings are Settings, a single section of that key.
	KindSettings = "settings"
	// KindSite is a Site; its key is SiteKey.
	KindSite = "site"
	// KindHTTP3 is HTTP3; its key is HTTP3Key.
	KindHTTP3 = "http3"
	// KindAuthorities are Authorities; its key is AuthoritiesKey.
	KindAuthorities = "authorities"
	// KindChallenges are Challenges; its key is ChallengesKey.
	KindChallenges = "challenges"
)

// SiteIngress is the site of all Ingress objects. Each port of a Gateway is a site of its own.
const SiteIngress = "ingress"

// GatewaySite is the site of a port of a Gateway. It holds no slash and no comma.
func GatewaySite(namespace, name string, port int) string {
	return namespace + ":" + name + ":" + strconv.Itoa(port)
}

// SiteKey is the key of a site.
func SiteKey(site string) string { return KindSite + "/" + site }

// Site is what holds for all hosts of a port of a Gateway. SiteIngress has no such section.
type Site struct {
	// NodePort is the port of nodes' addresses at which the site is served.
	NodePort uint16 `json:"nodePort"`
	// TLS says that clients speak TLS.
	TLS bool `json:"tls,omitempty"`
	// ClientAuthorities is the key of the section with those that have to have signed clients' certificates; empty asks
	// for none. While the section is absent, no client gets in.
	ClientAuthorities string `json:"clientAuthorities,omitempty"`
	// ClientOptional lets clients in whose certificate is absent or not signed by these.
	ClientOptional bool `json:"clientOptional,omitempty"`
	// Listeners are the names of hosts of the listeners that share the port, of a site with TLS: "" for one that takes
	// all, a name, or a wildcard that stands for one label or more. A name belongs to the listener that names it most
	// exactly. A handshake for a name that belongs to none is refused, and a request for a host of another listener
	// than that of its connection's handshake is answered with 421. Without any, neither is done.
	Listeners []string `json:"listeners,omitempty"`
}

// HTTP3Key is the key of what is said of HTTP/3 at a site.
func HTTP3Key(site string) string { return KindHTTP3 + "/" + site }

// HTTP3SiteOf reads a key that HTTP3Key made.
func HTTP3SiteOf(key string) (site string, ok bool) { return strings.CutPrefix(key, KindHTTP3+"/") }

// HTTP3 is what the node knows of HTTP/3 at a site; the agent adds it. While the section is absent, no answer names
// HTTP/3.
type HTTP3 struct {
	// Port is the UDP port of the site's addresses, which answers over TLS name (Alt-Svc).
	Port uint16 `json:"port"`
	// Key is a secret of the node, so that a process recognises what those before it have promised to clients.
	Key []byte `json:"key,omitempty"`
}

// AuthoritiesKey is the key of the authorities in an object that holds them, which is a configmap or a secret.
func AuthoritiesKey(kind, namespace, name string) string {
	return KindAuthorities + "/" + kind + "/" + namespace + "/" + name
}

// Authorities sign certificates.
type Authorities struct {
	// Certificates are in PEM.
	Certificates string `json:"certificates"`
}

// HostKey is the key of a host of a site. A site is a set of hosts that the same listeners serve. name is "" for
// requests to no other host of the site, a DNS name in lower case, or one with a wildcard as its first label
// ("*.example.org").
func HostKey(site, name string) string { return KindHost + "/" + site + "/" + name }

// CertificateKey is the key of the certificate in a Secret.
func CertificateKey(namespace, secret string) string {
	return KindCertificate + "/" + namespace + "/" + secret
}

// DefaultCertificate is the key of the certificate of hosts that have none. While it is absent, each proxy has one of
// its own.
var DefaultCertificate = CertificateKey("kube-system", "ingress-default")

// ChallengesPath begins the paths at which an authority asks for the answer to a challenge (RFC 8555, section 8.3).
const ChallengesPath = "/.well-known/acme-challenge/"

// ChallengesKey is the key of a host's Challenges. The host is one of SiteIngress and need not have a section of its
// own.
func ChallengesKey(host string) string { return KindChallenges + "/" + host }

// Challenges has the proxy answer challenges of an ACME account for a host, unless a route has their path. An answer
// follows from the token in the path and the account alone, so that the table does not change with each challenge.
type Challenges struct {
	// Thumbprint is that of the account's key (RFC 7638), in base64url.
	Thumbprint string `json:"thumbprint"`
}

// Kind is what a section is, by its key.
func Kind(key string) string {
	kind, _, _ := strings.Cut(key, "/")
	return kind
}

// HostOf reads a key that HostKey made.
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
	// Certificate is the key of the section with its certificate; empty for the proxy's own, which no client trusts.
	Certificate string `json:"certificate,omitempty"`
	// Routes are in the order in which they are tried; the first that matches serves a request.
	Routes []Route `json:"routes"`
	// Final says that a request that no route matches is answered with 404; otherwise the routes of the site's default
	// host are tried.
	Final bool `json:"final,omitempty"`
	// AnyDepth says that the wildcard in the host's name stands for one label or more, and not for just one.
	AnyDepth bool `json:"anyDepth,omitempty"`
	// Stream takes TLS connections for the host as they are; routes of the host then serve requests without TLS alone.
	Stream *Stream `json:"stream,omitempty"`
	// AskClients asks clients for their certificates in the handshake. Policy.Clients says what is made of them.
	AskClients bool `json:"askClients,omitempty"`
}

// Stream sends connections to backends without reading what is in them.
type Stream struct {
	Backends []Backend `json:"backends,omitempty"`
	// Terminate ends TLS at the proxy, with the host's certificate. Otherwise backends get the connection as the client
	// began it.
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
	// PathText matches paths that begin with the same text, as nginx compares them: /a matches /ab, too.
	PathText PathKind = "Text"
	// PathRegex and PathRegexFold match paths of which an expression of RE2's matches the beginning, with and without
	// regard to case.
	PathRegex     PathKind = "Regex"
	PathRegexFold PathKind = "RegexFold"
)

// Route says where requests to a host go.
type Route struct {
	// Path begins with a slash and is compared with the normalised path of a request, with regard to case; or is an
	// expression, by its Kind.
	Path string   `json:"path"`
	Kind PathKind `json:"kind"`
	// Method, unless it is empty, is that of the requests that match.
	Method string `json:"method,omitempty"`
	// Headers and Query are what a request must have besides.
	Headers []Condition `json:"headers,omitempty"`
	Query   []Condition `json:"query,omitempty"`
	// Object names the object of the API that the route comes from: kind/namespace/name.
	Object string `json:"object"`
	// Backends get requests by their weights. Without any the answer is 503.
	Backends []Backend `json:"backends,omitempty"`
	// RedirectHTTPS answers plain HTTP with a redirect to https of this status, such as 308; 0 serves it.
	RedirectHTTPS int `json:"redirectHTTPS,omitempty"`
	// Policy is nil for a route that sends requests to its backends as they are.
	Policy *Policy `json:"policy,omitempty"`
	// Refused says why the route is closed, for people; the answer is 503.
	Refused string `json:"refused,omitempty"`
}

// Condition is met by a header, or a parameter of the query, that is there and has the value.
type Condition struct {
	// Name is compared without regard to case for headers, and with it for parameters. Of several parameters of a name
	// the first counts.
	Name string `json:"name"`
	// Value is the whole value, or an expression of RE2's for it.
	Value string `json:"value"`
	Regex bool   `json:"regex,omitempty"`
}

// Protocols of a backend.
const (
	// HTTP1 is HTTP/1.1 over TCP, and the protocol of a backend that names none.
	HTTP1 = ""
	// H2C is HTTP/2 over TCP without TLS, as gRPC takes it.
	H2C = "h2c"
	// HTTPS1 is HTTP/1.1 over TLS, and H2 is HTTP/2 over TLS. The endpoints' certificates are verified as Backend.TLS
	// says, and without it not at all.
	HTTPS1 = "https"
	H2     = "h2"
)

// Backend is a port of a Service.
type Backend struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	// Port is the number of the Service's port, or its name; empty for its first port.
	Port     string `json:"port"`
	Protocol string `json:"protocol,omitempty"`
	// Weight is its part of the requests, beside those of the route's other backends; 0 gets none. A single backend
	// gets all whatever its weight.
	Weight int `json:"weight,omitempty"`
	// Invalid says why the backend cannot be used, for people; its part of the requests is answered with 500, and
	// gRPC's with the status UNAVAILABLE. It may name no Service then.
	Invalid string `json:"invalid,omitempty"`
	// RequestHeaders and ResponseHeaders change the headers of what goes to this backend and comes from it.
	RequestHeaders  *Headers `json:"requestHeaders,omitempty"`
	ResponseHeaders *Headers `json:"responseHeaders,omitempty"`
	// TLS, for the protocols HTTPS1 and H2 and for streams, says how certificates are verified; without it they are
	// not.
	TLS *BackendTLS `json:"tls,omitempty"`
}

// BackendTLS is how the proxy speaks TLS with a backend.
type BackendTLS struct {
	// ServerName is the name that the proxy asks for (SNI), and without Names the one that the certificate must be for.
	// It may be empty beside Names.
	ServerName string `json:"serverName,omitempty"`
	// Names are DNS names, which may have a wildcard as their first label, and URIs, one of which the certificate must
	// be for.
	Names []string `json:"names,omitempty"`
	// Unverified takes every certificate.
	Unverified bool `json:"unverified,omitempty"`
	// Authorities is the key of the section with those that must have signed the certificate; empty for the system's.
	// While the section is absent, no connection is made.
	Authorities string `json:"authorities,omitempty"`
	// Certificate is the key of the section with the proxy's own certificate; empty for none.
	Certificate string `json:"certificate,omitempty"`
}

// Headers are changes of headers: first Remove, then Set, then Add. Headers of the connection, such as Connection and
// Content-Length, cannot be changed: a route with such a change is closed. Host can only be set, and only on the way to
// the backend.
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

// Endpoints are where a backend is served now.
type Endpoints struct {
	// Addresses are of the form 10.42.0.7:8080 or [fd00::7]:8080.
	Addresses []string `json:"addresses"`
}

// Certificate is a chain with its key.
type Certificate struct {
	// Chain and Key are in PEM.
	Chain string `json:"chain"`
	Key   string `json:"key"`
}

// Settings are those of the whole proxy.
type Settings struct {
	// TrustedProxies are networks, in CIDR notation, whose X-Forwarded-* headers are trusted. From others they are
	// replaced.
	TrustedProxies []string `json:"trustedProxies,omitempty"`
	// ProxyProtocol says that TCP connections from TrustedProxies begin with a header of the PROXY protocol, version 1
	// or 2.
	ProxyProtocol bool `json:"proxyProtocol,omitempty"`
	// ClusterNetworks are those of pods, Services and nodes, which no outside name of a route may lead to.
	ClusterNetworks []string `json:"clusterNetworks,omitempty"`
}

// Change is one line of a stream of sections. A stream begins with all sections; Commit says each time that what came
// before belongs together, so that the first one ends the beginning.
type Change struct {
	Key string `json:"key,omitempty"`
	// Value is null for a section that is gone.
	Value json.RawMessage `json:"value,omitempty"`
	// Commit is set alone: what came before may take effect.
	Commit bool `json:"commit,omitempty"`
	// Stats, which an agent sends with a Commit, asks the proxy for its counters.
	Stats bool `json:"stats,omitempty"`
	// Sockets, which an agent sends alone, asks the proxy for duplicates of its listening sockets (Answer.Sockets). A
	// server never sends it.
	Sockets bool `json:"sockets,omitempty"`
	// Listen, which an agent sends alone, names listening sockets that the proxy serves from the next Commit on. Their
	// descriptors come with the line, in this order (Send). Close names those that it then closes, whose requests may
	// end first. A server sends neither.
	Listen []string `json:"listen,omitempty"`
	Close  []string `json:"close,omitempty"`
}

// Diff is what leads from one table to another: sections that are gone, new or different, in the order of their keys.
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

// Apply changes a table by one line of a stream that is no Commit.
func (s Sections) Apply(c Change) {
	if len(c.Value) == 0 || bytes.Equal(c.Value, []byte("null")) {
		delete(s, c.Key)
		return
	}
	s[c.Key] = c.Value
}

// Put adds a section; value must be one that JSON can hold.
func (s Sections) Put(key string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("writing the section %s of the ingress table: %w", key, err)
	}
	s[key] = text
	return nil
}

// Backends are those that hosts name, each once, by their keys.
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
