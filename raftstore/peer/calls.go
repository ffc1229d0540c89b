// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	callService  = "coracle.peer.Calls"
	callMethod   = "/" + callService + "/Call"
	callOverhead = 1 << 10     // the method's name, and a header
	callWindow   = 1 << 20     // flow control; fixed, since gRPC would send pings to choose one
	callIdle     = time.Minute // an unused connection is closed after this time
	maxBackoff   = 150 * time.Millisecond
	// movedFraction divides Options.Timeout, which is five election timeouts. A call to a leader that was replaced ends
	// its connection if nothing has arrived on the connection for that fraction of Timeout, half an election timeout.
	// The voters miss a leader only after more than one election timeout.
	movedFraction = 10
	maxDoublings  = 6 // of the timeout in suspect: beyond that it is longer than silence
)

// ReconnectsWithin bounds for how long calls to a server may still fail after the link to it was repaired: until gRPC's
// next attempt to connect, they fail at once.
const ReconnectsWithin = 2 * maxBackoff

// calls makes calls to other servers and serves theirs.
type calls struct {
	*connections
	server *grpc.Server // nil without a listener

	mu      sync.Mutex
	callers map[string]*caller   // by address; nil once the transport closes
	leaving map[*caller]struct{} // no new call begins on these, but some are under way
}

// message is the content of a call. An answer has no method.
type message struct {
	method string
	body   []byte
}

// messages is gRPC's codec for message: one byte with the method's length, the method, the body.
type messages struct{}

func (messages) Name() string { return "coracle-bytes" }

func (messages) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*message)
	if !ok {
		return nil, fmt.Errorf("peer: %T is no message", v)
	}
	if len(m.method) > maxName {
		return nil, fmt.Errorf("peer: the method's name has %d bytes", len(m.method))
	}
	head := append(append(make([]byte, 0, 1+len(m.method)), byte(len(m.method))), m.method...)
	return mem.BufferSlice{mem.SliceBuffer(head), mem.SliceBuffer(m.body)}, nil
}

func (messages) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*message)
	if !ok {
		return fmt.Errorf("peer: %T is no message", v)
	}
	return m.decode(data.Materialize())
}

func (m *message) decode(b []byte) error {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return errors.New("peer: a call's message is too short")
	}
	m.method, m.body = string(b[1:1+int(b[0])]), b[1+int(b[0]):]
	return nil
}

// serveCalls starts the gRPC server that answers the calls of other servers.
func (s *calls) serveCalls() {
	s.server = grpc.NewServer(
		grpc.ForceServerCodecV2(messages{}),
		grpc.MaxRecvMsgSize(MaxCall+callOverhead),
		grpc.MaxSendMsgSize(MaxReply+callOverhead),
		grpc.InitialWindowSize(callWindow),
		grpc.InitialConnWindowSize(callWindow),
		grpc.WaitForHandlers(true),
		grpc.ConnectionTimeout(s.handshakeTime()),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: math.MaxInt64}), // none: see endAfterSilence
		// Older versions send pings.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	s.server.RegisterService(&grpc.ServiceDesc{
		ServiceName: callService,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Call", Handler: handleCall}},
	}, s)
	s.tasks.Go(func() {
		if err := s.server.Serve(s.callConns); err != nil && s.ctx.Err() == nil {
			s.opts.Logger.Error("this server no longer serves calls from other servers", "error", err)
		}
	})
}

func handleCall(server any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	s := server.(*calls)
	var m message
	if err := decode(&m); err != nil {
		return nil, err
	}
	if s.opts.Handle == nil {
		return nil, status.Errorf(codes.Unimplemented, "this server serves no calls, so it cannot serve %s", m.method)
	}
	from := ""
	if p, ok := grpcpeer.FromContext(ctx); ok {
		if a, ok := p.Addr.(remoteAddr); ok {
			from = a.id
		}
	}
	s.answerClock(ctx, from)
	body, err := s.opts.Handle(ctx, from, m.method, m.body)
	if err != nil {
		return nil, err
	}
	return &message{body: body}, nil
}

