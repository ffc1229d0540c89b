// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/coracle-k8s/coracle/test/memnet"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// ground is a network to test on.
type ground interface {
	// listen opens a listener at a place, a small number, and returns its
	// address, which is the same each time.
	listen(t testing.TB, place int) (net.Listener, string)
	dial(place int) func(context.Context, string) (net.Conn, error)
	timeout() time.Duration
	// patience is how long a server that has come back may take to answer.
	patience() time.Duration
}

// onBoth runs a test over TLS on the loopback interface and in memory with
// fake time, and sees to it that no goroutine is left.
func onBoth(t *testing.T, test func(t *testing.T, g ground)) {
	t.Run("tls", func(t *testing.T) {
		before := goleak.IgnoreCurrent()
		t.Run("", func(t *testing.T) { test(t, newLoopback(t)) })
		testenv.NoGoroutineLeft(t, before)
	})
	t.Run("memory", func(t *testing.T) { inMemory(t, func(t *testing.T, m memory) { test(t, m) }) })
}

func inMemory(t *testing.T, test func(t *testing.T, m memory)) {
	synctest.Test(t, func(t *testing.T) { test(t, memory{memnet.New()}) })
}

type memory struct{ *memnet.Network }

func (m memory) place(i int) string { return string(rune('a' + i)) }

func (m memory) listen(_ testing.TB, place int) (net.Listener, string) {
	return m.Host(m.place(place)).Listen(), m.place(place)
}

func (m memory) dial(place int) func(context.Context, string) (net.Conn, error) {
	return m.Host(m.place(place)).Dial
}

func (memory) timeout() time.Duration { return defaultTimeout }

func (memory) patience() time.Duration { return 10 * time.Second } // fake time

// loopback is mutual TLS with a throw-away authority.
type loopback struct {
	config    *tls.Config
	mu        sync.Mutex
	addresses map[int]string
}

func newLoopback(t testing.TB) *loopback {
	t.Helper()
	ca := testenv.Must(testca.New(t.TempDir()))(t)
	files := testenv.Must(ca.Issue("server", "127.0.0.1"))(t)
	config := testenv.Must(files.MutualTLS())(t)
	return &loopback{addresses: map[int]string{}, config: config}
}

func (l *loopback) listen(t testing.TB, place int) (net.Listener, string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	address := l.addresses[place]
	if address == "" {
		address = testenv.Address(t, "127.0.0.1:0")
	}
	listener := testenv.Must(net.Listen("tcp", address))(t)
	l.addresses[place] = listener.Addr().String()
	return tls.NewListener(listener, l.config), l.addresses[place]
}

func (l *loopback) dial(int) func(context.Context, string) (net.Conn, error) {
	d := &tls.Dialer{Config: l.config}
	return func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
}

// timeout is long: the machine of the tests may have little time for them.
func (l *loopback) timeout() time.Duration { return 20 * time.Second }

func (l *loopback) patience() time.Duration { return 2 * time.Minute }

// server is a transport with something that answers in raft's place.
type server struct {
	*Transport
	id      raft.ServerID
	address raft.ServerAddress

	mu       sync.Mutex
	respond  func(raft.RPC) // nil: friendly
	snapshot int64          // bytes of the last one
}

const cluster = "c1"

func start(t testing.TB, g ground, place int, id string, change func(*Options)) *server {
	t.Helper()
	l, address := g.listen(t, place)
	o := Options{
		Cluster: cluster, ID: id, Address: address, Listener: l, Dial: g.dial(place),
		Timeout: g.timeout(),
		Logger:  slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&o)
	}
	tr := testenv.Must(New(o))(t)
	s := &server{Transport: tr, id: raft.ServerID(id), address: raft.ServerAddress(address)}
	s.SetHeartbeatHandler(nil) // as raft does, with its own
	stop := make(chan struct{})
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			select {
			case rpc := <-s.Consumer():
				s.answer(rpc)
			case <-stop:
				return
			}
		}
	})
	t.Cleanup(func() {
		testenv.Check(t, tr.Close())
		close(stop)
		tasks.Wait()
	})
	return s
}

func (s *server) setRespond(f func(raft.RPC)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.respond = f
}

func (s *server) answer(rpc raft.RPC) {
	s.mu.Lock()
	f := s.respond
	s.mu.Unlock()
	if f == nil {
		f = s.friendly
	}
	f(rpc)
}

func (s *server) friendly(rpc raft.RPC) {
	switch m := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		last := m.PrevLogEntry
		if k := len(m.Entries); k > 0 {
			last = m.Entries[k-1].Index
		}
		rpc.Respond(&raft.AppendEntriesResponse{Term: m.Term, LastLog: last, Success: true}, nil)
	case *raft.RequestVoteRequest:
		rpc.Respond(&raft.RequestVoteResponse{Term: m.Term, Granted: true}, nil)
	case *raft.RequestPreVoteRequest:
		rpc.Respond(&raft.RequestPreVoteResponse{Term: m.Term, Granted: true}, nil)
	case *raft.TimeoutNowRequest:
		rpc.Respond(&raft.TimeoutNowResponse{}, nil)
	case *raft.InstallSnapshotRequest:
		n, err := io.Copy(io.Discard, rpc.Reader)
		s.mu.Lock()
		s.snapshot = n
		s.mu.Unlock()
		rpc.Respond(&raft.InstallSnapshotResponse{Term: m.Term, Success: err == nil}, err)
	}
}

func (s *server) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(s.id), Addr: []byte(s.address)}
}

// beat sends a heartbeat.
func (s *server) beat(to *server, term uint64) (raft.AppendEntriesResponse, error) {
	var r raft.AppendEntriesResponse
	err := s.AppendEntries(to.id, to.address, &raft.AppendEntriesRequest{RPCHeader: s.header(), Term: term}, &r)
	return r, err
}

// entries is a message with one entry.
func (s *server) entries(term, index uint64) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{
		RPCHeader: s.header(), Term: term, PrevLogEntry: index - 1, PrevLogTerm: term, LeaderCommitIndex: index - 1,
		Entries: []*raft.Log{{Index: index, Term: term, Data: []byte("data"), AppendedAt: time.Now()}},
	}
}

// confirmed returns the newest entry that the other one is known to have.
func (s *server) confirmed(other *server) uint64 {
	p := s.peer(string(other.id))
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.match
}
