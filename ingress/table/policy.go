// SPDX-License-Identifier: Apache-2.0

package table

import "strings"

// Policy is what a route does to requests beyond sending them to a backend. A proxy that does not know one of its
// fields closes the host, since the field may restrict access.
type Policy struct {
	// Redirect answers every request.
	Redirect *Redirect `json:"redirect,omitempty"`
	// AppRoot is the target of the redirect, with status 302, for requests of the path /.
	AppRoot string `json:"appRoot,omitempty"`
	// Rewrite replaces the path of a request that the route's expression matches. $1 to $9 stand for the expression's
	// groups. The request's query is appended to that of Rewrite.
	Rewrite string `json:"rewrite,omitempty"`
	// UpstreamHost replaces the Host header on the way to the backend.
	UpstreamHost string `json:"upstreamHost,omitempty"`
	// Path changes the path of a request on the way to the backend.
	Path *PathChange `json:"path,omitempty"`
	// RequestHeaders and ResponseHeaders change headers on the way to the backend and to the client. They take effect
	// before the changes of the backend's own RequestHeaders and ResponseHeaders.
	RequestHeaders  *Headers `json:"requestHeaders,omitempty"`
	ResponseHeaders *Headers `json:"responseHeaders,omitempty"`
	// Mirrors receive copies of requests. The proxy does not wait for their responses.
	Mirrors []Mirror `json:"mirrors,omitempty"`
	// Fallback is the backend for requests that the route's own backend cannot serve.
	Fallback *Fallback `json:"fallback,omitempty"`
	// CookieDomain replaces the domain of cookies that backends set. CookiePath replaces the beginning of their path.
	// Location replaces the beginning of the URL of a backend's redirect.
	CookieDomain *Replacement `json:"cookieDomain,omitempty"`
	CookiePath   *Replacement `json:"cookiePath,omitempty"`
	Location     *Replacement `json:"location,omitempty"`
	// ForwardedPrefix is the value of the header X-Forwarded-Prefix on the way to the backend.
	ForwardedPrefix string `json:"forwardedPrefix,omitempty"`

	// Allow are the networks, in CIDR notation, whose clients may use the route. Empty allows all. Other clients get
	// 403.
	Allow []string `json:"allow,omitempty"`
	// Deny are the networks whose clients may not use the route, even if Allow or SatisfyAny would let them.
	Deny []string `json:"deny,omitempty"`
	// Basic asks for a user name and a password.
	Basic *Basic `json:"basic,omitempty"`
	// External asks an authentication server whether a request may pass.
	External *External `json:"external,omitempty"`
	// Clients asks for clients' certificates.
	Clients *Clients `json:"clients,omitempty"`
	// SatisfyAny lets a request pass that either Allow or authentication lets pass.
	SatisfyAny bool `json:"satisfyAny,omitempty"`

	// BodyLimit is the greatest size of a request's body in bytes; 0 is none.
	BodyLimit int64 `json:"bodyLimit,omitempty"`
	// IdleSeconds is the longest time without a byte of the request or the response; 0 takes the proxy's default.
	IdleSeconds int `json:"idleSeconds,omitempty"`
	// RequestMillis limits the time from a request's header to the end of the response. BackendMillis limits the time
	// that one backend may take for it. Both are in milliseconds; 0 is no limit. When a limit is exceeded before the
	// response begins, the client gets 504, or 408 if the proxy waits for the request's body.
	RequestMillis int `json:"requestMillis,omitempty"`
	BackendMillis int `json:"backendMillis,omitempty"`
	// CORS answers preflight requests, and adds headers to responses.
	CORS *CORS `json:"cors,omitempty"`
	// Limit limits the requests and connections of one client.
	Limit *Limit `json:"limit,omitempty"`
	// Affinity sends the requests of a client to the same endpoint, by a cookie.
	Affinity *Affinity `json:"affinity,omitempty"`
	// HashBy is a text whose value selects the endpoint: requests with the same value go to the same endpoint. It may
	// hold the variables of package variable.
	HashBy string `json:"hashBy,omitempty"`
	// Canary sends a fraction of the requests to another backend.
	Canary *Canary `json:"canary,omitempty"`
}

