// SPDX-License-Identifier: Apache-2.0

// Package oidcprovider is a small OpenID provider for tests: it logs in a user who presses its page's button, and wants
// a proof key (RFC 7636). It never serves anybody but tests.
package oidcprovider

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"html/template"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// Provider is an OpenID provider. Its fields may be changed between two requests by Change.
type Provider struct {
	Issuer, ClientID string
	// ClientSecret makes the client a confidential one.
	ClientSecret string
	// User is who logs in, and Lifetime for how long an ID token is good.
	User     string
	Lifetime time.Duration
	// Claims are added to ID tokens, over those that are there.
	Claims map[string]any
	// Answer, when set, answers a request instead; false leaves it to the provider.
	Answer func(w http.ResponseWriter, r *http.Request) bool

	mu        sync.Mutex
	key       *rsa.PrivateKey
	codes     map[string]login // by code
	refreshes map[string]bool  // refresh tokens that are good
	renewals  int
}

// login is what a code stands for.
type login struct{ challenge, nonce, redirect, user string }

// signingKey is that of all providers of a process: making one takes a second of a busy processor.
var signingKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err) // there is randomness
	}
	return key
})

// New makes a provider of tests.
func New(issuer string) *Provider {
	return &Provider{
		Issuer: issuer, ClientID: "console", User: "ada", Lifetime: time.Hour,
		key: signingKey(), codes: map[string]login{}, refreshes: map[string]bool{},
	}
}

// Change changes the provider.
func (p *Provider) Change(f func(p *Provider)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

// Renewals is how often a token was renewed.
func (p *Provider) Renewals() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.renewals
}

// ServeTLS serves the provider with a certificate of its own, which is its own authority, until the listener is closed.
// It returns that authority in PEM.
func (p *Provider) ServeTLS(l net.Listener) (ca []byte, err error) {
	host, _, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "provider"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.ParseIP(host)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	s := &http.Server{
		Handler: p, ReadHeaderTimeout: time.Minute,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
	}
	go func() { _ = s.ServeTLS(l, "", "") }() // it ends with the listener
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// page asks for the login. Its form has what the request had.
var page = template.Must(template.New("").Parse(`<!doctype html><title>provider</title><h1>Log in as {{.User}}</h1>
<form method="post"><button id="login" autofocus>Let me in</button><button id="deny" name="deny" value="1">No</button></form>`))

// ServeHTTP implements http.Handler.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.Answer != nil && p.Answer(w, r) {
		return
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		respond(w, http.StatusOK, map[string]any{
			"issuer": p.Issuer, "authorization_endpoint": p.Issuer + "/authorize", "token_endpoint": p.Issuer + "/token", "jwks_uri": p.Issuer + "/keys",
			"end_session_endpoint": p.Issuer + "/logout", "scopes_supported": []string{"openid", "profile", "groups", "offline_access"},
			"id_token_signing_alg_values_supported": []string{"RS256"}, "response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		})
	case "/keys":
		respond(w, http.StatusOK, map[string]any{"keys": []any{map[string]any{
			"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1", "n": encode(p.key.N.Bytes()), "e": encode(big.NewInt(int64(p.key.E)).Bytes()),
		}}})
	case "/authorize":
		p.authorize(w, r)
	case "/token":
		p.token(w, r)
	case "/logout":
		http.Redirect(w, r, r.URL.Query().Get("post_logout_redirect_uri"), http.StatusFound)
	default:
		http.NotFound(w, r)
	}
}

func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("client_id") != p.ClientID || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" {
		http.Error(w, "a request for a code with a proof key is wanted", http.StatusBadRequest)
		return
	}
	if r.Method == http.MethodGet {
		w.Header().Set("Content-Type", "text/html")
		_ = page.Execute(w, p) // a failed write: the browser has left
		return
	}
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	out := url.Values{"state": {q.Get("state")}}
	if r.FormValue("deny") != "" {
		out.Set("error", "access_denied")
		out.Set("error_description", "the user said no")
	} else {
		out.Set("code", p.code(q))
	}
	back.RawQuery = out.Encode()
	http.Redirect(w, r, back.String(), http.StatusSeeOther)
}

func (p *Provider) code(q url.Values) string {
	code := rand.Text()
	p.codes[code] = login{challenge: q.Get("code_challenge"), nonce: q.Get("nonce"), redirect: q.Get("redirect_uri"), user: p.User}
	return code
}

// Code logs a user in as a browser would that comes with this query, and returns the code.
func (p *Provider) Code(q url.Values) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.code(q)
}

func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	deny := func(text string) {
		respond(w, http.StatusBadRequest, map[string]any{"error": "invalid_grant", "error_description": text})
	}
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.FormValue("client_id"), r.FormValue("client_secret")
	}
	if id != p.ClientID || secret != p.ClientSecret {
		respond(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client"})
		return
	}
	var user, nonce string
	switch r.FormValue("grant_type") {
	case "authorization_code":
		l, known := p.codes[r.FormValue("code")]
		delete(p.codes, r.FormValue("code"))
		sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
		if !known || encode(sum[:]) != l.challenge || r.FormValue("redirect_uri") != l.redirect {
			deny("the code, its proof key or its address is not good")
			return
		}
		user, nonce = l.user, l.nonce
	case "refresh_token":
		if !p.refreshes[r.FormValue("refresh_token")] {
			deny("the refresh token is not good")
			return
		}
		delete(p.refreshes, r.FormValue("refresh_token")) // each is good once
		user = p.User
		p.renewals++
	default:
		deny("another grant")
		return
	}
	refresh := rand.Text()
	p.refreshes[refresh] = true
	respond(w, http.StatusOK, map[string]any{"token_type": "Bearer", "access_token": rand.Text(), "refresh_token": refresh, "id_token": p.sign(user, nonce)})
}

// sign makes an ID token.
func (p *Provider) sign(user, nonce string) string {
	now := time.Now()
	claims := map[string]any{"iss": p.Issuer, "aud": p.ClientID, "sub": user, "iat": now.Unix(), "exp": now.Add(p.Lifetime).Unix()}
	if nonce != "" {
		claims["nonce"] = nonce
	}
	maps.Copy(claims, p.Claims)
	body, err := json.Marshal(claims)
	if err != nil {
		panic(fmt.Sprintf("the claims of a test: %v", err))
	}
	text := encode([]byte(`{"alg":"RS256","kid":"1"}`)) + "." + encode(body)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, p.key, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return text + "." + encode(signature)
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func respond(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // a failed write: the client has left
}
