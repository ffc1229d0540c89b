// SPDX-License-Identifier: Apache-2.0

package table

// Policy is what a route does to requests beyond sending them to a backend. A proxy that does not know one of its
// fields closes the host, since the field may restrict who gets in.
type Policy struct {
	// Redirect answers every request.
	Redirect *Redirect `json:"redirect,omitempty"`
	// AppRoot is where requests for the path / are redirected to, with the status 302.
	AppRoot string `json:"appRoot,omitempty"`
	// Rewrite replaces the path of a request that the route's expression matches; $1 to $9 stand for its groups. The
	// query stays, after that of Rewrite.
	Rewrite string `json:"rewrite,omitempty"`
	// UpstreamHost replaces the Host header on the way to the backend.
	UpstreamHost string `json:"upstreamHost,omitempty"`
	// Path changes the path of a request on the way to the backend.
	Path *PathChange `json:"path,omitempty"`
	// RequestHeaders and ResponseHeaders change headers on the way to the backend and to the client, before those of
	// the backend itself do.
	RequestHeaders  *Headers `json:"requestHeaders,omitempty"`
	ResponseHeaders *Headers `json:"responseHeaders,omitempty"`
	// Mirrors get copies of requests; their answers are not waited for.
	Mirrors []Mirror `json:"mirrors,omitempty"`
	// Fallback is another backend for what the route's own does not serve.
	Fallback *Fallback `json:"fallback,omitempty"`
	// CookieDomain replaces the domain of cookies that backends set, CookiePath the beginning of their path, and
	// Location the beginning of the place that they redirect to.
	CookieDomain *Replacement `json:"cookieDomain,omitempty"`
	CookiePath   *Replacement `json:"cookiePath,omitempty"`
	Location     *Replacement `json:"location,omitempty"`
	// ForwardedPrefix is the header X-Forwarded-Prefix on the way to the backend.
	ForwardedPrefix string `json:"forwardedPrefix,omitempty"`

	// Allow are networks, in CIDR notation, whose clients alone get in; empty lets all in. Others are answered with
	// 403.
	Allow []string `json:"allow,omitempty"`
	// Deny are networks whose clients do not get in, whatever else says so.
	Deny []string `json:"deny,omitempty"`
	// Basic asks for a name and a password.
	Basic *Basic `json:"basic,omitempty"`
	// External asks a server whether a request may pass.
	External *External `json:"external,omitempty"`
	// Clients asks for clients' certificates.
	Clients *Clients `json:"clients,omitempty"`
	// SatisfyAny lets a request in that either Allow or authentication lets in.
	SatisfyAny bool `json:"satisfyAny,omitempty"`

	// BodyLimit is the greatest size of a request's body in bytes; 0 is none.
	BodyLimit int64 `json:"bodyLimit,omitempty"`
	// IdleSeconds is how long nothing may move between the bytes of a request or a response; 0 leaves the proxy's own.
	IdleSeconds int `json:"idleSeconds,omitempty"`
	// RequestMillis bounds how long a request takes from its header to the end of the response, and BackendMillis how
	// long one backend may take for it, in milliseconds; 0 is no bound. What takes longer before the response begins is
	// answered with 504, or with 408 where the proxy waits for the request's body.
	RequestMillis int `json:"requestMillis,omitempty"`
	BackendMillis int `json:"backendMillis,omitempty"`
	// CORS answers preflight requests, and adds headers to responses.
	CORS *CORS `json:"cors,omitempty"`
	// Limit bounds what one client may ask for.
	Limit *Limit `json:"limit,omitempty"`
	// Affinity keeps a client at an endpoint by a cookie.
	Affinity *Affinity `json:"affinity,omitempty"`
	// HashBy sends requests for which it has the same value to the same endpoint. It may hold the variables of package
	// variable.
	HashBy string `json:"hashBy,omitempty"`
	// Canary sends some requests to another backend.
	Canary *Canary `json:"canary,omitempty"`
}

// Redirect is an answer that names another place.
type Redirect struct {
	Status int `json:"status"`
	// Location may hold the variables of package variable. Where it is empty, the place is the request's own with what
	// follows in the place of its parts.
	Location string `json:"location,omitempty"`
	Scheme   string `json:"scheme,omitempty"`
	Host     string `json:"host,omitempty"`
	// Port is left out where it is the scheme's own. 0 names none: where a Gateway listens at a port of its own, and
	// neither the scheme nor the port changes, it has to be that port.
	Port int         `json:"port,omitempty"`
	Path *PathChange `json:"path,omitempty"`
}

// PathChange replaces a path, or, of a route whose path is a prefix, that prefix. The query stays.
type PathChange struct {
	Prefix bool   `json:"prefix,omitempty"`
	Value  string `json:"value"`
}

// Mirror gets Numerator of Denominator requests as well.
type Mirror struct {
	Backend     Backend `json:"backend"`
	Numerator   int     `json:"numerator"`
	Denominator int     `json:"denominator"`
	// URL, unless it is empty, is where the copies go in the place of the request's own. It may hold the variables of
	// package variable. Where Backend names no Service it is outside of the cluster.
	URL string `json:"url,omitempty"`
	// NoBody leaves the body of requests out.
	NoBody bool `json:"noBody,omitempty"`
}

