// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/truncate"
)

const (
	// maxLogin limits a login request, in bytes. It holds a code or a refresh token; large ones have some KB.
	maxLogin = 16 << 10
	// maxExchanges limits the logins and renewals under way, and addressExchanges those of one address. Each waits for
	// the provider, and its client has not logged in before.
	maxExchanges, addressExchanges = 8, 4
	// exchangeTimeout limits the time of a login or renewal, from the first byte of the request's body.
	exchangeTimeout = 15 * time.Second
	// maxProvider limits a response of the provider, in bytes.
	maxProvider = 256 << 10
	// discoveryTTL is the time for which the provider's description of itself is cached. discoveryRetry is the time
	// before the next attempt after a failed one.
	discoveryTTL, discoveryRetry = 10 * time.Minute, 3 * time.Second
	// clockLeeway is the time by which the provider's clock may be ahead.
	clockLeeway = 5 * time.Minute
)

// OIDC is the provider by which users log in (OpenID Connect Core 1.0). Its ID tokens are the API's bearer tokens.
type OIDC struct {
	Issuer, ClientID string
	// DiscoveryURL is the URL of the provider's description of itself. If empty, it is derived from the issuer.
	DiscoveryURL string
	// ClientSecret is the secret of a confidential client. It is never sent to a browser.
	ClientSecret string
	// Scopes are the requested scopes. If empty, they are openid and those of usualScopes that the provider supports.
	Scopes []string
	// Roots are the authorities of the provider's certificate. nil is for the machine's.
	Roots *x509.CertPool
}

// usualScopes are the scopes for the claims by which Kubernetes names users, and for a refresh token.
var usualScopes = []string{"profile", "email", "groups", "offline_access"}

// description is a provider's description of itself (OpenID Connect Discovery 1.0).
type description struct {
	Issuer        string   `json:"issuer"`
	Authorization string   `json:"authorization_endpoint"`
	Token         string   `json:"token_endpoint"`
	EndSession    string   `json:"end_session_endpoint"`
	Scopes        []string `json:"scopes_supported"`
	AuthMethods   []string `json:"token_endpoint_auth_methods_supported"`
}

// provider is the client of the OIDC provider. It caches the provider's description of itself, and stores no data of
// users.
type provider struct {
	o       OIDC
	client  http.Client
	logger  *slog.Logger
	working *userSlots // of logins and renewals, by client address; behind an ingress all clients share one

	mu      sync.Mutex
	found   *description
	err     error     // why there is no description
	expires time.Time // when found or err expires
}

func newProvider(o OIDC, logger *slog.Logger) *provider {
	return &provider{
		o: o, logger: logger, working: newUserSlots(maxExchanges, addressExchanges),
		client: http.Client{
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Roots},
				MaxIdleConns: maxExchanges, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
			},
			// A code or a secret is sent only to the address that the issuer names.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// register adds the paths of the login to mux.
func (p *provider) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /oidc/provider", p.describe)
	mux.HandleFunc("POST /oidc/token", p.bounded(p.login))
	mux.HandleFunc("POST /oidc/refresh", p.bounded(p.renew))
}

// bounded serves a request of a client that has not logged in. It limits the request's bytes, its time, and the number
// of such requests under way.
func (p *provider) bounded(f func(ctx context.Context, r *http.Request, in *loginRequest) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), exchangeTimeout)
		defer cancel()
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(exchangeTimeout)) // connections in tests have none
		var in loginRequest
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			answerError(w, http.StatusUnsupportedMediaType, "a login is JSON")
			return
		}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxLogin)).Decode(&in); err != nil {
			answerError(w, http.StatusBadRequest, "this login is too long, or no JSON")
			return
		}
		from, _, _ := net.SplitHostPort(r.RemoteAddr) // net/http wrote it
		release, err := p.working.acquire(ctx, from)
		if err != nil {
			answerError(w, http.StatusServiceUnavailable, "too many users log in at this moment: try again")
			return
		}
		defer release()
		out, err := f(ctx, r, &in)
		switch _, refused := errors.AsType[*requestError](err); {
		case refused:
			refuseError(w, err)
		case err != nil:
			p.respondUnavailable(w, err)
		default:
			answerJSON(w, out)
		}
	}
}

// respondUnavailable answers that the provider is unavailable. The reason is only in the log, since it may reveal more
// of the network than a client that has not logged in should know.
func (p *provider) respondUnavailable(w http.ResponseWriter, err error) {
	p.logger.Warn("no user can log in by OIDC at the moment", "issuer", p.o.Issuer, "error", err)
	answerError(w, http.StatusBadGateway, p.o.Issuer+" does not answer this server as it should. The server's log says why")
}

