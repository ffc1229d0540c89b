// SPDX-License-Identifier: Apache-2.0

package content

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// testCluster is machines that reach one another over pipes, with real TLS and HTTP.
type testCluster struct {
	t        *testing.T
	ca       *x509.Certificate
	key      *ecdsa.PrivateKey
	pool     *x509.CertPool
	machines map[string]*testMachine
	servers  []string
	// line is how long one KiB takes from outside.
	line    time.Duration
	outside atomic.Int64 // bytes that came from outside
}

// testMachine is one machine: an agent, or a server if it has a tracker.
type testMachine struct {
	c        *testCluster
	name     string
	cert     *tls.Certificate
	listener pipeListener
	server   *Server
	client   *Client
	counters Counters
	store    *memoryStore
	stop     func()
	// unreachable refuses connections, stuck accepts none; apart makes only servers reach the machine.
	unreachable, stuck, apart bool
}

type pipeListener chan net.Conn

func (l pipeListener) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (l pipeListener) Close() error   { return nil }
func (l pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func newTestCluster(t *testing.T) *testCluster {
	c := &testCluster{t: t, machines: map[string]*testMachine{}, pool: x509.NewCertPool(), line: time.Millisecond}
	c.key = testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, Subject: pkix.Name{CommonName: "an authority"}}
	der := testenv.Must(x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key))(t)
	c.ca = testenv.Must(x509.ParseCertificate(der))(t)
	c.pool.AddCert(c.ca)
	return c
}

func (c *testCluster) trust(own *tls.Certificate) gossip.Trust {
	return gossip.Trust{Protocol: ALPN, Own: func() (*tls.Certificate, error) { return own, nil }, ServerCA: c.pool, ClientCA: c.pool}
}

// add adds a machine, which serves until the end.
func (c *testCluster) add(name string, isServer bool) *testMachine {
	subject := pkix.Name{CommonName: nodeUser + name, Organization: []string{"system:nodes"}}
	if isServer {
		subject = pkix.Name{CommonName: protocol.ServerName}
		c.servers = append(c.servers, name)
	}
	key := testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(c.t)
	der := testenv.Must(x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: subject,
		NotBefore: c.ca.NotBefore, NotAfter: c.ca.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}, c.ca, key.Public(), c.key))(c.t)
	m := &testMachine{c: c, name: name, cert: &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, listener: make(pipeListener),
		store: newMemoryStore()}
	o := ServerOptions{Source: func() Source { return m.store }, Counters: &m.counters}
	if isServer {
		o.Own, o.Sessions = name, c.sessions
		o.Dial = func(ctx context.Context, node string) (net.Conn, error) { return c.dial(ctx, m, node, true) }
	}
	m.server = NewServer(o)
	m.client = NewClient(ClientOptions{Node: name, Counters: &m.counters, Logger: slog.New(slog.DiscardHandler),
		Servers: func() []string { return c.servers },
		Dial:    func(ctx context.Context, node string) (net.Conn, error) { return c.dial(ctx, m, node, false) }})
	c.machines[name] = m
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = m.server.Run(ctx, m.listener) // it ends with the test
	}()
	m.stop = func() { cancel(); close(m.listener); <-ended; m.client.Close() }
	return m
}

// end stops all machines.
func (c *testCluster) end() {
	for _, m := range c.machines {
		m.stop()
	}
}

// sessions are those of all machines that are there and no servers.
func (c *testCluster) sessions() map[string]any {
	out := map[string]any{}
	for name, m := range c.machines {
		if m.server.tracker == nil {
			out[name] = m
		}
	}
	return out
}

