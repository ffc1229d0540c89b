// SPDX-License-Identifier: Apache-2.0

package registries

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/connlimit"
)

// Relay requests images from mirrors under other names. containerd has no setting for that (k3s has a patched one). So
// containerd's configuration has the relay's address in place of a mirror with rewrites. The relay listens on loopback,
// changes the name, requests the mirror with the mirror's own credentials, and forwards the response. A secret in the
// path prevents other users of the machine from pulling with those credentials.
type Relay struct {
	port   *connlimit.Port
	ran    bool // Run has closed the port
	secret string
	routes map[string]*route // by the path element after the secret
}

// route leads the requests for one registry to one of its mirrors.
type route struct {
	endpoint *url.URL
	rewrites []rewrite
	client   *http.Client
	auth     *Auth

	mu          sync.Mutex
	authorizers map[string]docker.Authorizer // by repository: each keeps the tokens of the scope of its first request
}

type rewrite struct {
	pattern     *regexp.Regexp
	replacement string
}

// maxForeign limits the connections of the machine's other users: those without a request that has the secret.
const maxForeign = 64

// relayTimeout limits the wait for a mirror's first byte. containerd tries the next mirror then.
const relayTimeout = 30 * time.Second

// NewRelay listens for those mirrors of the configuration that it asks (relayed). It returns nil when there are none.
func NewRelay(c *Config) (*Relay, error) {
	r := &Relay{secret: rand.Text(), routes: map[string]*route{}}
	for _, name := range slices.Sorted(maps.Keys(c.Mirrors)) {
		m := c.Mirrors[name]
		if !c.relayed(name) {
			continue
		}
		rewrites, err := compile(m.Rewrites)
		if err != nil {
			return nil, fmt.Errorf("registries: mirrors: %s: %w", name, err)
		}
		for _, e := range m.Endpoints {
			to, err := c.newRoute(e, rewrites)
			if err != nil {
				return nil, fmt.Errorf("registries: mirrors: %s: %w", name, err)
			}
			r.routes[routeKey(name, e)] = to
		}
	}
	if len(r.routes) == 0 {
		return nil, nil
	}
	var err error
	if r.port, err = listenRelay(netip.AddrPortFrom(clusterconfig.Loopback, 0).String()); err != nil {
		return nil, fmt.Errorf("registries: listen for rewritten pulls: %w", err)
	}
	return r, nil
}

func listenRelay(address string) (*connlimit.Port, error) {
	return connlimit.Listen(context.Background(), "registry-relay", "tcp", address, &connlimit.Table{Max: maxForeign})
}

// compile orders the patterns by length, the longest first: the file's order is lost, and a longer one is usually more
// specific.
func compile(m map[string]string) ([]rewrite, error) {
	patterns := slices.Sorted(maps.Keys(m))
	slices.SortStableFunc(patterns, func(a, b string) int { return len(b) - len(a) })
	var out []rewrite
	for _, p := range patterns {
		re, err := regexp.Compile(p)
		if err != nil {
			return nil, fmt.Errorf("rewrite %q: %w", p, err)
		}
		out = append(out, rewrite{re, m[p]})
	}
	return out, nil
}

func (c *Config) newRoute(endpoint string, rewrites []rewrite) (*route, error) {
	u, err := endpointURL(endpoint)
	if err != nil {
		return nil, err
	}
	host := c.host(u.Host)
	tlsConfig, err := host.TLS.config()
	if err != nil {
		return nil, err
	}
	transport := docker.DefaultHTTPTransport(tlsConfig)
	transport.ResponseHeaderTimeout = relayTimeout
	client := &http.Client{Transport: transport}
	return &route{endpoint: u, rewrites: rewrites, client: client, auth: host.Auth, authorizers: map[string]docker.Authorizer{}}, nil
}

// authorizer returns containerd's own, which supports the authentication of all registries.
func (t *route) authorizer(repository string) docker.Authorizer {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.authorizers[repository]
	if a == nil {
		a = docker.NewDockerAuthorizer(docker.WithAuthClient(t.client), docker.WithAuthCreds(func(asking string) (string, string, error) {
			if asking != t.endpoint.Host || t.auth == nil {
				return "", "", nil
			}
			return t.auth.pair()
		}))
		t.authorizers[repository] = a
	}
	return a
}

