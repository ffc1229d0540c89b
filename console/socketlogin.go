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

// socketLogin is who a tab's user is while its WebSocket lives. A renewed token takes the earlier one's place, so that
// streams go on. A token that ends ends the WebSocket: the API itself would go on with a watch or a shell.
type socketLogin struct {
	h     *Handler
	name  string // of the user, as the API has it
	token atomic.Pointer[string]

	busy atomic.Bool // a token is being looked at

	mu   sync.Mutex
	ends time.Time // of the token; zero when it does not say
}

// newSocketLogin makes the user's requests carry whichever token is the newest. On 127.0.0.1 nothing changes: the
// session's token is not the API's, and has no end.
func newSocketLogin(h *Handler, u *user, name string) *socketLogin {
	l := &socketLogin{h: h, name: name}
	if h.o.Mode != ModeServer {
		return l
	}
	token := u.config.BearerToken
	l.token.Store(&token)
	c, _ := claimsOf(token)
	l.ends = moment(c.Expires)
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
	return n.RoundTripper.RoundTrip(r) //nolint:wrapcheck // as if there was nothing in between
}

// ended says whether the token has.
func (l *socketLogin) ended(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.ends.IsZero() && now.After(l.ends)
}

// renew takes a new token of the same user. One that the API refuses, or that is another user's, ends the WebSocket. It
// returns false when no page of ours would send this.
func (l *socketLogin) renew(ctx context.Context, s *socket, token string) bool {
	if l.h.o.Mode != ModeServer || !l.busy.CompareAndSwap(false, true) {
		return false // pages renew once in minutes
	}
	u, err := l.h.userOf(nil, token)
	if err != nil || token == "" {
		return false
	}
	s.running.Go(func() {
		defer l.busy.Store(false)
		if name, err := l.h.authenticate(ctx, u); err != nil || name != l.name {
			_ = s.conn.Close() // ends the reading, and with it all streams
			return
		}
		c, _ := claimsOf(token)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.token.Store(&token)
		l.ends = moment(c.Expires)
	})
	return true
}
