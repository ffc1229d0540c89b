// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// listener serves a site on one socket.
type listener struct {
	proxy  *Proxy
	site   string
	secure bool
	// alternative is the offer of HTTP/3 in responses over TLS.
	alternative *alternative

	mu      sync.Mutex
	tunnels map[*tunnel]struct{}
	closed  bool           // no further tunnel may begin
	open    sync.WaitGroup // of tunnels
	mirrors sync.WaitGroup

	mirroring context.Context // of mirrored requests; done after requests and tunnels have ended

	leaving     atomic.Bool   // another process serves on the sockets: each response is its connection's last
	connections atomic.Int64  // of HTTP, without tunnels
	empty       timers.Signal // connections has become 0
}

// ErrHandedOver is the cause of a context that ends Serve because another process now serves on the same sockets.
var ErrHandedOver = errors.New("another process serves on the sockets")

// End shortens running and later drains with Options.HandoverTimeout: from now on they take Options.DrainTimeout.
func (p *Proxy) End() { p.endOnce.Do(func() { close(p.ending) }) }

// Serve serves a site on l, with TLS or without, until ctx is done or l fails. It then accepts no more connections. It
// waits for requests and tunnels at most as long as Options.DrainTimeout and closes the remaining ones. It returns nil
// when ctx ended it. It closes l. Where the cause is ErrHandedOver it waits up to Options.HandoverTimeout. Connections
// then end with their next response or after Options.KeepAlive without one, so that no request is sent on a connection
// that is being closed.
func (p *Proxy) Serve(ctx context.Context, site string, secure bool, l net.Listener) error {
	h, end := p.listener(ctx, site, secure)
	defer end()
	server := p.server(h)
	bounded := net.Listener(&limitListener{Listener: l, proxy: p, plain: !secure})
	if secure {
		bounded = &helloListener{Listener: bounded, listener: h}
	}
	done := make(chan error, 1) // so that the goroutine can end when ctx did
	go func() {
		if secure {
			done <- server.ServeTLS(bounded, "", "")
		} else {
			done <- server.Serve(bounded)
		}
	}()
	select {
	case err := <-done:
		err = fmt.Errorf("serving the site %s at %s: %w", site, l.Addr(), err)
		h.drain(ctx, server, p.options.DrainTimeout)
		return err
	case <-ctx.Done():
	}
	if !errors.Is(context.Cause(ctx), ErrHandedOver) {
		h.drain(ctx, server, p.options.DrainTimeout)
		h.logEnd(<-done)
		return nil
	}
	h.leaving.Store(true)
	_ = l.Close()
	h.logEnd(<-done) // accepted connections are counted from here on
	h.awaitIdle()
	h.drain(ctx, server, p.options.HandoverTimeout)
	return nil
}

// listener makes a listener for a socket. end cancels its mirrored requests and waits for them.
func (p *Proxy) listener(ctx context.Context, site string, secure bool) (h *listener, end func()) {
	h = &listener{proxy: p, site: site, secure: secure, tunnels: map[*tunnel]struct{}{}, empty: timers.NewSignal()}
	p.mu.Lock()
	h.alternative = objectOf(p.alternatives, site)
	p.mu.Unlock()
	var cut context.CancelFunc
	h.mirroring, cut = context.WithCancel(context.WithoutCancel(ctx))
	return h, func() {
		cut()
		h.mirrors.Wait()
	}
}

// awaitIdle waits until no connection is left, until idle connections have reached their timeout, or until the process
// is to end.
func (h *listener) awaitIdle() {
	idle := time.NewTimer(h.proxy.options.KeepAlive)
	defer idle.Stop()
	for h.connections.Load() > 0 {
		select {
		case <-h.empty:
		case <-idle.C:
			return
		case <-h.proxy.ending:
			return
		}
	}
}

// logEnd logs the error of a server that was asked to end.
func (h *listener) logEnd(err error) {
	h.proxy.options.Logger.Debug("a listener has ended", "site", h.site, "cause", err)
}