// Redirect is a response that sends the client to another URL.
type Redirect struct {
	Status int `json:"status"`
	// Location may hold the variables of package variable. Its scheme is http or https. Where it is empty, the target
	// is the request's own URL, changed by the fields below.
	Location string `json:"location,omitempty"`
	Scheme   string `json:"scheme,omitempty"`
	Host     string `json:"host,omitempty"`
	// Port is not written where it is the default port of the scheme. 0 names no port. A Gateway that listens at a port
	// of its own has to name it here when neither the scheme nor the port changes.
	Port int         `json:"port,omitempty"`
	Path *PathChange `json:"path,omitempty"`
}

// SchemeOf returns the scheme of a redirect's target, in lower case. It returns "" for a target without one, which has
// that of the request.
func SchemeOf(target string) string {
	at := strings.IndexAny(target, ":/?#")
	if at < 0 || target[at] != ':' {
		return ""
	}
	return strings.ToLower(target[:at])
}

// PathChange replaces the path of a request. With Prefix it replaces only the route's path at its beginning.
type PathChange struct {
	Prefix bool   `json:"prefix,omitempty"`
	Value  string `json:"value"`
}

// Mirror receives Numerator of Denominator requests as well.
type Mirror struct {
	Backend     Backend `json:"backend"`
	Numerator   int     `json:"numerator"`
	Denominator int     `json:"denominator"`
	// URL, unless it is empty, is the URL to which copies are sent in place of the request's own. It may hold the
	// variables of package variable. Where Backend names no Service, the URL is outside of the cluster.
	URL string `json:"url,omitempty"`
	// NoBody leaves the body of requests out.
	NoBody bool `json:"noBody,omitempty"`
}

// Fallback serves requests while the route's own backend has no endpoint. It also replaces responses of the given
// statuses. It receives Headers and the headers X-Code, X-Format and X-Original-URI, which describe the failure.
type Fallback struct {
	Backend Backend `json:"backend"`
	// Statuses are the statuses of responses that are replaced by Fallback's response to a GET of the path /. They
	// include the 502, 503 and 504 that the proxy itself makes.
	Statuses []int    `json:"statuses,omitempty"`
	Headers  []Header `json:"headers,omitempty"`
	// Own replaces only the responses that the proxy itself makes, and not those of backends.
	Own bool `json:"own,omitempty"`
}

// Replacement replaces From by To, which may hold the variables of package variable.
type Replacement struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Basic is HTTP's basic authentication.
type Basic struct {
	// Users is the key of the section with the users. While that section is absent, the response is 503.
	Users string `json:"users"`
	Realm string `json:"realm"`
}

// Clients says which clients' certificates let a request pass. Other requests get 400.
type Clients struct {
	// Authorities is the key of the section with the authorities that must have signed the certificate. While the
	// section is absent, the response is 503.
	Authorities string `json:"authorities"`
	// Optional lets requests without a certificate pass. Unverified also lets those with one that Authorities did not
	// sign.
	Optional   bool `json:"optional,omitempty"`
	Unverified bool `json:"unverified,omitempty"`
	// Subject, unless it is empty, is an RE2 expression that must match in the subject's name (RFC 4514). Otherwise the
	// response is 403.
	Subject string `json:"subject,omitempty"`
	// ErrorPage is the target of a redirect, with 302, that replaces the responses with 400.
	ErrorPage string `json:"errorPage,omitempty"`
	// Pass sends the certificate to the backend in the header ssl-client-cert: in PEM, escaped as in a URL.
	Pass bool `json:"pass,omitempty"`
}

// KindUsers is the kind of a section that holds Users. Its key is UsersKey.
const KindUsers = "users"

// UsersKey is the key of the users in a Secret of the given form: auth-file or auth-map.
func UsersKey(namespace, secret, form string) string {
	return KindUsers + "/" + namespace + "/" + secret + "/" + form
}

// Users are the hashes of passwords, in the formats of htpasswd, by user.
type Users struct {
	Hashes map[string]string `json:"hashes"`
}