// loginRequest is a page's request: a code with its verifier, nonce and redirect URL, or a refresh token with its
// subject.
type loginRequest struct {
	Code, Verifier, Nonce, Redirect string
	Refresh, Subject                string
}

// loginResponse is the response to a page. Lifetime is in seconds from now, so that the browser's clock has no effect.
type loginResponse struct {
	Token    string `json:"token"`
	Refresh  string `json:"refresh,omitempty"`
	Subject  string `json:"subject"`
	Lifetime int64  `json:"lifetime"`
}

// providerResponse is the data that a page needs to send its user to the provider.
type providerResponse struct {
	ClientID      string `json:"clientID"`
	Authorization string `json:"authorization"`
	EndSession    string `json:"endSession,omitempty"`
	Scope         string `json:"scope"`
}

func (p *provider) describe(w http.ResponseWriter, r *http.Request) {
	d, err := p.discover(r.Context())
	if err != nil {
		p.respondUnavailable(w, err)
		return
	}
	scopes := p.o.Scopes
	if len(scopes) == 0 {
		scopes = []string{"openid"}
		for _, s := range usualScopes {
			if slices.Contains(d.Scopes, s) {
				scopes = append(scopes, s)
			}
		}
	}
	answerJSON(w, providerResponse{
		ClientID: p.o.ClientID, Authorization: d.Authorization, EndSession: d.EndSession, Scope: strings.Join(scopes, " "),
	})
}

// login exchanges a code (RFC 6749, 4.1.3) with the page's verifier (RFC 7636). The nonce proves that the token was
// made for this tab's login.
func (p *provider) login(ctx context.Context, r *http.Request, in *loginRequest) (any, error) {
	if in.Code == "" || in.Verifier == "" || in.Nonce == "" {
		return nil, newRequestError(http.StatusBadRequest, "a login has a code, a verifier and a nonce")
	}
	if u, err := url.Parse(in.Redirect); err != nil || u.Host != r.Host || u.RawQuery != "" || u.Fragment != "" {
		return nil, newRequestError(http.StatusBadRequest, "a login comes back to this console's own page")
	}
	out, c, err := p.exchange(ctx, url.Values{
		"grant_type": {"authorization_code"}, "code": {in.Code}, "code_verifier": {in.Verifier}, "redirect_uri": {in.Redirect},
	})
	if err != nil {
		return nil, err
	}
	if c.Nonce != in.Nonce {
		return nil, newRequestError(http.StatusForbidden, "this login was begun elsewhere, and is not taken: log in again")
	}
	return out, nil
}

// renew requests a new token for the same user (RFC 6749, 6).
func (p *provider) renew(ctx context.Context, _ *http.Request, in *loginRequest) (any, error) {
	if in.Refresh == "" || in.Subject == "" {
		return nil, newRequestError(http.StatusBadRequest, "a renewal has a refresh token and its user")
	}
	out, c, err := p.exchange(ctx, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {in.Refresh}})
	if err != nil {
		return nil, err
	}
	if c.Subject != in.Subject {
		return nil, newRequestError(http.StatusConflict, "%s answered for another user: log in again", p.o.Issuer)
	}
	if out.Refresh == "" { // the earlier token stays valid
		out.Refresh = in.Refresh
	}
	return out, nil
}

