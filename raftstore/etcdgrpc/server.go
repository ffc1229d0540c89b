// SPDX-License-Identifier: Apache-2.0

package etcdgrpc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/fence"
)

// grpcOverhead is how many bytes a message may have beyond the limit of requests.
const grpcOverhead = 512 << 10

// Serve serves the API on the listener until ctx or the store ends, and then closes the listener.
func Serve(ctx context.Context, api *etcdapi.API, l net.Listener) error {
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(api.MaxRequestBytes()+grpcOverhead),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxConcurrentStreams(math.MaxUint32),
		grpc.ChainUnaryInterceptor(leaderIfRequired(api), fromHeader),
		grpc.StreamInterceptor(whileLeaderIfRequired(api)),
		// As in etcd, a client may send keep-alive pings every ten seconds.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}),
	)
	pb.RegisterKVServer(server, &kvServer{API: api})
	pb.RegisterWatchServer(server, &watchServer{api: api})
	pb.RegisterLeaseServer(server, &leaseServer{API: api})
	pb.RegisterMaintenanceServer(server, &maintenanceServer{api: api})
	pb.RegisterClusterServer(server, &clusterServer{api: api, url: clientURL(l.Addr())})
	pb.RegisterAuthServer(server, pb.UnimplementedAuthServer{})

	ctx, cancel := context.WithCancel(ctx)
	defer serveHealth(ctx, api, server)()
	defer cancel()
	defer context.AfterFunc(api.Closing(), cancel)()
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		server.Stop() // waits for its handlers
		close(stopped)
	})
	err := server.Serve(l)
	if !stop() {
		<-stopped
	}
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) && ctx.Err() == nil {
		return fmt.Errorf("raftstore: serve etcd's API on %s: %w", l.Addr(), err)
	}
	return nil
}

// serveHealth serves grpc.health.v1, which answers SERVING once this server has caught up. The returned function waits
// for its goroutine, which ends with ctx.
func serveHealth(ctx context.Context, api *etcdapi.API, server *grpc.Server) (wait func()) {
	checks := health.NewServer()
	first := healthpb.HealthCheckResponse_NOT_SERVING
	select {
	case <-api.Ready(): // so that the first request gets that answer, too
		first = healthpb.HealthCheckResponse_SERVING
	default:
	}
	checks.SetServingStatus("", first)
	healthpb.RegisterHealthServer(server, checks)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-api.Ready():
			checks.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
			<-ctx.Done()
		case <-ctx.Done():
		}
		checks.Shutdown()
	}()
	return func() { <-done }
}

func clientURL(a net.Addr) string {
	if a.Network() == "unix" {
		return "unix://" + a.String()
	}
	return "http://" + a.String()
}

// termHeader is the metadata by which a client sets the term of fence.WithTerm.
const termHeader = "coracle-term"

func fromHeader(ctx context.Context, r any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if values := metadata.ValueFromIncomingContext(ctx, termHeader); len(values) > 0 {
		term, err := strconv.ParseUint(values[0], 10, 64)
		if err != nil || term == 0 {
			return nil, status.Errorf(codes.InvalidArgument, "raftstore: %s is not a term: %q", termHeader, values[0])
		}
		ctx = fence.WithTerm(ctx, term)
	}
	return handle(ctx, r)
}
