// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
)

// socketLogin is the login of a tab's user while its WebSocket is open. A renewed token replaces the earlier one, so
// that streams go on. When the token expires, the WebSocket is closed, since the API itself would continue a watch or a
// shell.
type socketLogin struct {
	h     *Handler
	name  string // of the user in the API
	token atomic.Pointer[string]

	busy atomic.Bool // a token is being checked

	mu      sync.Mutex
	expires time.Time // expiry of the token; zero if it has none
}

// newSocketLogin makes the user's requests carry the newest token. On 127.0.0.1 it changes nothing: the session's token
// is not the API's, and does not expire.
func newSocketLogin(h *Handler, u *user, name string) *socketLogin {
	l := &socketLogin{h: h, name: name}
	if h.o.Mode != ModeServer {
		return l
	}
	token := u.config.BearerToken
	l.token.Store(&token)
	c, _ := claimsOf(token)
	l.expires = claimTime(c.Expires)
	u.config = rest.CopyConfig(u.config)
	u.config.BearerToken = ""
	u.config.Wrap(func(rt http.RoundTripper) http.RoundTripper { return &newestToken{rt, l} })
	return l
}

// newestToken sets the token of requests.
type newestToken struct {
	http.RoundTripper
	login *socketLogin
}

// RoundTrip implements http.RoundTripper.
func (n *newestToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+*n.login.token.Load())
	return n.RoundTripper.RoundTrip(r) //nolint:wrapcheck // as if there were no wrapper
}

func (l *socketLogin) hasExpired(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.expires.IsZero() && now.After(l.expires)
}

// renew replaces the token by a new one of the same user. A token that the API refuses, or that is another user's, ends
// the WebSocket. It returns false for a message that the console's pages do not send.
func (l *socketLogin) renew(ctx context.Context, s *socket, token string) bool {
	if l.h.o.Mode != ModeServer || !l.busy.CompareAndSwap(false, true) {
		return false // pages renew only once in minutes
	}
	u, err := l.h.userOf(nil, token)
	if err != nil || token == "" {
		return false
	}
	s.running.Go(func() {
		defer l.busy.Store(false)
		if name, err := l.h.authenticate(ctx, u); err != nil || name != l.name {
			_ = s.conn.Close() // ends the read in serve, and with it all streams
			return
		}
		c, _ := claimsOf(token)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.token.Store(&token)
		l.expires = claimTime(c.Expires)
	})
	return true
}
