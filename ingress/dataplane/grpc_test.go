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
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// TestGRPCPassesThroughTLS: unary calls, errors that are trailers only, and a stream that is silent for longer than other requests may be.
func TestGRPCPassesThroughTLS(t *testing.T) {
	l := listen(t)
	server, service := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, service)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	idle := time.Second
	f := newFixture(t, Options{IdleTimeout: idle}, site(t, table.H2C, l.Addr().String())...)
	conn, err := grpc.NewClient(f.https, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := grpc_health_v1.NewHealthClient(conn)
	ctx := context.Background()
	if res, err := c.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil || res.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("Check: %v, %v", res, err)
	}
	if _, err := c.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "unknown"}); status.Code(err) != codes.NotFound {
		t.Errorf("Check of an unknown service: %v, want NotFound", err)
	}
	watch, err := c.Watch(ctx, &grpc_health_v1.HealthCheckRequest{Service: "later"})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := watch.Recv(); err != nil || res.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN {
		t.Fatalf("Watch: %v, %v", res, err)
	}
	<-time.After(5 * idle)
	service.SetServingStatus("later", grpc_health_v1.HealthCheckResponse_SERVING)
	if res, err := watch.Recv(); err != nil || res.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("Watch after silence: %v, %v", res, err)
	}
}
