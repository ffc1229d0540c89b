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

// User is the user name of child processes at the API server and in its audit log. Its group has all permissions, since
// charts may contain roles.
const (
	User      = "system:coracle:helm"
	userGroup = "system:masters"
)

// childMemory is the memory limit of a child's garbage collector. An installation takes 60 to 70 MB.
const childMemory = "GOMEMLIMIT=160MiB"

// Children does each request in a child process. Its Do is an [Engine].
type Children struct {
	// Config is the term's client configuration. The store refuses writes over it after the end of the term.
	Config *rest.Config
	// Program is the path of coracle, which is also the child process, by the name helmjob.Name.
	Program string
	// Dir is a folder for sockets. Empty is for the system's folder of temporary files.
	Dir    string
	Logger *slog.Logger
}

// Do is an [Engine].
func (c Children) Do(ctx context.Context, q *helmjob.Request) (*helmjob.Result, error) {
	if c.Program == "" {
		return nil, errors.New("this server was given no program for Helm charts")
	}
	api, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	defer api.close()
	q.Socket = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), api.socket.Fd())
	return helmjob.Runner{Program: c.Program, Env: append(childEnvironment(), childMemory), Log: logged{c.Logger}}.Run(ctx, q)
}

// childEnvironment returns the environment variables that children inherit: proxies, certificate authorities, TZ and
// PATH.
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

// logged writes a child's lines to the log, for debugging. The result contains everything else.
type logged struct{ log *slog.Logger }

func (l logged) Write(p []byte) (int, error) {
	if l.log != nil && l.log.Enabled(context.Background(), slog.LevelDebug) {
		for line := range strings.Lines(string(p)) {
			l.log.Debug("helm: " + strings.TrimSpace(line))
		}
	}
	return len(p), nil
}

// apiProxy gives one child access to the API server, over a Unix socket without a name. A TCP port of this machine
// would be open to each program on it, and to pods with host ports.
type apiProxy struct {
	socket  *os.File // a descriptor of the socket's file, by which the child connects
	server  *http.Server
	serving sync.WaitGroup // counts the server and its connections
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

// close closes all connections and waits until they have ended.
func (p *apiProxy) close() {
	_, _ = p.server.Close(), p.socket.Close() // an error could only be the listener's, which is closed then
	p.serving.Wait()
}