func (p *provider) exchange(ctx context.Context, form url.Values) (*loginResponse, *claims, error) {
	d, err := p.discover(ctx)
	if err != nil {
		return nil, nil, err
	}
	inBody := slices.Contains(d.AuthMethods, "client_secret_post") && !slices.Contains(d.AuthMethods, "client_secret_basic")
	if p.o.ClientSecret == "" || inBody {
		form.Set("client_id", p.o.ClientID)
	}
	if p.o.ClientSecret != "" && inBody {
		form.Set("client_secret", p.o.ClientSecret)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, d.Token, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, nil, fmt.Errorf("making a request: %w", err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if p.o.ClientSecret != "" && !inBody {
		r.SetBasicAuth(url.QueryEscape(p.o.ClientID), url.QueryEscape(p.o.ClientSecret))
	}
	var got struct {
		IDToken      string `json:"id_token"`
		RefreshToken string `json:"refresh_token"`
		Error        string `json:"error"`
		Description  string `json:"error_description"`
	}
	code, err := p.read(r, &got)
	switch {
	case err != nil:
		return nil, nil, err
	case code >= http.StatusInternalServerError || code == http.StatusTooManyRequests:
		return nil, nil, fmt.Errorf("%s answers with status %d", p.o.Issuer, code)
	case code != http.StatusOK || got.Error != "":
		why := shortError(strings.TrimSpace(got.Error+" "+got.Description), code)
		return nil, nil, newRequestError(http.StatusForbidden, "%s refused the login: %s", p.o.Issuer, why)
	case got.IDToken == "":
		return nil, nil, newRequestError(http.StatusForbidden, "%s gave no ID token: is openid among the scopes?", p.o.Issuer)
	}
	c, lifetime, err := p.check(got.IDToken)
	if err != nil {
		return nil, nil, err
	}
	return &loginResponse{Token: got.IDToken, Refresh: got.RefreshToken, Subject: c.Subject, Lifetime: lifetime}, c, nil
}

// check checks the claims of an ID token. The connection proves that the token is the provider's (OpenID Connect Core
// 1.0, 3.1.3.7), and the API verifies its signature.
func (p *provider) check(token string) (c *claims, lifetime int64, err error) {
	got, isJWT := claimsOf(token)
	now, ends, begins := time.Now(), claimTime(got.Expires), claimTime(got.IssuedAt)
	switch {
	case !isJWT || got.Subject == "" || ends.IsZero():
		return nil, 0, newRequestError(http.StatusForbidden, "%s gave an ID token that is none", p.o.Issuer)
	case got.Issuer != p.o.Issuer:
		return nil, 0, newRequestError(http.StatusForbidden, "the ID token is of %s, and not of %s", shortError(got.Issuer, 0), p.o.Issuer)
	case !now.Before(ends), begins.After(now.Add(clockLeeway)):
		return nil, 0, newRequestError(http.StatusForbidden,
			"the token is good from %s to %s, and this server's clock has %s: one of the clocks is wrong",
			begins.UTC().Format(time.RFC3339), ends.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return &got, int64(ends.Sub(now) / time.Second), nil
}

// shortError returns a text of the provider, shortened for users. If there is none, it returns the status.
func shortError(text string, code int) string {
	if text == "" {
		return fmt.Sprintf("status %d", code)
	}
	return truncate.Text(text, 300)
}

// discover returns the provider's description of itself. One request at a time fetches it, and others wait.
func (p *provider) discover(ctx context.Context) (*description, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().Before(p.expires) {
		return p.found, p.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exchangeTimeout) // the result is for other requests, too
	defer cancel()
	p.found, p.err = p.fetch(ctx)
	p.expires = time.Now().Add(discoveryTTL)
	if p.err != nil {
		p.expires = time.Now().Add(discoveryRetry)
	}
	return p.found, p.err
}

func (p *provider) fetch(ctx context.Context) (*description, error) {
	at := p.o.DiscoveryURL
	at = cmp.Or(at, strings.TrimSuffix(p.o.Issuer, "/")+"/.well-known/openid-configuration")
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	var d description
	code, err := p.read(r, &d)
	if err != nil {
		return nil, err
	}
	if code != http.StatusOK {
		return nil, fmt.Errorf("%s answers with status %d", at, code)
	}
	if d.Issuer != p.o.Issuer {
		return nil, fmt.Errorf("%s describes the issuer %s, and not %s", at, shortError(d.Issuer, code), p.o.Issuer)
	}
	for name, text := range map[string]string{"authorization_endpoint": d.Authorization, "token_endpoint": d.Token} {
		if u, err := url.Parse(text); err != nil || u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("%s has no %s that is an address of https", at, name)
		}
	}
	if u, err := url.Parse(d.EndSession); err != nil || u.Scheme != "https" {
		d.EndSession = "" // it is optional
	}
	return &d, nil
}

// read makes a request to the provider and reads its JSON into v. Errors contain nothing of the request, since it may
// hold a code or a secret.
func (p *provider) read(r *http.Request, v any) (code int, err error) {
	response, err := p.client.Do(r)
	if sending, ok := errors.AsType[*url.Error](err); ok {
		err = sending.Err
	}
	if err != nil {
		return 0, fmt.Errorf("%s does not answer this server: %w", p.o.Issuer, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxProvider))
	if err != nil {
		return 0, fmt.Errorf("reading the answer of %s: %w", p.o.Issuer, err)
	}
	if err := json.Unmarshal(text, v); err != nil && response.StatusCode == http.StatusOK {
		return 0, fmt.Errorf("%s gave an answer that is no JSON", p.o.Issuer)
	}
	return response.StatusCode, nil
}
