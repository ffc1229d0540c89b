// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/connlimit"
)

// MaxUnknown limits the connections whose clients the API has not authenticated yet. The oldest is closed for a new
// one.
const MaxUnknown = 128

// RemoteOptions are the options of a console for browsers on other machines.
type RemoteOptions struct {
	// Listener accepts browsers' connections. Its bound should be MaxUnknown.
	Listener *connlimit.Listener
	// Certificate returns the console's certificate. It may change.
	Certificate func() (*tls.Certificate, error)
	// API holds the address and the authority of the API. Its credentials are not used, since each user has their own
	// token.
	API *rest.Config
	// OIDC, when set, is the provider by which users may log in.
	OIDC *OIDC
	// Program is the path of coracle, which is Helm in a child process.
	Program string
	// Ended has the meaning of Options.Ended.
	Ended  func()
	Logger *slog.Logger
}

// ServeRemote serves a console by HTTPS until ctx is done. Users log in with a token of the API. Each of their requests
// carries the token, and the console stores none. With OIDC the console fetches the token for the page. It closes the
// listener.
func ServeRemote(ctx context.Context, o RemoteOptions) error {
	defer o.Listener.Close()
	if !Built() {
		return errNoPages
	}
	api := rest.AnonymousClientConfig(o.API)
	h, err := New(Options{
		Mode: ModeServer, Identified: o.Listener.Identified, OIDC: o.OIDC, Program: o.Program, Ended: o.Ended, Logger: o.Logger,
		User: func(token string) (*rest.Config, bool) {
			c := rest.CopyConfig(api)
			c.BearerToken, c.QPS = token, -1
			return c, true // the API checks the token
		},
		// The name of an ingress before the console is unknown here. Every name is safe, since a page of another name
		// has no token.
		Hosts: func(string) bool { return true },
	})
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug), // errors of handshakes, such as port scanners'
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return o.Certificate() },
			NextProtos:     []string{"http/1.1"}, // WebSockets need it
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(o.Listener, "", "") }()
	select {
	case err := <-ended:
		h.Close()
		return fmt.Errorf("serving browsers: %w", err)
	case <-ctx.Done():
	}
	h.Close()
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if server.Shutdown(stopping) != nil {
		_ = server.Close() // a request that did not end in time
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving browsers: %w", err)
	}
	return nil
}
