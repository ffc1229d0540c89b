// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// grpcOverhead is what a message may have beside the request's limit.
const grpcOverhead = 512 << 10

// ServeGRPC serves etcd's v3 API on the listener until ctx or the store ends,
// and then closes it. It has no authentication of its own: who can connect may
// do everything, so give it a unix socket that only its users can open.
func (s *Store) ServeGRPC(ctx context.Context, l net.Listener) error {
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(s.opts.MaxRequestBytes+grpcOverhead),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxConcurrentStreams(math.MaxUint32),
		grpc.UnaryInterceptor(fromHeader),
		// As etcd's: clients that ask every ten seconds whether we are still
		// there are welcome.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}),
	)
	pb.RegisterKVServer(server, &kvServer{s: s})
	pb.RegisterWatchServer(server, &watchServer{s: s})
	pb.RegisterLeaseServer(server, &leaseServer{s: s})
	pb.RegisterMaintenanceServer(server, &maintenanceServer{s: s})
	pb.RegisterClusterServer(server, &clusterServer{s: s, url: clientURL(l.Addr())})
	pb.RegisterAuthServer(server, pb.UnimplementedAuthServer{})

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
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

func clientURL(a net.Addr) string {
	if a.Network() == "unix" {
		return "unix://" + a.String()
	}
	return "http://" + a.String()
}

// kvServer is the store's KV service.
type kvServer struct {
	pb.UnimplementedKVServer
	s *Store
}

func (k *kvServer) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	return k.s.Range(ctx, r)
}

func (k *kvServer) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	return k.s.Put(ctx, r)
}

func (k *kvServer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	return k.s.DeleteRange(ctx, r)
}

func (k *kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	return k.s.Txn(ctx, r)
}

func (k *kvServer) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	return k.s.Compact(ctx, r)
}

// streamChunk is about how many bytes of keys and values one message of a
// streamed range carries.
const streamChunk = 256 << 10

// RangeStream sends a range in pieces. The last one has the header, the count
// and whether there is more.
func (k *kvServer) RangeStream(r *pb.RangeRequest, stream grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	if err := checkRangeStream(r); err != nil {
		return err
	}
	resp, err := k.s.Range(stream.Context(), r)
	if err != nil {
		return err
	}
	size, from := 0, 0
	for i, kv := range resp.Kvs {
		size += len(kv.Key) + len(kv.Value)
		if size < streamChunk || i == len(resp.Kvs)-1 {
			continue
		}
		part := &pb.RangeResponse{Kvs: resp.Kvs[from : i+1]}
		if err := stream.Send(&pb.RangeStreamResponse{RangeResponse: part}); err != nil {
			return err
		}
		size, from = 0, i+1
	}
	resp.Kvs = resp.Kvs[from:]
	return stream.Send(&pb.RangeStreamResponse{RangeResponse: resp})
}

// leaseServer is the store's Lease service.
type leaseServer struct {
	pb.UnimplementedLeaseServer
	s *Store
}

func (l *leaseServer) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return l.s.LeaseGrant(ctx, r)
}

func (l *leaseServer) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return l.s.LeaseRevoke(ctx, r)
}

func (l *leaseServer) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	return l.s.LeaseTimeToLive(ctx, r)
}

func (l *leaseServer) LeaseLeases(ctx context.Context, r *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	return l.s.LeaseLeases(ctx, r)
}

func (l *leaseServer) LeaseKeepAlive(stream grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return endOfStream(err)
		}
		resp, err := l.s.leaseRenew(stream.Context(), r.ID)
		if err != nil {
			return err
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// clusterServer is the store's Cluster service.
type clusterServer struct {
	pb.UnimplementedClusterServer
	s   *Store
	url string
}

func (c *clusterServer) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.Linearizable {
		if _, err := c.s.linearizable(ctx); err != nil {
			return nil, err
		}
	}
	resp := &pb.MemberListResponse{Header: c.s.header()}
	for _, m := range c.s.Members() {
		out := &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: []string{"raft://" + m.Address}, IsLearner: !m.Voter}
		if m.Self {
			out.ClientURLs = []string{c.url}
		}
		resp.Members = append(resp.Members, out)
	}
	return resp, nil
}

// MemberRemove takes a server out of the cluster for good.
func (c *clusterServer) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	for _, m := range c.s.Members() {
		if m.ID != r.ID {
			continue
		}
		if err := c.s.RemoveMember(ctx, m.RaftID); err != nil {
			return nil, err
		}
		list, err := c.MemberList(ctx, &pb.MemberListRequest{})
		if err != nil {
			return nil, err
		}
		return &pb.MemberRemoveResponse{Header: list.Header, Members: list.Members}, nil
	}
	return nil, rpctypes.ErrGRPCMemberNotFound
}

// MemberAdd is not needed: a server joins by itself.
func (c *clusterServer) MemberAdd(context.Context, *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	return nil, status.Error(codes.Unimplemented, "raftstore: members are not added from here: start the new server with the address of one that is there, and it joins by itself")
}

// MemberPromote is not needed: the leader sees to the votes.
func (c *clusterServer) MemberPromote(context.Context, *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	return nil, status.Error(codes.Unimplemented, "raftstore: members are not promoted from here: the leader gives votes to servers that are up to date, so that the voters are odd in number")
}

// MemberUpdate is not needed: a server tells its address when it starts.
func (c *clusterServer) MemberUpdate(context.Context, *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	return nil, status.Error(codes.Unimplemented, "raftstore: members are not updated from here: a server that starts at another address says so itself")
}

// termHeader is the metadata by which a gRPC client says what WithTerm says.
const termHeader = "coracle-term"

func fromHeader(ctx context.Context, r any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if values := metadata.ValueFromIncomingContext(ctx, termHeader); len(values) > 0 {
		term, err := strconv.ParseUint(values[0], 10, 64)
		if err != nil || term == 0 {
			return nil, status.Errorf(codes.InvalidArgument, "raftstore: %s is not a term: %q", termHeader, values[0])
		}
		ctx = WithTerm(ctx, term)
	}
	return handle(ctx, r)
}