// External is a server that is asked whether a request may pass. Status 2xx lets the request pass. 401 and 403 refuse
// it. Every other status is an error.
type External struct {
	// URL is absolute, and may hold the variables of package variable. Without Backend it is outside of the cluster,
	// unless Self is set.
	URL string `json:"url"`
	// Backend serves the URL's host.
	Backend *Backend `json:"backend,omitempty"`
	// Self says that the URL's host is the request's host: routes of that host serve the URL.
	Self   bool   `json:"self,omitempty"`
	Method string `json:"method,omitempty"`
	// SignIn is the target of a redirect that replaces a 401. It may hold variables, as URL does.
	SignIn string `json:"signIn,omitempty"`
	// ResponseHeaders are the names of headers that are copied from the server's response to the request.
	ResponseHeaders []string `json:"responseHeaders,omitempty"`
	// Headers are sent with the request to the server.
	Headers []Header `json:"headers,omitempty"`
	// RequestRedirect is the value of the header X-Auth-Request-Redirect. Where it is empty, that is the request's URL.
	RequestRedirect string `json:"requestRedirect,omitempty"`
	// AlwaysSetCookie passes the server's cookies to the client whatever the status of the backend's response.
	AlwaysSetCookie bool `json:"alwaysSetCookie,omitempty"`
}

// CORS are the responses to requests of scripts from other origins.
type CORS struct {
	// Origins are "*", origins, or origins with a wildcard as the first label of the host.
	Origins       []string `json:"origins"`
	Methods       string   `json:"methods"`
	Headers       string   `json:"headers"`
	Expose        string   `json:"expose,omitempty"`
	MaxAgeSeconds int      `json:"maxAgeSeconds"`
	Credentials   bool     `json:"credentials,omitempty"`
	// Gateway follows the Gateway API in place of ingress-nginx: a wildcard in Origins stands for one label or more. A
	// preflight request of an origin that is not allowed gets a response, too. Where credentials are allowed, the
	// response names the client's origin, method and headers in place of "*".
	Gateway bool `json:"gateway,omitempty"`
}

// Limit limits requests by the client's address. 0 is no limit. A request that exceeds a limit gets 503.
type Limit struct {
	PerSecond   int `json:"perSecond,omitempty"`
	PerMinute   int `json:"perMinute,omitempty"`
	Burst       int `json:"burst,omitempty"` // a factor of PerSecond and PerMinute
	Connections int `json:"connections,omitempty"`
	// Except are networks whose clients are not limited.
	Except []string `json:"except,omitempty"`
}

// Affinity is a cookie that names an endpoint.
type Affinity struct {
	Cookie        string `json:"cookie"`
	Path          string `json:"path"`
	Domain        string `json:"domain,omitempty"`
	SameSite      string `json:"sameSite,omitempty"`
	MaxAgeSeconds int    `json:"maxAgeSeconds,omitempty"`
	Secure        bool   `json:"secure,omitempty"`
}

// Canary sends requests to Backend. A header decides, or a cookie if there is no header. If there is neither, Weight of
// WeightTotal requests go to Backend.
type Canary struct {
	Backend     Backend `json:"backend"`
	Header      string  `json:"header,omitempty"`
	HeaderValue string  `json:"headerValue,omitempty"`
	// HeaderPattern is an RE2 expression that matches anywhere in the header's value.
	HeaderPattern string `json:"headerPattern,omitempty"`
	Cookie        string `json:"cookie,omitempty"`
	Weight        int    `json:"weight,omitempty"`
	WeightTotal   int    `json:"weightTotal,omitempty"`
}

// backends returns the backends of the policy, which may be nil.
func (p *Policy) backends() []Backend {
	if p == nil {
		return nil
	}
	var out []Backend
	if p.External != nil && p.External.Backend != nil {
		out = append(out, *p.External.Backend)
	}
	for _, m := range p.Mirrors {
		out = append(out, m.Backend)
	}
	if p.Fallback != nil {
		out = append(out, p.Fallback.Backend)
	}
	if p.Canary != nil {
		out = append(out, p.Canary.Backend)
	}
	return out
}