// config returns the settings of TLS. For nil they are TLS 1.2 at least and the system's authorities.
func (t *TLS) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t == nil {
		return c, nil
	}
	c.InsecureSkipVerify = t.InsecureSkipVerify
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, err
		}
		if c.RootCAs, err = x509.SystemCertPool(); err != nil {
			c.RootCAs = x509.NewCertPool()
		}
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// pair returns the name and the secret as containerd's authorizer takes them: a token is a secret without a name.
func (a *Auth) pair() (string, string, error) {
	switch {
	case a.Username != "":
		return a.Username, a.Password, nil
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	}
	text, err := base64.StdEncoding.DecodeString(a.Auth)
	if err != nil {
		return "", "", fmt.Errorf("auth is not base64: %w", err)
	}
	name, password, ok := strings.Cut(string(text), ":")
	if !ok {
		return "", "", errors.New("auth is not the base64 of name:password")
	}
	return name, password, nil
}

func routeKey(registry, endpoint string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(registry + " " + endpoint))
}

// url returns the URL that replaces the endpoint in containerd's configuration.
func (r *Relay) url(registry, endpoint string) string {
	return fmt.Sprintf("http://%s/%s/%s", r.port.Addr(), r.secret, routeKey(registry, endpoint))
}

// Run serves until ctx is done. After an error it may be called again. It listens at the same address, which containerd
// has.
func (r *Relay) Run(ctx context.Context) error {
	if r.ran {
		again, err := listenRelay(r.port.Addr().String())
		if err != nil {
			return fmt.Errorf("registries: listen again for rewritten pulls: %w", err)
		}
		r.port = again
	}
	r.ran = true
	l := r.port.Bounded(nil)
	server := &http.Server{ReadHeaderTimeout: relayTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if to, _ := r.routeOf(req); to != nil {
			l.Identified(req.RemoteAddr)
		}
		r.ServeHTTP(w, req)
	})}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("registries: relay of rewritten pulls: %w", err)
	}
	return nil
}

// ServeHTTP implements http.Handler for /SECRET/ROUTE/NAME/manifests/REF and its siblings (OCI distribution
// specification).
func (r *Relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	to, path := r.routeOf(req)
	if to == nil || (req.Method != http.MethodGet && req.Method != http.MethodHead) {
		http.NotFound(w, req)
		return
	}
	name, what, ok := splitName(path)
	if !ok {
		http.NotFound(w, req)
		return
	}
	resp, err := to.ask(req, to.rename(name), what)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for key, values := range resp.Header {
		if key != "Www-Authenticate" { // the relay has already tried to authorize
			w.Header()[key] = values
		}
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // containerd checks length and digest
}

// routeOf returns the route of a request, and the rest of its path. It returns nil for a request without the secret.
func (r *Relay) routeOf(req *http.Request) (to *route, path string) {
	parts := strings.SplitN(strings.TrimPrefix(req.URL.Path, "/"), "/", 3)
	if len(parts) != 3 || parts[0] != r.secret {
		return nil, ""
	}
	return r.routes[parts[1]], parts[2]
}

// splitName separates the repository, which may contain slashes, from the rest of the path.
func splitName(path string) (name, what string, ok bool) {
	for _, kind := range []string{"/manifests/", "/blobs/", "/referrers/", "/tags/"} {
		if i := strings.LastIndex(path, kind); i > 0 {
			return path[:i], path[i:], true
		}
	}
	return "", "", false
}

// rename applies the first pattern that matches.
func (t *route) rename(name string) string {
	for _, r := range t.rewrites {
		if r.pattern.MatchString(name) {
			return r.pattern.ReplaceAllString(name, r.replacement)
		}
	}
	return name
}

// ask sends a request to the mirror, and again with credentials when the mirror requires them.
func (t *route) ask(from *http.Request, name, what string) (*http.Response, error) {
	ctx, auth := docker.ContextWithAppendPullRepositoryScope(from.Context(), name), t.authorizer(name)
	u := *t.endpoint
	u.Path += "/" + name + what
	u.RawQuery = from.URL.RawQuery
	for attempt := 0; ; attempt++ {
		req, err := http.NewRequestWithContext(ctx, from.Method, u.String(), nil)
		if err != nil {
			return nil, err
		}
		for _, key := range []string{"Accept", "Range", "User-Agent"} {
			if v := from.Header.Values(key); len(v) > 0 {
				req.Header[key] = v
			}
		}
		if err := auth.Authorize(ctx, req); err != nil {
			return nil, fmt.Errorf("authorize at %s: %w", t.endpoint.Host, err)
		}
		resp, err := t.client.Do(req)
		if err != nil || resp.StatusCode != http.StatusUnauthorized || attempt > 0 {
			return resp, err
		}
		if err := auth.AddResponses(ctx, []*http.Response{resp}); err != nil {
			return resp, nil // an unknown scheme is required: containerd gets the refusal unchanged
		}
		resp.Body.Close()
	}
}
