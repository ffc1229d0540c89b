// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestTurnsAreOnePerUser: few are at work, one of each user, and who gives up keeps nothing.
func TestTurnsAreOnePerUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newUserSlots(2, 1)
		take := func(user string) func() {
			return testenv.Must(turns.acquire(t.Context(), user))(t)
		}
		first := take("ada")
		second := make(chan func())
		go func() { second <- take("ada") }()
		synctest.Wait()
		other := take("eve")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, user := range []string{"ada", "bob"} { // whose turn it is not, and for whom there is no place
			testenv.Fails(t, testenv.Err(turns.acquire(ctx, user)), "%s has a third turn", user)
		}
		first()
		release := <-second
		release()
		other()
		testenv.False(t, len(turns.byUser) != 0 || len(turns.total) != 0, "%v and %d places are left", turns.byUser, len(turns.total))
	})
}

// TestSlowRequestsHoldUpTheirOwnUser: others edit while one user sends two requests without an end.
func TestSlowRequestsHoldUpTheirOwnUser(t *testing.T) {
	s := consoleOf(t, func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		_, _ = io.WriteString(w, `{"kind":"SelfSubjectReview","status":{"userInfo":{"username":"`+name+`"}}}`)
	}, func(o *Options) {
		o.Mode = ModeServer
		user := o.User
		o.User = func(token string) (*rest.Config, bool) {
			c, _ := user("good")
			c.BearerToken = token
			return c, true
		}
	})
	for range 2 * maxTexts {
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		testenv.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		_, err = io.WriteString(conn, "POST /edit HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer eve\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
		testenv.NoError(t, err)
	}
	h, _ := s.Config.Handler.(*Handler)
	for waits := false; !waits; runtime.Gosched() {
		h.texts.mu.Lock()
		waits = h.texts.byUser["eve"] != nil && h.texts.byUser["eve"].used == 2*maxTexts
		h.texts.mu.Unlock()
	}
	if code, text, _ := roundTrip(t, s, http.MethodPost, "/edit", "none", "Authorization", "Bearer ada", "Content-Type", "application/json"); code != http.StatusBadRequest {
		t.Errorf("another user's edit: %d %s", code, text)
	}
}

// TestShellThatDoesNotOpenEndsWithTheTab: an API that takes a connection and is silent keeps no tab, and no console.
func TestShellThatDoesNotOpenEndsWithTheTab(t *testing.T) {
	asked, silent := make(chan struct{}), make(chan struct{})
	s := consoleOf(t, func(http.ResponseWriter, *http.Request) {
		close(asked)
		<-silent
	})
	t.Cleanup(func() { close(silent) })
	conn, _ := tab(t, s, "good", nil)
	testenv.NoError(t, conn.WriteJSON(pageMessage{ID: 1, Op: "exec", Path: "/api/v1/namespaces/a/pods/b/exec", Command: []string{"sh"}}))
	<-asked
	h, _ := s.Config.Handler.(*Handler)
	h.Close() // returns
}

// TestPageThatIsTooLongIsReadInParts: some objects with a megabyte of labels hide no others.
func TestPageThatIsTooLongIsReadInParts(t *testing.T) {
	s := consoleOf(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case q.Get("watch") != "":
			<-r.Context().Done()
		case q.Get("limit") == strconv.Itoa(pageSize):
			_, _ = io.WriteString(w, `{"items":[{"metadata":{"name":"`)
			for part := strings.Repeat("x", 1<<20); ; {
				if _, err := io.WriteString(w, part); err != nil {
					return // the console reads no more
				}
			}
		default:
			_, _ = io.WriteString(w, `{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"short","uid":"1"}}]}`)
		}
	})
	conn, _ := tab(t, s, "good", nil)
	testenv.NoError(t, conn.WriteJSON(pageMessage{ID: 1, Op: "list", Path: "/api/v1/configmaps"}))
	next(t, conn, "columns")
	if rows, _ := next(t, conn, "rows")["rows"].([]any); len(rows) != 1 {
		t.Errorf("the rows are %v", rows)
	}
}

// TestConnectionsOfUsersAreIdentified: one whose token the API has taken makes no room for others any more.
func TestConnectionsOfUsersAreIdentified(t *testing.T) {
	var identified atomic.Int64
	s := consoleOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer bad" {
			w.WriteHeader(http.StatusUnauthorized)
		}
		_, _ = io.WriteString(w, `{"gitVersion":"v1"}`)
	}, func(o *Options) {
		o.Mode = ModeServer
		user := o.User
		o.User = func(token string) (*rest.Config, bool) {
			c, _ := user("good")
			c.BearerToken = token
			return c, true
		}
		o.Identified = func(string) { identified.Add(1) }
	})
	for token, want := range map[string]int64{"bad": 0, "good": 1} {
		identified.Store(0)
		_, _, _ = roundTrip(t, s, http.MethodGet, "/k8s/version", "", "Authorization", "Bearer "+token)
		testenv.Equal(t, identified.Load(), want, "%s:", token)
	}
}