// Fallback serves requests while the route's own backend has no endpoint, and makes the answers of some statuses. It
// gets the headers X-Code, X-Format and X-Original-URI, which say what happened, and Headers.
type Fallback struct {
	Backend Backend `json:"backend"`
	// Statuses are those of answers in whose place the client gets the answer to a GET of the path /. They include the
	// proxy's own 502, 503 and 504.
	Statuses []int    `json:"statuses,omitempty"`
	Headers  []Header `json:"headers,omitempty"`
	// Own leaves answers of backends as they are: only the proxy's own are replaced.
	Own bool `json:"own,omitempty"`
}

// Replacement puts To, which may hold the variables of package variable, in the place of From.
type Replacement struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Basic is HTTP's basic authentication.
type Basic struct {
	// Users is the key of the section with them. While there is none, the answer is 503.
	Users string `json:"users"`
	Realm string `json:"realm"`
}

// Clients are whose certificates let a request in. Other requests are answered with 400.
type Clients struct {
	// Authorities is the key of the section with those that must have signed the certificate. While the section is
	// absent, the answer is 503.
	Authorities string `json:"authorities"`
	// Optional lets requests in without a certificate, Unverified also with one that these authorities have not signed.
	Optional   bool `json:"optional,omitempty"`
	Unverified bool `json:"unverified,omitempty"`
	// Subject, unless it is empty, is an expression of RE2's that a part of the subject's name (RFC 4514) must match;
	// the answer is 403 otherwise.
	Subject string `json:"subject,omitempty"`
	// ErrorPage is where a client is redirected to, with 302, instead of the answers 400.
	ErrorPage string `json:"errorPage,omitempty"`
	// Pass sends the certificate to the backend: in PEM, escaped as in a URL, in the header ssl-client-cert.
	Pass bool `json:"pass,omitempty"`
}

// KindUsers are Users; its key is UsersKey.
const KindUsers = "users"

// UsersKey is the key of the users in a Secret of the given form: auth-file or auth-map.
func UsersKey(namespace, secret, form string) string {
	return KindUsers + "/" + namespace + "/" + secret + "/" + form
}

// Users are hashes of passwords in the forms of htpasswd, by user.
type Users struct {
	Hashes map[string]string `json:"hashes"`
}

// External is a server that is asked whether a request may pass: 2xx lets it, 401 and 403 do not, and all else is an
// error.
type External struct {
	// URL is absolute, and may hold the variables of package variable. Without Backend it is outside of the cluster, or
	// Self.
	URL string `json:"url"`
	// Backend serves the URL's host.
	Backend *Backend `json:"backend,omitempty"`
	// Self says that the host of the URL is that of the request: its own routes serve it.
	Self   bool   `json:"self,omitempty"`
	Method string `json:"method,omitempty"`
	// SignIn is where a client is redirected to instead of a 401. It may hold variables, as URL does.
	SignIn string `json:"signIn,omitempty"`
	// ResponseHeaders are copied from the answer to the request.
	ResponseHeaders []string `json:"responseHeaders,omitempty"`
	// Headers are sent with the question.
	Headers []Header `json:"headers,omitempty"`
	// RequestRedirect is the header X-Auth-Request-Redirect; the request's URL without it.
	RequestRedirect string `json:"requestRedirect,omitempty"`
	// AlwaysSetCookie passes the answer's cookies to the client whatever the backend's status.
	AlwaysSetCookie bool `json:"alwaysSetCookie,omitempty"`
}

// CORS are the answers to requests of scripts from other origins.
type CORS struct {
	// Origins are "*", origins, or origins with a wildcard as the first label of the host.
	Origins       []string `json:"origins"`
	Methods       string   `json:"methods"`
	Headers       string   `json:"headers"`
	Expose        string   `json:"expose,omitempty"`
	MaxAgeSeconds int      `json:"maxAgeSeconds"`
	Credentials   bool     `json:"credentials,omitempty"`
	// Gateway answers as the Gateway API says and not as ingress-nginx does: a wildcard in Origins stands for one label
	// or more, a preflight request of another origin is answered, too, and where credentials are allowed the answer
	// names the client's origin, method and headers in the place of "*".
	Gateway bool `json:"gateway,omitempty"`
}

// Limit bounds requests by a client's address; each bound is 0 for none. What exceeds one is answered with 503.
type Limit struct {
	PerSecond   int `json:"perSecond,omitempty"`
	PerMinute   int `json:"perMinute,omitempty"`
	Burst       int `json:"burst,omitempty"` // a factor of both
	Connections int `json:"connections,omitempty"`
	// Except are networks that are not bounded.
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

// Canary sends requests to Backend: by a header, else by a cookie, else so many of WeightTotal.
type Canary struct {
	Backend     Backend `json:"backend"`
	Header      string  `json:"header,omitempty"`
	HeaderValue string  `json:"headerValue,omitempty"`
	// HeaderPattern is an expression of RE2's, which the value matches anywhere.
	HeaderPattern string `json:"headerPattern,omitempty"`
	Cookie        string `json:"cookie,omitempty"`
	Weight        int    `json:"weight,omitempty"`
	WeightTotal   int    `json:"weightTotal,omitempty"`
}

// backends are those of the policy, which may be nil.
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