// drain waits for requests and tunnels. It closes those that take longer than longest.
func (h *listener) drain(ctx context.Context, server *http.Server, longest time.Duration) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), longest)
	defer cancel()
	if longest > h.proxy.options.DrainTimeout {
		var shortened sync.WaitGroup
		defer shortened.Wait()
		defer cancel() // before the wait
		shortened.Go(func() {
			select {
			case <-limited.Done():
				return
			case <-h.proxy.ending:
			}
			select {
			case <-limited.Done():
			case <-time.After(h.proxy.options.DrainTimeout):
				cancel()
			}
		})
	}
	if server.Shutdown(limited) != nil {
		_ = server.Close() // the remaining connections cannot be drained
	}
	stop := context.AfterFunc(limited, h.closeTunnels)
	defer stop()
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.open.Wait()
}

func (h *listener) closeTunnels() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for t := range h.tunnels {
		t.close()
	}
}

// add registers a tunnel, unless the listener has been drained.
func (h *listener) add(t *tunnel) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.tunnels[t] = struct{}{}
	h.open.Add(1)
	h.proxy.stats.Tunnels.Add(1)
	return true
}

func (h *listener) remove(t *tunnel) {
	h.mu.Lock()
	delete(h.tunnels, t)
	h.mu.Unlock()
	h.proxy.stats.Tunnels.Add(-1)
	t.released()
	h.open.Done()
}

func (p *Proxy) server(h *listener) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(h.secure)
	protocols.SetUnencryptedHTTP2(!h.secure)
	server := &http.Server{
		Handler: h, Protocols: &protocols, HTTP2: http2Config(),
		ReadHeaderTimeout: p.options.HeaderTimeout, IdleTimeout: p.options.KeepAlive, MaxHeaderBytes: maxRequestHeader,
		ErrorLog: slog.NewLogLogger(p.options.Logger.Handler(), slog.LevelDebug),
		ConnState: func(conn net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				p.stats.Connections.Add(1)
				h.connections.Add(1)
			case http.StateActive, http.StateIdle:
				if c := countedOf(conn); c != nil {
					c.setBusy(state == http.StateActive)
				}
			case http.StateClosed, http.StateHijacked:
				p.stats.Connections.Add(-1)
				if h.connections.Add(-1) == 0 {
					h.empty.Send()
				}
			}
		},
	}
	if h.secure {
		server.TLSConfig = p.tlsConfig(h.site)
	}
	return server
}

// ServeHTTP answers a request. A panic ends only that request.
func (h *listener) ServeHTTP(w http.ResponseWriter, in *http.Request) {
	h.setCommonHeaders(w.Header(), in)
	x := newExchange(h, w, in)
	defer func() {
		cause := recover()
		whole := cause == nil || x.panicked(cause)
		x.close(whole)
		x.releaseStream()
		h.proxy.stats.Requests[min(max(0, x.status/100), 5)].Add(1)
		x.stats.count(x.status, time.Since(x.began), x.timeouts.streams.Load() || x.status == http.StatusSwitchingProtocols)
		if !whole {
			panic(http.ErrAbortHandler) // so that the client sees that the response is incomplete
		}
	}()
	if x.acquire() {
		x.serve()
	}
}

// setCommonHeaders sets the headers of every response: about the connection and about HTTP/3.
func (h *listener) setCommonHeaders(to http.Header, in *http.Request) {
	if in.ProtoMajor > 2 {
		return
	}
	if h.leaving.Load() || in.Close {
		to["Connection"] = []string{"close"} // for HTTP/2, too: net/http then sends GOAWAY
	}
	if value := h.alternative.header(); h.secure && value != nil {
		to[headerAltSvc] = value
	}
}

// panicked counts a panic of the request and reports whether the client got a response. http.ErrAbortHandler is no
// failure of the proxy.
func (x *exchange) panicked(cause any) bool {
	if err, ok := cause.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
		x.proxy.stats.Panics.Add(1)
		x.proxy.options.Logger.Error("a request ended by a panic", "site", x.listener.site, "panic", cause, "stack", string(debug.Stack()))
		if x.status == 0 {
			x.answer(http.StatusInternalServerError, "the ingress proxy failed at this request")
			return true
		}
	}
	return false
}
