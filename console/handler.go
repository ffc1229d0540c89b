// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/version"
)

// Modes of a console.
const (
	// ModeLoopback is a console of one user, on 127.0.0.1.
	ModeLoopback = "loopback"
	// ModeServer is a console of all users, on a server.
	ModeServer = "server"
)

const (
	// maxBody limits a request, in bytes: etcd's objects have 1.5 MB at most, and an edit has two texts.
	maxBody = 3 << 20
	// maxSockets limits the open WebSockets of all tabs. userSockets limits those of one user.
	maxSockets, userSockets = 256, 32
	// maxTexts limits how many texts are parsed and compared at once: a large one takes seconds of a processor.
	maxTexts = 2
	// maxReads limits how many requests that may read much data run at once.
	maxReads = 8
)

// Options are the options of a console.
type Options struct {
	Mode string
	// Login exchanges a login code for a token of this console. It is nil when the tokens are the API's own.
	Login func(code string) (token string, err error)
	// User returns the credentials for a token. It returns false for an unknown token.
	User func(token string) (*rest.Config, bool)
	// Hosts reports whether a name in the Host header is this console's. A page of another name whose address was
	// changed to the console's (DNS rebinding) is thus refused.
	Hosts func(name string) bool
	// Context and Namespace are the names in the kubeconfig. They may be empty.
	Context, Namespace string
	// Contexts is the number of contexts among which the user can choose.
	Contexts int
	// Ready, when set, waits until the user's credentials can be used. It returns an error when they cannot be.
	Ready func(context.Context) error
	// ReadOnly refuses every request that changes something, even when the user has the permission.
	ReadOnly bool
	// Identified, when set, is called with the remote address of a connection once the API has accepted its token.
	Identified func(remote string)
	// Ended, when set, is called after work that leaves much garbage in memory: a list of several pages is complete, or
	// the last tab has disconnected.
	Ended func()
	// OIDC, when set, is the provider by which users of a server's console may log in.
	OIDC *OIDC
	// Program is the path of coracle, which is Helm in a child process. Without it no release can be changed.
	Program string
	Logger  *slog.Logger
	// Files are the pages. If nil, they are the embedded ones.
	Files fs.FS

	pingEvery    time.Duration // pingEvery, except in tests
	applyTimeout time.Duration // the constant applyTimeout, except in tests
	// healthTimeout is the constant of this name, except in tests.
	healthTimeout time.Duration
	forwards      *forwards // those of all contexts of a console, if there are several
}

// Handler serves a console.
type Handler struct {
	o       Options
	mux     *http.ServeMux
	sockets *socketLimit
	texts   *userSlots    // for work that parses, compares or writes YAML
	reads   *userSlots    // for requests that may read much data
	used    atomic.Int64  // when the console was last used, in Unix seconds
	pages   func() string // returns the digest of the pages
	// provider logs users in by OIDC. It is nil without OIDC.
	provider *provider

	searches  *userSlots
	healths   *userSlots    // for checks of what is wrong
	unpacking chan struct{} // capacity: the number of releases that may be unpacked at once
	forwards  *forwards
	changes   *userSlots   // for child processes that change releases of Helm
	changing  atomic.Int64 // the number of these

	closing chan struct{} // closed by Close
	close   func()
	open    sync.WaitGroup // counts the WebSockets, the forwards and the changes of releases
}

// New makes a console.
func New(o Options) (*Handler, error) {
	if o.Files == nil {
		files, err := fs.Sub(built, "files")
		if err != nil {
			return nil, fmt.Errorf("finding the console's pages: %w", err)
		}
		o.Files = files
	}
	if o.Ended == nil {
		o.Ended = func() {}
	}
	o.pingEvery, o.applyTimeout = cmp.Or(o.pingEvery, pingEvery), cmp.Or(o.applyTimeout, applyTimeout)
	o.healthTimeout = cmp.Or(o.healthTimeout, healthTimeout)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	h := &Handler{
		o: o, mux: http.NewServeMux(), closing: make(chan struct{}), sockets: newSocketLimit(),
		texts: newUserSlots(maxTexts, 1), reads: newUserSlots(maxReads, 2),
	}
	h.forwards = cmp.Or(o.forwards, &forwards{})
	h.changes = newUserSlots(maxChanges, 1)
	h.searches, h.healths, h.unpacking = newUserSlots(maxSearches, 1), newUserSlots(maxHealths, 1), make(chan struct{}, maxTexts)
	h.pages = sync.OnceValue(func() string { return digest(o.Files) })
	h.close = sync.OnceFunc(func() { close(h.closing) })
	h.used.Store(time.Now().Unix())
	h.mux.HandleFunc("/", h.serveFile)
	h.mux.HandleFunc("GET /mode", h.mode)
	if o.Login != nil {
		h.mux.HandleFunc("POST /login", h.login)
	}
	if o.OIDC != nil {
		h.provider = newProvider(*o.OIDC, o.Logger)
		h.provider.register(h.mux)
	}
	h.mux.HandleFunc("GET /session", h.answer(h.session))
	h.mux.HandleFunc("GET /object", h.withSlot(h.reads, h.object))
	h.mux.HandleFunc("GET /schedule", h.withSlot(h.reads, h.schedule))
	h.mux.HandleFunc("GET /usedby", h.withSlot(h.reads, h.usedBy))
	h.mux.HandleFunc("GET /usage", h.withSlot(h.reads, h.usage))
	h.mux.HandleFunc("GET /helm", h.withSlot(h.reads, h.releases))
	h.mux.HandleFunc("GET /helm/release", h.withSlot(h.reads, h.release))
	h.mux.HandleFunc("POST /health", h.withSlot(h.healths, h.health))
	h.mux.HandleFunc("GET /helm/change", h.withSlot(h.texts, h.previewChange))
	h.mux.HandleFunc("POST /helm/change", h.answer(h.changeRelease))
	h.mux.HandleFunc("POST /apply", h.withSlot(h.texts, h.apply))
	h.mux.HandleFunc("POST /edit", h.withSlot(h.texts, h.edit))
	h.mux.HandleFunc("GET /rollout", h.withSlot(h.texts, h.rollout))
	h.mux.HandleFunc("POST /rollout/undo", h.withSlot(h.texts, h.undo))
	h.mux.HandleFunc("POST /forward", h.answer(h.openForward))
	h.mux.HandleFunc("GET /forwards", h.answer(h.listForwards))
	h.mux.HandleFunc("DELETE /forward/{id}", h.answer(h.closeForward))
	h.mux.HandleFunc("/k8s/", h.withUser(h.passThrough))
	h.mux.HandleFunc("GET /ws", h.socket)
	return h, nil
}