func (c *testCluster) dial(ctx context.Context, from *testMachine, to string, through bool) (net.Conn, error) {
	m := c.machines[to]
	switch {
	case m == nil || m.unreachable || m.apart && !through:
		return nil, errors.New("connection refused")
	case m.stuck:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	here, there := net.Pipe()
	select {
	case m.listener <- tls.Server(there, c.trust(m.cert).Config()):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	t := tls.Client(here, c.trust(from.cert).Config())
	if err := t.HandshakeContext(ctx); err != nil {
		_ = here.Close()
		return nil, err
	}
	return t, nil
}

// pull does what containerd does for a layer: it opens a writer, takes what peers have put in, or asks the registry.
func (m *testMachine) pull(ctx context.Context, d digest.Digest, from []byte) error {
	w := m.store.open(d, int64(len(from)))
	defer w.close()
	if err := m.client.Fetch(ctx, d, int64(len(from)), w); err != nil {
		if !errors.Is(err, ErrOutside) {
			return err
		}
		if n := len(w.bytes()); n != 0 {
			return fmt.Errorf("%d bytes are left in the writer", n)
		}
		for rest := from; len(rest) > 0; {
			part := rest[:min(1024, len(rest))]
			time.Sleep(m.c.line) // what the line takes, in virtual time
			m.c.outside.Add(int64(len(part)))
			_, _ = w.Write(part) // never fails
			rest = rest[len(part):]
		}
	}
	if w.Digest() != d {
		return fmt.Errorf("it has %s", w.Digest())
	}
	w.commit()
	return nil
}

// memoryStore is a Source in memory, with blobs that are being received.
type memoryStore struct {
	mu     sync.Mutex
	blobs  map[digest.Digest][]byte
	active map[digest.Digest]*memoryWriter
	// announced are digests that Digests names, whether they are there or not.
	announced []digest.Digest
	// serve, if set, replaces Open.
	serve func(ctx context.Context, d digest.Digest, offset int64) (*Blob, error)
}

func newMemoryStore() *memoryStore {
	return &memoryStore{blobs: map[digest.Digest][]byte{}, active: map[digest.Digest]*memoryWriter{}}
}

// put adds a blob and returns its digest.
func (s *memoryStore) put(data []byte) digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := digest.FromBytes(data)
	s.blobs[d] = data
	return d
}

func (s *memoryStore) open(d digest.Digest, size int64) *memoryWriter {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &memoryWriter{store: s, digest: d, size: size, grown: make(chan struct{})}
	s.active[d] = w
	return w
}

func (s *memoryStore) Digests(context.Context) (all []digest.Digest, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := range s.blobs {
		all = append(all, d)
	}
	return append(all, s.announced...), nil
}

func (s *memoryStore) Open(ctx context.Context, d digest.Digest, offset int64) (*Blob, error) {
	if s.serve != nil {
		return s.serve(ctx, d, offset)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if data, ok := s.blobs[d]; ok {
		return &Blob{Size: int64(len(data)), Body: io.NopCloser(newBytesFrom(data, offset))}, nil
	}
	if w := s.active[d]; w != nil {
		return &Blob{Size: w.size, Partial: true, Body: &memoryTail{ctx: ctx, w: w, offset: int(offset)}}, nil
	}
	return nil, errdefs.ErrNotFound
}

type memoryWriter struct {
	store  *memoryStore
	digest digest.Digest
	size   int64

	mu    sync.Mutex
	data  []byte
	ended bool
	grown chan struct{} // replaced by each change
}

func (w *memoryWriter) bytes() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.data
}

func (w *memoryWriter) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	close(w.grown)
	w.grown = make(chan struct{})
}

func (w *memoryWriter) Write(p []byte) (int, error) {
	w.change(func() { w.data = append(w.data, p...) })
	return len(p), nil
}
func (w *memoryWriter) Digest() digest.Digest { return digest.FromBytes(w.bytes()) }
func (w *memoryWriter) Truncate(int64) error {
	w.change(func() { w.data = nil })
	return nil
}
func (w *memoryWriter) Status() (content.Status, error) {
	return content.Status{Offset: int64(len(w.bytes()))}, nil
}
func (w *memoryWriter) commit() { w.store.put(w.bytes()) }
func (w *memoryWriter) close() {
	w.store.mu.Lock()
	delete(w.store.active, w.digest)
	w.store.mu.Unlock()
	w.change(func() { w.ended = true })
}

// memoryTail reads a blob that is being received.
type memoryTail struct {
	ctx    context.Context
	w      *memoryWriter
	offset int
}

func (r *memoryTail) Read(p []byte) (int, error) {
	for {
		r.w.mu.Lock()
		data, ended, grown := r.w.data, r.w.ended, r.w.grown
		r.w.mu.Unlock()
		switch {
		case r.offset < len(data):
			n := copy(p, data[r.offset:])
			r.offset += n
			return n, nil
		case r.offset >= int(r.w.size):
			return 0, io.EOF
		case ended:
			return 0, io.ErrUnexpectedEOF
		}
		select {
		case <-grown:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
}
func (r *memoryTail) Close() error { return nil }

func newBytesFrom(data []byte, offset int64) io.Reader {
	return io.NewSectionReader(byteSlice(data), offset, int64(len(data)))
}

type byteSlice []byte

func (b byteSlice) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