// close closes all connections for this server's calls.
func (s *calls) close() {
	s.mu.Lock()
	callers := slices.AppendSeq(slices.Collect(maps.Values(s.callers)), maps.Keys(s.leaving))
	s.callers, s.leaving = nil, nil
	s.mu.Unlock()
	for _, c := range callers {
		c.close()
	}
}

// caller is a connection for calls to one address. gRPC connects again whenever the connection broke.
type caller struct {
	address string
	client  *grpc.ClientConn
	refused atomic.Pointer[RefusedError] // the outcome of the last handshake
	peer    atomic.Pointer[peer]         // the server of the last successful handshake
	conn    atomic.Pointer[conn]         // the newest connection
	closed  atomic.Bool
	// unanswered is the begin, by connections.clock, of the first call that was given up since something last arrived.
	unanswered atomic.Int64
	// suspected is how many connections suspect has ended since a call was answered.
	suspected atomic.Int32
	// lastCompared is when clocks were last compared, by connections.clock, or 0 if they have to be.
	lastCompared atomic.Int64
	underWay     int           // number of calls; guarded by calls.mu
	failed       chan struct{} // closed and replaced when an attempt to connect fails; guarded by calls.mu
}

// ErrLeaderMoved is the cause with which a call to the leader is cancelled when there is another leader.
var ErrLeaderMoved = errors.New("another server leads the store")

func (c *caller) close() {
	c.closed.Store(true)
	_ = c.client.Close()
}

// suspectLoss is called when a call was given up. It ends the connection if nothing has arrived on it since that call
// began, or since the first of several such calls in a row, and if that was longer ago than a timeout. Packets may be
// lost without an error, and TCP may not retransmit for as long as the loss has lasted. The next call makes a new
// connection. missed says that the call was to a leader that the voters may have missed. Then it is enough that nothing
// arrived at the end of that time: calls may have begun before others were answered, or before this connection was
// made.
//
// If nothing arrives on a new connection either, no packets are lost, but the server is slow. It could never answer the
// longest calls if its connections were ended each time, so the timeout doubles each time. A loss of packets in that
// time is noticed by TCP (endAfterSilence).
func (c *caller) suspectLoss(began time.Time, missed bool) {
	k := c.conn.Load()
	if k == nil {
		return
	}
	timeout, heard, since := k.conns.opts.Timeout, max(k.lastRead.Load(), k.conns.clock(k.createdAt)), c.unanswered.Load()
	if since <= heard {
		since = k.conns.clock(began)
		c.unanswered.Store(since)
	}
	if missed {
		timeout, since = timeout/movedFraction, max(since, heard)
	} else if since <= heard {
		return
	}
	timeout <<= min(c.suspected.Load(), maxDoublings)
	if k.conns.clock(time.Now())-since >= int64(timeout) && k.abort() {
		c.suspected.Add(1)
	}
}

// Call sends a call to the server at an address and returns the answer. Errors are gRPC statuses: those of the other
// server; Unavailable if it could not be asked (then errors.As may find a *RefusedError); or Canceled and
// DeadlineExceeded from ctx. A call that fails may have been handled even so, unless it was refused.
func (s *calls) Call(ctx context.Context, address, method string, body []byte) ([]byte, error) {
	began := time.Now()
	c, err := s.beginCall(address, began)
	if err != nil {
		return nil, err
	}
	defer s.endCall(c)
	var reply message
	sent, clocks := s.compare(ctx, c)
	stop := s.watch(c, began)
	err = c.client.Invoke(sent, callMethod, &message{method: method, body: body}, &reply, clocks.options()...)
	stop()
	s.outcome(ctx, c, began, err)
	s.recordComparison(c, clocks)
	if err == nil {
		c.suspected.Store(0)
		if p := c.peer.Load(); p != nil {
			p.noteReply(address)
		}
		return reply.body, nil
	}
	if ctx.Err() != nil {
		c.suspectLoss(began, errors.Is(context.Cause(ctx), ErrLeaderMoved))
	}
	switch code := status.Code(err); {
	case c.closed.Load() && ctx.Err() == nil && code == codes.Canceled:
		return nil, status.Errorf(codes.Unavailable, "the connection to the server at %s was closed; whether it handled %s is unknown",
			address, method)
	case code == codes.Unavailable:
		if p := c.peer.Load(); p != nil {
			p.recordFailure(address)
		}
		if refused := c.refused.Load(); refused != nil {
			return nil, fmt.Errorf("call %s: %w", method, refused)
		}
	}
	return nil, err
}