// Close ends all WebSockets, forwards and child processes. It returns when they have ended.
func (h *Handler) Close() {
	h.close()
	h.forwards.close()
	h.open.Wait()
}

// Unused returns the time since the last request. It is 0 while a tab is open, or a release of Helm is being changed.
func (h *Handler) Unused() time.Duration {
	if h.sockets.hasSockets() || h.changing.Load() > 0 {
		return 0
	}
	return time.Since(time.Unix(h.used.Load(), 0))
}

// policy is the content security policy. It permits only files of the console itself, and nothing inline.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; font-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.guard(w, r) {
		h.mux.ServeHTTP(w, r)
	}
}

// guard sets the headers that every answer has. It answers a request that another site's page has made, and returns
// false.
func (h *Handler) guard(w http.ResponseWriter, r *http.Request) bool {
	header := w.Header()
	header.Set("Content-Security-Policy", policy)
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cache-Control", "no-store")
	if message := h.refuseForeign(r); message != "" {
		answerError(w, http.StatusForbidden, message)
		return false
	}
	return true
}

// readOnly is the error of a read-only console.
const readOnly = "this console only shows: it was started with --read-only"

// refuseForeign returns the reason for refusing a request. It returns "" for requests from a page of this console, and
// for a user's opening of such a page.
func (h *Handler) refuseForeign(r *http.Request) string {
	// The name and not the port is compared, since `ssh -L` may use another port.
	if !h.o.Hosts(hostname(r.Host)) {
		return fmt.Sprintf("this console is not called %q", hostname(r.Host))
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || u.Host != r.Host {
			return "requests of other sites are refused"
		}
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin":
	case "none": // typed, or opened from another program
		if r.Method != http.MethodGet {
			return "requests of other sites are refused"
		}
	default: // a link on another site may open the page itself, which changes nothing by itself
		if r.Method != http.MethodGet || r.Header.Get("Sec-Fetch-Dest") != "document" {
			return "requests of other sites are refused"
		}
	}
	return ""
}

// hostname returns the name or address in a Host header.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}

type user struct {
	config *rest.Config
	// identified, when set, is called once the API has accepted the user's token.
	identified func()
}

// withUser calls f with a request's user. It refuses a request without credentials, which is not sent to the API.
func (h *Handler) withUser(f func(w http.ResponseWriter, r *http.Request, u *user)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !found || token == "" {
			answerError(w, http.StatusUnauthorized, "log in first")
			return
		}
		u, err := h.userOf(r, token)
		if err != nil {
			refuseUser(w, err)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		f(w, r, u)
	}
}

// refuseUser answers that there is no user. A session whose context is not ready goes on.
func refuseUser(w http.ResponseWriter, err error) {
	if _, waiting := errors.AsType[notReady](err); waiting {
		answerError(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	answerError(w, http.StatusUnauthorized, err.Error())
}

// tokenOf returns the token of a request or of a WebSocket; "" if it has none.
func tokenOf(r *http.Request) string {
	if token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); found {
		return token
	}
	for _, p := range websocket.Subprotocols(r) {
		if coded, found := strings.CutPrefix(p, tokenProtocol); found {
			if text, err := base64.RawURLEncoding.DecodeString(coded); err == nil {
				return string(text)
			}
		}
	}
	return ""
}

// userOf returns the user of a token. r is the request with the token; it may be nil.
func (h *Handler) userOf(r *http.Request, token string) (*user, error) {
	config, known := h.o.User(token)
	if !known || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return nil, errors.New("this session has ended: open the console again")
	}
	h.used.Store(time.Now().Unix())
	if r != nil && h.o.Ready != nil {
		if err := h.o.Ready(r.Context()); err != nil {
			return nil, err
		}
	}
	u := &user{config: config}
	if r != nil && h.o.Identified != nil {
		remote := r.RemoteAddr // a tab keeps only the address, and not the request
		u.identified = sync.OnceFunc(func() { h.o.Identified(remote) })
	}
	return u, nil
}

