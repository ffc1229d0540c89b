// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"crypto/tls"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestGRPCPassesThroughTLS: unary calls, errors that are trailers only, and a stream that is silent for longer than
// other requests may be.
func TestGRPCPassesThroughTLS(t *testing.T) {
	l := listen(t)
	server, service := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, service)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	f := newFixture(t, Options{IdleTimeout: standstill}, site(t, table.H2C, l.Addr().String())...)
	conn := testenv.Must(
		grpc.NewClient(f.https, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}))))(t)
	t.Cleanup(func() { _ = conn.Close() })
	c := grpc_health_v1.NewHealthClient(conn)
	ctx := context.Background()
	testenv.Equal(t, testenv.Must(c.Check(ctx, &grpc_health_v1.HealthCheckRequest{}))(t).GetStatus(), grpc_health_v1.HealthCheckResponse_SERVING, "Check:")
	if _, err := c.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "unknown"}); status.Code(err) != codes.NotFound {
		t.Errorf("Check of an unknown service: %v, want NotFound", err)
	}
	watch := testenv.Must(c.Watch(ctx, &grpc_health_v1.HealthCheckRequest{Service: "later"}))(t)
	if res, err := watch.Recv(); err != nil || res.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN {
		t.Fatalf("Watch: %v, %v", res, err)
	}
	<-time.After(2 * standstill)
	service.SetServingStatus("later", grpc_health_v1.HealthCheckResponse_SERVING)
	testenv.Equal(t, testenv.Must(watch.Recv())(t).GetStatus(), grpc_health_v1.HealthCheckResponse_SERVING, "Watch after silence:")
}

// TestGRPCOfIngresses: a call from a client with TLS, and one without it, to a backend with TLS, and to one without it.
func TestGRPCOfIngresses(t *testing.T) {
	certificate := pair(t, newAuthority(t, "some").issue("backend"))
	for _, c := range []struct {
		protocol string
		options  []grpc.ServerOption
	}{{"GRPC", nil}, {"GRPCS", []grpc.ServerOption{grpc.Creds(credentials.NewServerTLSFromCert(&certificate))}}} {
		t.Run(c.protocol, func(t *testing.T) {
			l, server := listen(t), grpc.NewServer(c.options...)
			grpc_health_v1.RegisterHealthServer(server, health.NewServer())
			go func() { _ = server.Serve(l) }()
			t.Cleanup(server.Stop)
			a := annotations{"backend-protocol": c.protocol, "proxy-send-timeout": "10", "proxy-read-timeout": "10"}
			f, _ := cluster{ingresses: []*networkingv1.Ingress{object("a/x", "nginx", a, "echo/=w")}, endpoints: map[string]string{"a/w": l.Addr().String()}}.serve(t)
			for address, with := range map[string]credentials.TransportCredentials{
				f.http: insecure.NewCredentials(), f.https: credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, ServerName: "echo"}),
			} {
				conn := testenv.Must(grpc.NewClient(address, grpc.WithTransportCredentials(with), grpc.WithAuthority("echo")))(t)
				t.Cleanup(func() { _ = conn.Close() })
				res, err := grpc_health_v1.NewHealthClient(conn).Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
				if err != nil || res.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
					t.Errorf("%s: %v, %v", with.Info().SecurityProtocol, res, err)
				}
			}
		})
	}
}