// beginCall returns the connection for a new call. endCall must be called when the call ends. If the connection waits
// for TCP's next retransmission, it is left to the calls under way on it, which TCP may have delivered long ago. This
// call and later ones get a new connection.
func (s *calls) beginCall(address string, began time.Time) (*caller, error) {
	c, err := s.caller(address)
	if err != nil {
		return nil, err
	}
	if k := c.conn.Load(); k == nil || !k.backsOff(began) {
		return c, nil
	}
	s.mu.Lock()
	if s.callers[address] == c {
		delete(s.callers, address)
		s.leaving[c] = struct{}{}
	}
	s.mu.Unlock()
	s.endCall(c)
	return s.caller(address)
}

// endCall is called when a call ends. It closes a connection that beginCall has left, after the last call on it.
func (s *calls) endCall(c *caller) {
	s.mu.Lock()
	c.underWay--
	_, left := s.leaving[c]
	last := left && c.underWay == 0
	if last {
		delete(s.leaving, c)
	}
	s.mu.Unlock()
	if last {
		c.close()
	}
}

// CloseCalls closes the connections for calls to an address, so that calls under way fail at once with Unavailable. The
// next call makes a new connection. It is to be called when something else shows that the server there has ended. It
// costs little if that is wrong.
func (s *calls) CloseCalls(address string) {
	s.mu.Lock()
	found := []*caller{}
	if c := s.callers[address]; c != nil {
		found = append(found, c)
	}
	for c := range s.leaving {
		if c.address == address {
			found = append(found, c)
			delete(s.leaving, c)
		}
	}
	delete(s.callers, address)
	s.mu.Unlock()
	for _, c := range found {
		c.close()
	}
}

// caller returns the connection for calls to an address and counts a call on it.
func (s *calls) caller(address string) (*caller, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.callers == nil {
		return nil, status.Error(codes.Unavailable, "this server's connections to others are closed")
	}
	if c := s.callers[address]; c != nil {
		c.underWay++
		return c, nil
	}
	c, err := s.newCaller(address)
	if err != nil {
		return nil, err
	}
	c.underWay = 1
	s.callers[address] = c
	return c, nil
}

func (s *calls) newCaller(address string) (*caller, error) {
	c := &caller{address: address, failed: make(chan struct{})}
	client, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // Options.Dial authenticates
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.dialCalls(ctx, c) }),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(messages{}),
			grpc.MaxCallRecvMsgSize(MaxReply+callOverhead), grpc.MaxCallSendMsgSize(MaxCall+callOverhead)),
		grpc.WithInitialWindowSize(callWindow),
		grpc.WithInitialConnWindowSize(callWindow),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithNoProxy(),
		grpc.WithIdleTimeout(callIdle),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: s.handshakeTime(),
		}))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "make a connection for calls to %s: %v", address, err)
	}
	c.client = client
	return c, nil
}

func (s *calls) dialCalls(ctx context.Context, c *caller) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	nc, id, err := s.connect(ctx, c.address, hello{kind: kindCalls})
	refused, _ := errors.AsType[*RefusedError](err)
	c.refused.Store(refused)
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(c.failed)
		c.failed = make(chan struct{})
		return nil, err
	}
	p := s.peer(id)
	c.peer.Store(p)
	endAfterSilence(nc)
	k := &conn{Conn: nc, conns: s.connections, peer: p, createdAt: time.Now()}
	c.conn.Store(k)
	if !s.register(k) {
		_ = k.Close()
		return nil, net.ErrClosed
	}
	return k, nil
}
