// SPDX-License-Identifier: Apache-2.0

package helmjob

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
)

// memoryLimitEnv is the memory limit of a child's garbage collector. An installation takes 60 to 70 MB.
const memoryLimitEnv = "GOMEMLIMIT=160MiB"

// Environment returns the environment variables that children inherit: proxies, certificate authorities, TZ and PATH.
func Environment() []string {
	out := []string{memoryLimitEnv}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE",
		"SSL_CERT_DIR", "TZ", "PATH"} {
		if v, ok := os.LookupEnv(name); ok {
			out = append(out, name+"="+v)
		}
	}
	return out
}

// Access gives one child access to the API server, over a Unix socket without a name. A TCP port of this machine would
// be open to each program on it, and to pods with host ports. The credentials stay in this process.
type Access struct {
	socket  *os.File // a descriptor of the socket's file, by which the child connects
	server  *http.Server
	serving sync.WaitGroup // counts the server and its connections
}

// OpenAccess gives access with the credentials of config, until Close. dir is a folder for sockets; empty is for the
// system's folder of temporary files. All requests end with ctx.
func OpenAccess(ctx context.Context, dir string, config *rest.Config) (*Access, error) {
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("making helm's way to the API server: %w", err)
	}
	to, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("making helm's way to the API server: %w", err)
	}
	listener, socket, err := listen(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("opening helm's way to the API server: %w", err)
	}
	p := &Access{socket: socket}
	p.server = &http.Server{
		Handler: handler(to, transport), ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew: // within Serve, which is counted itself
				p.serving.Add(1)
			case http.StateClosed, http.StateHijacked:
				p.serving.Done()
			case http.StateActive, http.StateIdle:
			}
		},
	}
	p.serving.Go(func() { _ = p.server.Serve(listener) }) // Serve returns when the listener is closed
	return p, nil
}

// listen makes a socket in a folder of its own, which no other user can enter, and removes both. Only a process with
// the returned file can connect. Nothing stays on the disk when this process is killed.
func listen(ctx context.Context, dir string) (_ net.Listener, _ *os.File, err error) {
	if dir, err = os.MkdirTemp(dir, "helm-"); err != nil { // 0700
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "api")
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, nil, err
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("open", err), l.Close())
	}
	return l, os.NewFile(uintptr(fd), path), nil
}

// handler forwards requests with the child's user only.
func handler(to *url.URL, transport http.RoundTripper) http.Handler {
	return &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			for name := range r.Out.Header {
				if name == "Authorization" || strings.HasPrefix(name, "Impersonate-") {
					r.Out.Header.Del(name)
				}
			}
		},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
}

// Path returns the path of the socket for [Request].
func (p *Access) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), p.socket.Fd()) }

// Close closes all connections and waits until they have ended.
func (p *Access) Close() {
	_, _ = p.server.Close(), p.socket.Close() // an error could only be the listener's, which is closed then
	p.serving.Wait()
}
