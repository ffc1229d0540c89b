// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// contextTimeout is how long a request waits for the login program and the first answer of a context.
const contextTimeout = 20 * time.Second

// Context is a context of a kubeconfig.
type Context struct {
	// Config holds the credentials, which are the user's own.
	Config    *rest.Config
	Namespace string
}

// Contexts are the contexts of a kubeconfig. Those of others than Current are opened when a tab first asks for them.
type Contexts struct {
	Names []string // sorted, without an empty one
	// Current is the context that is shown first. Its credentials were checked by the caller.
	Current string
	// Open reads a context. It runs no login program and asks no cluster.
	Open func(name string) (Context, error)
	// Check asks the cluster of a context once, which runs its login program. It returns an error when no request may
	// be made with the context. It may take as long as the login program does.
	Check func(name string, c Context) error
}

// notReady is the error of a context that cannot be used now. The session is good, and other contexts go on.
type notReady struct{ error }

// openContext is a context for which a tab has asked.
type openContext struct {
	name    string
	handler *Handler
	config  *rest.Config
	check   func() error
	timeout time.Duration

	mu    sync.Mutex
	ready bool
	// running is closed when the check that runs has ended. It is nil when none runs.
	running chan struct{}
	err     error // of the last check
}

// await returns once the context can be used. One check runs at a time, however many requests wait for it: a login
// program cannot be cancelled. After a check that failed, the next request begins another one.
func (c *openContext) await(ctx context.Context) error {
	c.mu.Lock()
	if c.ready {
		c.mu.Unlock()
		return nil
	}
	if c.running == nil {
		c.running = make(chan struct{})
		go func() { // ends with the login program, or with the process
			err := c.check()
			c.mu.Lock()
			defer c.mu.Unlock()
			c.ready, c.err = err == nil, err
			close(c.running)
			c.running = nil
		}()
	}
	running := c.running
	c.mu.Unlock()
	patience := time.NewTimer(c.timeout)
	defer patience.Stop()
	select {
	case <-running:
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.err != nil && !c.ready {
			return notReady{c.err}
		}
		return nil
	case <-patience.C:
		program := "its cluster"
		if p := c.config.ExecProvider; p != nil {
			program = "its login program " + p.Command
		}
		return notReady{fmt.Errorf("context %s is not ready after %s: %s has not answered. Try again, or use another context",
			c.name, c.timeout, program)}
	case <-ctx.Done():
		return notReady{fmt.Errorf("waiting for context %s: %w", c.name, context.Cause(ctx))}
	}
}

// contextAddress returns the part of an address that stands for a context. Browsers take "." and ".." away even when
// they are escaped, so these have "~" before them, and so has a name that begins with it.
func contextAddress(name string) string {
	if name == "." || name == ".." || strings.HasPrefix(name, "~") {
		name = "~" + name
	}
	return url.PathEscape(name)
}

// contextOf returns the name of the context in an address, and the rest of the address, which begins with a slash.
// found is false for an address without one.
func contextOf(u *url.URL) (name, rest string, found bool) {
	after, found := strings.CutPrefix(u.EscapedPath(), "/c/")
	if !found {
		return "", "", false
	}
	part, _, found := strings.Cut(after, "/")
	if !found {
		return "", "", false
	}
	rest = after[len(part):]
	name, err := url.PathUnescape(part)
	return strings.TrimPrefix(name, "~"), rest, err == nil
}

// open returns a context. It makes its handler when this is the first request for it.
func (l *Loopback) open(name string) (*openContext, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.opened[name]; c != nil {
		return c, nil
	}
	if !l.names[name] {
		return nil, fmt.Errorf("the kubeconfig has no context %q: it was read when coracle console was started", name)
	}
	if l.closed {
		return nil, errors.New("the console ends")
	}
	k, err := l.o.Contexts.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading context %s of the kubeconfig: %w", name, err)
	}
	c := &openContext{name: name, config: k.Config, ready: name == l.o.Contexts.Current, timeout: contextTimeout}
	c.check = func() error { return l.o.Contexts.Check(name, k) }
	user := func(token string) (*rest.Config, bool) { return k.Config, l.knows(token) }
	c.handler, err = New(Options{
		Mode: ModeLoopback, User: user, Ready: c.await, Hosts: loopbackName, Context: name, Namespace: k.Namespace, Contexts: len(l.names),
		ReadOnly: l.o.ReadOnly, Program: l.o.Program, Files: l.o.files, forwards: &l.forwards,
	})
	if err != nil {
		return nil, err
	}
	l.opened[name] = c
	return c, nil
}

// ServeHTTP serves each context below /c/NAME/, and the current one at other addresses too. A client without the
// session's token gets the pages and the login only, and does not learn which contexts there are.
func (l *Loopback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !l.front.guard(w, r) {
		return
	}
	name, rest, found := contextOf(r.URL)
	switch {
	case found && (path.Clean(rest) != strings.TrimSuffix(rest, "/") && rest != "/" || strings.Contains(rest, "%2e")):
		// The address that it would be cleaned to could be another context's.
		answerError(w, http.StatusBadRequest, "the console has no such address")
		return
	case found:
		u := *r.URL
		u.RawPath = rest
		var err error
		if u.Path, err = url.PathUnescape(rest); err != nil {
			answerError(w, http.StatusBadRequest, "the console has no such address")
			return
		}
		r = r.WithContext(r.Context()) // a copy
		r.URL = &u
	case r.URL.Path == "/":
		w.Header().Set("Location", "/c/"+contextAddress(l.o.Contexts.Current)+"/") // browsers keep what is behind "#"
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	default:
		name = l.o.Contexts.Current
	}
	if !l.knows(tokenOf(r)) {
		l.front.ServeHTTP(w, r)
		return
	}
	if r.URL.Path == "/contexts" && r.Method == http.MethodGet {
		l.listContexts(w, name)
		return
	}
	c, err := l.open(name)
	if err != nil {
		answerError(w, http.StatusNotFound, err.Error())
		return
	}
	c.handler.ServeHTTP(w, r)
}

// listContexts answers with the names of the contexts and their addresses. It names no server and no user.
func (l *Loopback) listContexts(w http.ResponseWriter, current string) {
	type entry struct {
		Name    string `json:"name"`
		Address string `json:"address"` // one part of an address, below /c/
	}
	out := make([]entry, 0, len(l.o.Contexts.Names))
	for _, name := range l.o.Contexts.Names {
		out = append(out, entry{name, contextAddress(name)})
	}
	answerJSON(w, map[string]any{"current": current, "contexts": out})
}

func (l *Loopback) handlers() []*Handler {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := []*Handler{l.front}
	for _, c := range l.opened {
		out = append(out, c.handler)
	}
	return out
}

// unused returns the time since the last request to any context.
func (l *Loopback) unused() time.Duration {
	least := l.front.Unused()
	for _, h := range l.handlers() {
		least = min(least, h.Unused())
	}
	return least
}

// closeAll ends all contexts. None can be opened afterwards.
func (l *Loopback) closeAll() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	for _, h := range l.handlers() {
		h.Close()
	}
}
