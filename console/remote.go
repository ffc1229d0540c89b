// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/connlimit"
)

// maxUnknown bounds the connections whose clients the API does not know yet; the oldest makes room.
const maxUnknown = 128

// RemoteOptions are those of a console for browsers on other machines.
type RemoteOptions struct {
	Listener net.Listener
	// Certificate is what the console shows to browsers; it may change.
	Certificate func() (*tls.Certificate, error)
	// API has the address and the authority of the API. Its credentials are not used: each user has their own token.
	API *rest.Config
	// OIDC, when set, is by which provider users may log in.
	OIDC *OIDC
	// Ended is Options.Ended.
	Ended  func()
	Logger *slog.Logger
}

// ServeRemote serves a console by HTTPS until ctx is done. Users log in with a token of the API, which each of their
// requests has: the console keeps none. With OIDC the console fetches that token for the page. It closes the listener.
func ServeRemote(ctx context.Context, o RemoteOptions) error {
	defer o.Listener.Close()
	if !Built() {
		return errNoPages
	}
	listener := connlimit.NewListener(o.Listener, maxUnknown)
	api := rest.AnonymousClientConfig(o.API)
	h, err := New(Options{
		Mode: ModeServer, Identified: listener.Identified, OIDC: o.OIDC, Ended: o.Ended, Logger: o.Logger,
		User: func(token string) (*rest.Config, bool) {
			c := rest.CopyConfig(api)
			c.BearerToken, c.QPS = token, -1
			return c, true // the API says whether the token is good
		},
		// A name in front of an ingress is not known here. Nothing depends on it: a page of another name has no token.
		Hosts: func(string) bool { return true },
	})
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug), // handshakes of port scanners
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return o.Certificate() },
			NextProtos:     []string{"http/1.1"}, // WebSockets need it
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(listener, "", "") }()
	select {
	case err := <-ended:
		h.Close()
		return fmt.Errorf("serving browsers: %w", err)
	case <-ctx.Done():
	}
	h.Close()
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	if server.Shutdown(stopping) != nil {
		_ = server.Close() // a request that did not end in time
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving browsers: %w", err)
	}
	return nil
}
