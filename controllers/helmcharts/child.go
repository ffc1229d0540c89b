// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/helmjob"
)

// User is who children are to the API server, and to its audit log. With its group it may do everything: charts bring roles.
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
	Logger  *slog.Logger
}

// Do is an [Engine].
func (c Children) Do(ctx context.Context, q *helmjob.Request) (*helmjob.Result, error) {
	program, err := c.Program()
	if err != nil {
		return nil, fmt.Errorf("finding the program for helm: %w", err)
	}
	door, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	defer door.close()
	kubeconfig, err := newMemoryFile(door.kubeconfig())
	if err != nil {
		return nil, err
	}
	defer kubeconfig.Close()
	q.Kubeconfig = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), kubeconfig.Fd())
	r, err := helmjob.Runner{Program: program, Env: append(passedOn(), childMemory), Log: logged{c.Logger}}.Run(ctx, q)
	if r != nil {
		r.Message = door.conceal(r.Message)
	}
	if err != nil {
		err = errors.New(door.conceal(err.Error())) // nobody asks what it wraps
	}
	return r, err
}

// passedOn is what children get of our environment: ways out, and authorities.
func passedOn() []string {
	out := []string{}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "TZ", "PATH"} {
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

// newMemoryFile makes a file without a name, which goes with this process.
func newMemoryFile(content string) (*os.File, error) {
	fd, err := unix.MemfdCreate("kubeconfig", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making a kubeconfig for helm: %w", err)
	}
	f := os.NewFile(uintptr(fd), "kubeconfig")
	if _, err := io.WriteString(f, content); err != nil {
		return nil, fmt.Errorf("writing a kubeconfig for helm: %w", errors.Join(err, f.Close()))
	}
	return f, nil
}

// door is one child's way to the API server: a port of this machine that takes requests whose path begins with a secret.
type door struct {
	secret   string
	listener net.Listener
	server   *http.Server
	serving  sync.WaitGroup // the server, and connections
}

func (c Children) open(ctx context.Context) (*door, error) {
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
	d := &door{secret: rand.Text()}
	var listen net.ListenConfig
	if d.listener, err = listen.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("opening helm's way to the API server: %w", err)
	}
	d.server = &http.Server{
		Handler: d.handler(to, transport), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew: // within Serve, which is counted itself
				d.serving.Add(1)
			case http.StateClosed, http.StateHijacked:
				d.serving.Done()
			case http.StateActive, http.StateIdle:
			}
		},
	}
	d.serving.Go(func() { _ = d.server.Serve(d.listener) }) // it ends when it is closed
	return d, nil
}

// handler passes requests on, as the child's user and no other.
func (d *door) handler(to *url.URL, transport http.RoundTripper) http.Handler {
	proxy := &httputil.ReverseProxy{
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
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secret, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		if subtle.ConstantTimeCompare([]byte(secret), []byte(d.secret)) != 1 {
			http.Error(w, "this is not for you", http.StatusForbidden)
			return
		}
		http.StripPrefix("/"+d.secret, proxy).ServeHTTP(w, r)
	})
}

func (d *door) url() string { return "http://" + d.listener.Addr().String() + "/" + d.secret }

func (d *door) kubeconfig() string {
	return `{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":"` + d.url() +
		`"}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"c"}}],"users":[{"name":"c","user":{}}]}`
}

// conceal takes the address out of a message: it means nothing to anybody, and it is a secret.
func (d *door) conceal(message string) string {
	message = strings.ReplaceAll(message, d.url(), "https://the API server")
	return strings.ReplaceAll(message, d.secret, "…")
}

// close ends all connections and waits for them.
func (d *door) close() {
	_ = d.server.Close() // an error is the listener's, which is gone then
	d.serving.Wait()
}
