// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	upstream "k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/server"
	"k8s.io/kubernetes/pkg/kubelet/server/stats"

	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// identifying is upstream's authentication. It informs the listener of connections with an authenticated request.
type identifying struct {
	server.AuthInterface
	listener *connlimit.Listener
}

// AuthenticateRequest implements authenticator.Request.
func (i identifying) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	answer, ok, err := i.AuthInterface.AuthenticateRequest(r)
	if ok && err == nil {
		i.listener.Identified(r.RemoteAddr)
	}
	return answer, ok, err
}

// serving is the kubelet's resource analyzer. The kubelet starts it when the kubelet is complete, and then its port is
// served.
type serving struct {
	stats.ResourceAnalyzer
	serve func(context.Context)
}

// Start implements stats.ResourceAnalyzer.
func (s serving) Start(ctx context.Context) {
	s.ResourceAnalyzer.Start(ctx)
	go s.serve(ctx)
}

// serveBounded makes a kubelet that is not running yet serve its port with at most bound unauthenticated connections,
// and close connections that send no request. Upstream's own function makes its listener itself, without a limit. After
// an error the kubelet is unchanged.
func serveBounded(k *upstream.Kubelet, s *options.KubeletServer, deps *upstream.Dependencies, bound int) error {
	if !s.EnableServer {
		return nil
	}
	analyzer, err := kubecompat.Field[stats.ResourceAnalyzer](k, []string{"resourceAnalyzer"})
	if err != nil {
		return err
	}
	manager, err := kubecompat.Field[cm.ContainerManager](k, []string{"containerManager"})
	if err != nil {
		return err
	}
	s.EnableServer = false // upstream checks this when the kubelet has been made, before it starts its server
	*analyzer = serving{*analyzer, func(ctx context.Context) {
		s.EnableServer = true // for /configz; upstream has checked it
		at, table := net.JoinHostPort(s.Address, strconv.Itoa(int(s.Port))), &connlimit.Table{Max: bound}
		tcp, err := connlimit.Listen(ctx, "kubelet", "tcp", at, table)
		if err == nil {
			defer context.AfterFunc(ctx, func() { _ = tcp.Close() })()
			l := tcp.Bounded(nil)
			checkers := (*manager).GetHealthCheckers()
			handler := server.NewServer(ctx, k, *analyzer, checkers, deps.Flagz, identifying{deps.Auth, l}, &s.KubeletConfiguration)
			handler.InstallTracingFilter(deps.TracerProvider)
			const longest = 4 * time.Hour // these limits are upstream's; ReadHeaderTimeout is the API server's
			err = (&http.Server{
				Handler: &handler, TLSConfig: deps.TLSConfig, MaxHeaderBytes: 1 << 20, IdleTimeout: 90 * time.Second,
				ReadHeaderTimeout: 32 * time.Second, ReadTimeout: longest, WriteTimeout: longest,
				ErrorLog: slog.NewLogLogger(logr.ToSlogHandler(klog.FromContext(ctx)), slog.LevelDebug), // handshakes that do not finish
			}).ServeTLS(l, "", "")
		}
		if ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Failed to listen and serve")
			os.Exit(1) // as upstream's does
		}
	}}
	return nil
}
