// SPDX-License-Identifier: Apache-2.0

package console

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/oidcprovider"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// consoleWith makes a server's console whose users log in at a provider.
func consoleWith(t *testing.T, change ...func(*OIDC)) (*httptest.Server, *oidcprovider.Provider) {
	t.Helper()
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	p := oidcprovider.New("https://" + l.Addr().String())
	ca := testenv.Must(p.ServeTLS(l))(t)
	o := &OIDC{Issuer: p.Issuer, ClientID: p.ClientID, Roots: x509.NewCertPool()}
	o.Roots.AppendCertsFromPEM(ca)
	for _, f := range change {
		f(o)
	}
	return consoleOf(t, noAPI(t), func(c *Options) {
		c.Mode, c.Login, c.OIDC = ModeServer, nil, o
		c.Logger = slog.New(slog.NewTextHandler(logFor(t), nil))
	}), p
}

// logs has what consoles log, by the name of the test.
var logs sync.Map

type testLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func logFor(t *testing.T) *testLog {
	t.Helper()
	l, _ := logs.LoadOrStore(t.Name(), &testLog{})
	out, _ := l.(*testLog)
	return out
}

// Write implements io.Writer.
func (l *testLog) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(text)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// code is one of the provider's for a page with a verifier and a nonce.
func code(s *httptest.Server, p *oidcprovider.Provider, verifier, nonce string) string {
	sum := sha256.Sum256([]byte(verifier))
	return p.Code(url.Values{"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "nonce": {nonce}, "redirect_uri": {s.URL + "/"}})
}

func postLogin(t *testing.T, s *httptest.Server, path string, in loginRequest) (int, loginResponse, string) {
	t.Helper()
	body := testenv.Must(json.Marshal(in))(t)
	status, text, _ := roundTrip(t, s, "POST", path, string(body), "Content-Type", "application/json")
	var out loginResponse
	if status == http.StatusOK {
		testenv.NoError(t, json.Unmarshal([]byte(text), &out))
	}
	return status, out, text
}

func TestLoginAtAProvider(t *testing.T) {
	for _, secret := range []string{"", "a secret: 1%"} {
		s, p := consoleWith(t, func(o *OIDC) { o.ClientSecret = secret })
		p.Change(func(p *oidcprovider.Provider) { p.ClientSecret = url.QueryEscape(secret) })
		_, text, _ := roundTrip(t, s, "GET", "/oidc/provider", "")
		if !strings.Contains(text, `"scope":"openid profile groups offline_access"`) || !strings.Contains(text, p.Issuer+"/authorize") || strings.Contains(text, "secret") {
			t.Errorf("the provider is %s", text)
		}
		if _, text, _ := roundTrip(t, s, "GET", "/mode", ""); !strings.Contains(text, `"issuer":"`+p.Issuer) {
			t.Errorf("the mode is %s", text)
		}
		status, got, text := postLogin(t, s, "/oidc/token", loginRequest{Code: code(s, p, "v", "n"), Verifier: "v", Nonce: "n", Redirect: s.URL + "/"})
		if status != http.StatusOK || got.Subject != "ada" || got.Refresh == "" || got.Lifetime < 3500 || got.Lifetime > 3600 {
			t.Fatalf("the login is %d %s", status, text)
		}
		status, next, text := postLogin(t, s, "/oidc/refresh", loginRequest{Refresh: got.Refresh, Subject: "ada"})
		if status != http.StatusOK || next.Subject != "ada" || next.Refresh == "" || next.Refresh == got.Refresh {
			t.Errorf("the renewal is %d %s", status, text)
		}
	}
}

// An attacker who stole a code, guesses one or has a user finish another login sends it to the console; it must not get
// a token.
func TestForeignLoginsAreRefused(t *testing.T) {
	s, p := consoleWith(t)
	good := func() loginRequest {
		return loginRequest{Code: code(s, p, "v", "n"), Verifier: "v", Nonce: "n", Redirect: s.URL + "/"}
	}
	for name, c := range map[string]struct {
		change func(*loginRequest)
		want   int
		text   string
	}{
		"a code that was stolen, without its verifier": {func(r *loginRequest) { r.Verifier = "w" }, 403, "invalid_grant"},
		"the login of another tab (nonce)":             {func(r *loginRequest) { r.Nonce = "m" }, 403, "begun elsewhere"},
		"no nonce":                                     {func(r *loginRequest) { r.Nonce = "" }, 400, "nonce"},
		"a page of another site":                       {func(r *loginRequest) { r.Redirect = "https://evil.example/" }, 400, "own page"},
		"an address with a query":                      {func(r *loginRequest) { r.Redirect += "?a" }, 400, "own page"},
		"no code":                                      {func(r *loginRequest) { r.Code = "" }, 400, "code"},
		"a code that was never given":                  {func(r *loginRequest) { r.Code = "x&client_id=y" }, 403, "invalid_grant"},
	} {
		t.Run(name, func(t *testing.T) {
			in := good()
			c.change(&in)
			if status, _, text := postLogin(t, s, "/oidc/token", in); status != c.want || !strings.Contains(text, c.text) {
				t.Errorf("%d %s, want %d", status, text, c.want)
			}
		})
	}
	in := good()
	if status, _, text := postLogin(t, s, "/oidc/token", in); status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	if status, _, _ := postLogin(t, s, "/oidc/token", in); status != http.StatusForbidden {
		t.Errorf("a code was taken twice: %d", status)
	}
}

// An attacker who has a refresh token of one user renews the session of another with it; the session must not go on.
func TestRenewalIsOfTheSameUser(t *testing.T) {
	s, p := consoleWith(t)
	_, got, _ := postLogin(t, s, "/oidc/token", loginRequest{Code: code(s, p, "v", "n"), Verifier: "v", Nonce: "n", Redirect: s.URL + "/"})
	p.Change(func(p *oidcprovider.Provider) { p.User = "eve" })
	if status, _, text := postLogin(t, s, "/oidc/refresh", loginRequest{Refresh: got.Refresh, Subject: "ada"}); status != http.StatusConflict {
		t.Errorf("%d %s", status, text)
	}
	if status, _, text := postLogin(t, s, "/oidc/refresh", loginRequest{Refresh: "none", Subject: "ada"}); status != http.StatusForbidden || !strings.Contains(text, "not good") {
		t.Errorf("%d %s", status, text)
	}
}

// An attacker who is the provider, or answers for it, sends tokens and descriptions that are not good or have no end;
// no user must be logged in by them.
func TestOddAnswersOfAProvider(t *testing.T) {
	day := 24 * time.Hour
	claims := func(c map[string]any) func(*oidcprovider.Provider) {
		return func(p *oidcprovider.Provider) { p.Claims = c }
	}
	body := func(path string, status int, text string) func(*oidcprovider.Provider) {
		return func(p *oidcprovider.Provider) {
			p.Answer = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != path {
					return false
				}
				w.WriteHeader(status)
				_, _ = io.WriteString(w, text)
				return true
			}
		}
	}
	const about = "/.well-known/openid-configuration"
	for name, c := range map[string]struct {
		change func(*oidcprovider.Provider)
		want   int
		text   string
	}{
		"a token that has ended":             {claims(map[string]any{"exp": time.Now().Add(-time.Second).Unix()}), 403, "one of the clocks is wrong"},
		"a token of the future":              {claims(map[string]any{"iat": time.Now().Add(day).Unix(), "exp": time.Now().Add(2 * day).Unix()}), 403, "one of the clocks is wrong"},
		"a token without an end":             {claims(map[string]any{"exp": nil}), 403, "is none"},
		"a token of another issuer":          {claims(map[string]any{"iss": "https://other.example"}), 403, "other.example"},
		"a token that is none":               {body("/token", 200, `{"id_token":"a.b"}`), 403, "is none"},
		"no token":                           {body("/token", 200, `{"access_token":"a"}`), 403, "openid"},
		"a page instead of a token":          {body("/token", 200, `<html>`), 502, "no JSON"},
		"a provider in trouble":              {body("/token", 503, `<html>`), 502, "status 503"},
		"a long error":                       {body("/token", 400, `{"error":"x","error_description":"`+strings.Repeat("y", 5000)+`"}`), 403, "yyy"},
		"an answer without an end":           {body("/token", 200, `{"id_token":"`+strings.Repeat("y", maxProvider)), 502, "no JSON"},
		"no description":                     {body(about, 404, ""), 502, "status 404"},
		"the description of another":         {body(about, 200, `{"issuer":"https://other.example"}`), 502, "other.example"},
		"addresses without TLS":              {body(about, 200, `{"issuer":"ISSUER","authorization_endpoint":"https://a/b","token_endpoint":"http://a/b"}`), 502, "token_endpoint"},
		"an address that is a script":        {body(about, 200, `{"issuer":"ISSUER","authorization_endpoint":"javascript:alert(1)","token_endpoint":"https://a/b"}`), 502, "authorization_endpoint"},
		"a description that sends elsewhere": {body(about, 302, ""), 502, "status 302"},
	} {
		t.Run(name, func(t *testing.T) {
			s, p := consoleWith(t)
			in := loginRequest{Code: code(s, p, "v", "n"), Verifier: "v", Nonce: "n", Redirect: s.URL + "/"}
			p.Change(func(p *oidcprovider.Provider) {
				c.change(p)
				if answer := p.Answer; answer != nil {
					p.Answer = func(w http.ResponseWriter, r *http.Request) bool { return answer(issuerIn{w, p.Issuer}, r) }
				}
			})
			status, _, text := postLogin(t, s, "/oidc/token", in)
			said := text
			if c.want == http.StatusBadGateway { // why is in the log alone
				said = logFor(t).String()
			}
			if status != c.want || !strings.Contains(said, c.text) || len(text) > 1000 {
				t.Errorf("%d %s, the log %s; want %d %s", status, text, logFor(t), c.want, c.text)
			}
		})
	}
}

// issuerIn writes an issuer's name for the word ISSUER.
type issuerIn struct {
	http.ResponseWriter
	issuer string
}

func (i issuerIn) Write(text []byte) (int, error) {
	return i.ResponseWriter.Write([]byte(strings.ReplaceAll(string(text), "ISSUER", i.issuer)))
}

func (i issuerIn) WriteString(text string) (int, error) { return i.Write([]byte(text)) }

// An attacker who is another site, or a client without a session, sends logins that are long or many; they must not be
// read, and must not work beside more than their bound.
func TestLoginsAreBounded(t *testing.T) {
	s, p := consoleWith(t)
	if status, text, _ := roundTrip(t, s, "POST", "/oidc/token", `{"code":"`+strings.Repeat("x", maxLogin)+`"}`, "Content-Type", "application/json"); status != http.StatusBadRequest {
		t.Errorf("a long one: %d %s", status, text)
	}
	for _, kind := range []string{"text/plain", "application/x-www-form-urlencoded", ""} {
		if status, text, _ := roundTrip(t, s, "POST", "/oidc/token", "{}", "Content-Type", kind); status != http.StatusUnsupportedMediaType {
			t.Errorf("%q: %d %s", kind, status, text)
		}
	}
	if status, _, _ := roundTrip(t, s, "POST", "/oidc/token", "{}", "Content-Type", "application/json", "Origin", "https://evil.example"); status != http.StatusForbidden {
		t.Errorf("another site: %d", status)
	}

	// Those of other addresses that wait for the provider have all places: the next one waits for its turn.
	h, _ := s.Config.Handler.(*Handler)
	working := h.provider.working
	var release func()
	for n := range maxExchanges {
		var err error
		release, err = working.acquire(t.Context(), strconv.Itoa(n))
		testenv.NoError(t, err)
	}
	answered := make(chan int)
	go func() {
		status, _, _ := postLogin(t, s, "/oidc/token", loginRequest{Code: code(s, p, "v", "n"), Verifier: "v", Nonce: "n", Redirect: s.URL + "/"})
		answered <- status
	}()
	for waits := false; !waits; runtime.Gosched() {
		working.mu.Lock()
		waits = working.byUser["127.0.0.1"] != nil
		working.mu.Unlock()
	}
	select {
	case status := <-answered:
		t.Errorf("one too many: %d", status)
	default:
	}
	release()
	testenv.Equal(t, <-answered, http.StatusOK, "with a place:")
}

// An attacker who is a client without a session asks for the provider again and again; the provider must not be asked
// each time.
func TestProviderIsAskedOnceForItself(t *testing.T) {
	s, p := consoleWith(t)
	asked := 0
	p.Change(func(p *oidcprovider.Provider) {
		p.Answer = func(http.ResponseWriter, *http.Request) bool { asked++; return false }
	})
	for range 5 {
		if status, text, _ := roundTrip(t, s, "GET", "/oidc/provider", ""); status != http.StatusOK {
			t.Fatalf("%d %s", status, text)
		}
	}
	p.Change(func(*oidcprovider.Provider) {
		testenv.True(t, asked == 1, "it was asked %d times", asked)
	})
}

// jwt is a token with claims, without a signature.
func jwt(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

func TestRefusedTokenIsExplained(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for token, want := range map[string]string{
		jwt(`{"exp":1799999999}`):                  "This token ended at 2027-01-15 07:59:59 UTC. The server's clock has 2027-01-15 08:00:00 UTC.",
		jwt(`{"exp":1800009999,"nbf":1800000100}`): "one of the clocks is wrong",
		jwt(`{"exp":1800009999,"iat":1800000100}`): "one of the clocks is wrong",
		jwt(`{"exp":1800009999}`):                  "of another cluster",
		jwt(`{"exp":"x"}`):                         "of another cluster",
		jwt(`{"exp":1e300}`):                       "of another cluster",
		jwt(`[]`):                                  "of another cluster",
		"abc":                                      "of another cluster",
		"..":                                       "of another cluster",
	} {
		testenv.Contains(t, whyRefused(token, now), want, "%s:", token)
	}
	s := consoleOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"kind":"Status","code":401,"message":"Unauthorized"}`)
	}, asServer)
	if status, text, _ := roundTrip(t, s, "GET", "/session", "", "Authorization", "Bearer "+jwt(`{"exp":1}`)); status != http.StatusUnauthorized || !strings.Contains(text, "ended at 1970-01-01") {
		t.Errorf("%d %s", status, text)
	}
}

func TestPagesOfAnotherVersionHaveAnotherName(t *testing.T) {
	s := consoleOf(t, noAPI(t))
	_, text, _ := roundTrip(t, s, "GET", "/mode", "")
	var mode struct{ Pages string }
	if err := json.Unmarshal([]byte(text), &mode); err != nil || len(mode.Pages) != 16 {
		t.Errorf("%s: %v", text, err)
	}
	h, _ := s.Config.Handler.(*Handler)
	testenv.False(t, h.pages() != mode.Pages || digest(h.o.Files) != mode.Pages, "the name changes")
}
