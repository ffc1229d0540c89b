// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	upstream "k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/server"
	"k8s.io/kubernetes/pkg/kubelet/server/stats"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// analyzer is started and does nothing.
type analyzer struct {
	stats.ResourceAnalyzer
	started chan struct{}
}

func (a analyzer) Start(context.Context) { close(a.started) }

// knownByToken authenticates requests with a token, and lets them do everything.
func knownByToken() server.AuthInterface {
	authenticate := authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
		return &authenticator.Response{User: &user.DefaultInfo{Name: "scraper"}}, r.Header.Get("Authorization") != "", nil
	})
	return server.NewKubeletAuth(authenticate, attributes{}, authorizerfactory.NewAlwaysAllowAuthorizer(), nil)
}

type attributes struct{}

func (attributes) GetRequestAttributes(context.Context, user.Info, *http.Request) []authorizer.Attributes {
	return []authorizer.Attributes{authorizer.AttributesRecord{}}
}

// TestUnauthenticatedConnectionsToKubeletAreBounded: connections to the kubelet's port over which no client
// authenticates make room for one another; a client that has authenticated keeps its connection.
func TestUnauthenticatedConnectionsToKubeletAreBounded(t *testing.T) {
	const bound = 4
	files := testenv.Must(testenv.Must(testca.New(t.TempDir()))(t).Issue("node", "127.0.0.1"))(t)
	certificate := testenv.Must(tls.LoadX509KeyPair(files.Cert, files.Key))(t)
	k := &upstream.Kubelet{}
	started := make(chan struct{})
	ofKubelet := testenv.Must(kubecompat.Field[stats.ResourceAnalyzer](k, []string{"resourceAnalyzer"}))(t)
	*ofKubelet = analyzer{started: started}
	*testenv.Must(kubecompat.Field[cm.ContainerManager](k, []string{"containerManager"}))(t) = cm.NewStubContainerManager()
	s := &options.KubeletServer{KubeletConfiguration: config.KubeletConfiguration{Address: "127.0.0.1", Port: int32(testenv.Port(t)), EnableServer: true}}
	deps := &upstream.Dependencies{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}, Auth: knownByToken(), TracerProvider: noop.NewTracerProvider(),
	}
	testenv.NoError(t, serveBounded(k, s, deps, bound))
	testenv.True(t, !s.EnableServer, "upstream would serve the port, too")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	(*ofKubelet).Start(ctx)
	<-started

	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(s.Port)))
	client := func() *http.Client {
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
	get := func(c *http.Client, token string, code int) (reused bool) {
		t.Helper()
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }})
		r := testenv.Must(http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/healthz/ping", nil))(t)
		if token != "" {
			r.Header.Set("Authorization", token)
		}
		answer := testenv.Must(c.Do(r))(t)
		defer answer.Body.Close()
		_ = testenv.Must(io.ReadAll(answer.Body))(t)
		testenv.Equal(t, answer.StatusCode, code, "the response has code")
		return reused
	}
	testenv.Eventually(t, 2*time.Minute, "the port is open", func() error {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	known := client()
	get(known, "Bearer x", http.StatusOK)
	var unauthenticated []net.Conn
	for range 3 * bound {
		c := testenv.Must(net.Dial("tcp", address))(t)
		defer c.Close()
		unauthenticated = append(unauthenticated, c)
	}
	for _, c := range unauthenticated[:2*bound] {
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("the oldest unauthenticated connections are not closed: %d bytes", n)
		}
	}
	get(client(), "", http.StatusUnauthorized)
	testenv.True(t, s.EnableServer, "/configz says that the port is not served")
	testenv.True(t, get(known, "Bearer x", http.StatusOK), "the connection of a client that had authenticated was closed")
}
