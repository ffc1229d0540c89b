// SPDX-License-Identifier: Apache-2.0

package helmcharts

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

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

// User is who children are to the API server, and to its audit log. With its group it may do everything: charts bring
// roles.
const (
	User      = "system:coracle:helm"
	userGroup = "system:masters"
)

// childMemory is what a child's collector of garbage aims at. An installation takes 60 to 70 MB.
const childMemory = "GOMEMLIMIT=160MiB"

// Children are an engine that does each request in a process of its own.
type Children struct {
	// Config is the term's: requests over it are refused by the store when the term is over.
	Config *rest.Config
	// Program finds coracle-tools. It is called for each child.
	Program func() (string, error)
	// Dir is a folder for sockets; empty means the system's for temporary files.
	Dir    string
	Logger *slog.Logger
}

// Do is an [Engine].
func (c Children) Do(ctx context.Context, q *helmjob.Request) (*helmjob.Result, error) {
	program, err := c.Program()
	if err != nil {
		return nil, fmt.Errorf("finding the program for helm: %w", err)
	}
	api, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	defer api.close()
	q.Socket = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), api.socket.Fd())
	return helmjob.Runner{Program: program, Env: append(childEnvironment(), childMemory), Log: logged{c.Logger}}.Run(ctx, q)
}

// childEnvironment is what children get of our environment: ways out, and authorities.
func childEnvironment() []string {
	out := []string{}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE",
		"SSL_CERT_DIR", "TZ", "PATH"} {
		if v, ok := os.LookupEnv(name); ok {
			out = append(out, name+"="+v)
		}
	}
	return out
}

// logged writes a child's lines to the log, for who debugs: the result says what matters.
type logged struct{ log *slog.Logger }

func (l logged) Write(p []byte) (int, error) {
	if l.log != nil && l.log.Enabled(context.Background(), slog.LevelDebug) {
		for line := range strings.Lines(string(p)) {
			l.log.Debug("helm: " + strings.TrimSpace(line))
		}
	}
	return len(p), nil
}

// apiProxy is one child's way to the API server: a Unix socket without a name. A port of this machine would be open to
// every program here, and to pods by their host ports.
type apiProxy struct {
	socket  *os.File // where the child finds the socket
	server  *http.Server
	serving sync.WaitGroup // the server, and connections
}

func (c Children) open(ctx context.Context) (*apiProxy, error) {
	config := rest.CopyConfig(c.Config)
	config.Impersonate = rest.ImpersonationConfig{UserName: User, Groups: []string{userGroup}}
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("making helm's way to the API server: %w", err)
	}
	to, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("making helm's way to the API server: %w", err)
	}
	listener, socket, err := listen(ctx, c.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening helm's way to the API server: %w", err)
	}
	p := &apiProxy{socket: socket}
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
	p.serving.Go(func() { _ = p.server.Serve(listener) }) // it ends when it is closed
	return p, nil
}

// listen makes a socket in a folder of its own, which no other user enters, and removes both: who has the file reaches
// the socket, and nothing is left on the disk when this process is killed.
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

// handler passes requests on, as the child's user and no other.
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

// close ends all connections and waits for them.
func (p *apiProxy) close() {
	_, _ = p.server.Close(), p.socket.Close() // an error is the listener's, which is gone then
	p.serving.Wait()
}