// authenticate returns the user's name in the API. Expensive work is done only for authenticated users.
func (h *Handler) authenticate(ctx context.Context, u *user) (name string, err error) {
	if h.o.Mode != ModeServer {
		return "", nil // a client with the session's token has the kubeconfig's credentials
	}
	review, err := u.whoAmI(ctx)
	if err != nil {
		return "", err
	}
	return review.Status.UserInfo.Username, nil
}

// answer calls f with a request's user, and writes its result as JSON.
func (h *Handler) answer(f func(r *http.Request, u *user) (any, error)) http.HandlerFunc {
	return h.withUser(func(w http.ResponseWriter, r *http.Request, u *user) { respond(w, r, u, f) })
}

func respond(w http.ResponseWriter, r *http.Request, u *user, f func(r *http.Request, u *user) (any, error)) {
	out, err := f(r, u)
	if err != nil {
		refuseError(w, err)
		return
	}
	answerJSON(w, out)
}

// withSlot is answer for requests that need more than one request to the API. It serves only authenticated users, and
// few requests at once.
func (h *Handler) withSlot(t *userSlots, f func(r *http.Request, u *user) (any, error)) http.HandlerFunc {
	return h.withUser(func(w http.ResponseWriter, r *http.Request, u *user) {
		name, err := h.authenticate(r.Context(), u)
		if err != nil {
			refuseError(w, err)
			return
		}
		// A client that sends a request slowly delays only its own requests.
		var body []byte
		release, err := t.acquire(r.Context(), name, func() (err error) {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(writeTimeout)) // a request in a test has none
			body, err = io.ReadAll(r.Body)
			_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
			return err //nolint:wrapcheck // bodyError explains it
		})
		if err != nil {
			refuseError(w, bodyError(err))
			return
		}
		defer release()
		r.Body = io.NopCloser(bytes.NewReader(body))
		respond(w, r, u, f)
	})
}

func (h *Handler) mode(w http.ResponseWriter, _ *http.Request) {
	out := map[string]string{"mode": h.o.Mode, "version": version.Get().Coracle, "pages": h.pages()}
	if h.o.OIDC != nil {
		out["issuer"] = h.o.OIDC.Issuer
	}
	answerJSON(w, out)
}

// login exchanges a code for a token. It checks the content type, since a form of another site cannot send this one.
func (h *Handler) login(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Content-Type") != "application/json" {
		answerError(w, http.StatusUnsupportedMediaType, "a login is JSON")
		return
	}
	var in struct{ Code string }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&in); err != nil {
		answerError(w, http.StatusBadRequest, "a login is JSON with a code")
		return
	}
	token, err := h.o.Login(in.Code)
	if err != nil {
		answerError(w, http.StatusForbidden, err.Error())
		return
	}
	answerJSON(w, map[string]string{"token": token})
}

func answerJSON(w http.ResponseWriter, v any) {
	respondWith(w, http.StatusOK, v)
}

func respondWith(w http.ResponseWriter, code int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		answerError(w, http.StatusInternalServerError, "the answer cannot be written: "+err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// A browser that does not read holds its turn no longer than this. A writer in a test has no deadline.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.WriteHeader(code)
	if _, err := w.Write(text); err == nil { // otherwise the browser has disconnected
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	}
}

func answerError(w http.ResponseWriter, code int, message string) {
	text, _ := json.Marshal(map[string]string{"message": message}) //nolint:errchkjson // a map of strings
	w.Header().Set("Content-Type", "application/json")
	w.Header().Del("Content-Encoding")
	w.WriteHeader(code)
	_, _ = w.Write(text)
}

// requestError is an error with the HTTP status and the JSON of its response.
type requestError struct {
	code     int
	response map[string]any
}

func (e *requestError) Error() string { return fmt.Sprint(e.response["message"]) }

func newRequestError(code int, format string, args ...any) error {
	return &requestError{code, map[string]any{"message": fmt.Sprintf(format, args...)}}
}

// decode reads a request's JSON into v.
func decode(r *http.Request, v any) error {
	if err := json.NewDecoder(r.Body).Decode(v); err != nil {
		return bodyError(err)
	}
	return nil
}

// bodyError returns the error for a request that could not be read.
func bodyError(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return newRequestError(http.StatusRequestEntityTooLarge, "this is longer than %d MB", maxBody>>20)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.Canceled):
		return newRequestError(http.StatusBadRequest, "the request ended early")
	}
	return newRequestError(http.StatusBadRequest, "the request is not as the console's pages send it: %s", err)
}
