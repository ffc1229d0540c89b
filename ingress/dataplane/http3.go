// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// quicWindow is how many bytes of a request's body may wait for the backend. quicConnectionWindow is the same for
	// all bodies of a connection.
	quicWindow, quicConnectionWindow = 256 << 10, 1 << 20
	// quicFraction divides Options.MaxConnections: HTTP/3 may have an eighth of them, since an idle connection takes
	// twice the memory of a websocket over TLS. Clients whose connection is refused use TCP.
	quicFraction = 8
	// quicStreams is how many requests a connection may have at a time. fewStreams is how many while there are many
	// connections. A client's stream takes 9 KB before its header has been received, and quic-go has no time-out for
	// that.
	quicStreams, fewStreams = 100, 16
	// freeConnections is how many connections of one source get quicStreams. Over all sources, four times as many do.
	freeConnections = 16
	// freeHandshakes is how many handshakes may be under way before other clients have to prove their address (Retry,
	// RFC 9000, 8.1.2).
	freeHandshakes = 64
	// quicHeld is how many bytes a client must have sent on a connection before shedQUIC regards its memory.
	quicHeld = 64 << 10
	// handshakeTime is how long a process that ends without a successor waits for handshakes. It still receives new
	// ones then.
	handshakeTime = 2 * time.Second
	// alternativeAge is the number of seconds for which clients remember that the site is served over HTTP/3.
	alternativeAge = "3600"
)

const headerAltSvc = "Alt-Svc"

// alternative is the offer of HTTP/3 in a site's responses over TLS (Alt-Svc, RFC 7838).
type alternative struct {
	value   atomic.Pointer[[]string] // the header; nil while the table has no port for it
	sockets atomic.Int64             // the number that serve HTTP/3 now
}

// header returns the value of the header. It returns nil for none.
func (a *alternative) header() []string {
	if v := a.value.Load(); v != nil && a.sockets.Load() > 0 {
		return *v
	}
	return nil
}

func (p *Proxy) applyHTTP3(key string, value json.RawMessage, present bool) error {
	site, ok := table.HTTP3SiteOf(key)
	if !ok {
		return fmt.Errorf("%q is not the key of a site's HTTP/3", key)
	}
	a := objectOf(p.alternatives, site)
	a.value.Store(nil)
	if !present {
		return nil
	}
	var from table.HTTP3
	if err := json.Unmarshal(value, &from); err != nil {
		return fmt.Errorf("reading what is said of HTTP/3: %w", err)
	}
	p.quicKey = from.Key
	if from.Port > 0 {
		a.value.Store(&[]string{`h3=":` + strconv.Itoa(int(from.Port)) + `"; ma=` + alternativeAge})
	}
	return nil
}

// connectionIDs makes connection IDs that begin with the mark of a socket. The kernel uses the mark to find the process
// that has the connection (table.QUICMark).
type connectionIDs [table.QUICMarkLength]byte

// GenerateConnectionID makes a new connection ID.
func (m connectionIDs) GenerateConnectionID() (quic.ConnectionID, error) {
	var id [table.QUICConnectionIDLength]byte
	_, _ = rand.Read(id[copy(id[:], m[:]):]) // never fails
	return quic.ConnectionIDFromBytes(id[:]), nil
}

// ConnectionIDLen returns the length of each connection ID.
func (connectionIDs) ConnectionIDLen() int { return table.QUICConnectionIDLength }

func markOf(conn *net.UDPConn) (m connectionIDs, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return m, err
	}
	var cookie uint64
	var failure error
	if err := raw.Control(func(d uintptr) {
		cookie, failure = unix.GetsockoptUint64(int(d), unix.SOL_SOCKET,
			unix.SO_COOKIE)
	}); err != nil {
		return m, err
	}
	binary.BigEndian.PutUint16(m[:], table.QUICMark(cookie))
	return m, failure
}

// quicConnection is an open connection of a client. It is closed when no request was served for Options.KeepAlive, even
// if the client has opened streams without sending a request.
type quicConnection struct {
	conn    *quic.Conn
	source  netip.Addr
	counted []*counted // by the limits for HTTP/3 and for all connections

	mu       sync.Mutex
	requests int // requests under way
	idle     *time.Timer
	idleTime time.Duration
}

// beginRequest is called before each request, and endRequest after it.
func (c *quicConnection) beginRequest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests++; c.requests == 1 {
		c.setBusy(true)
	}
	c.idle.Stop()
}

func (c *quicConnection) endRequest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests--; c.requests == 0 {
		c.setBusy(false)
		c.idle.Reset(c.idleTime)
	}
}

// setBusy says to the limits whether a request is under way.
func (c *quicConnection) setBusy(busy bool) {
	for _, one := range c.counted {
		one.setBusy(busy)
	}
}

// quicHandshake counts a connection for the limits, from its first packet on.
type quicHandshake struct {
	releaseOnce sync.Once
	release     func()
	source      netip.Addr // the source that the connection counts for
	counted     []*counted
}

func (h *quicHandshake) finished() { h.releaseOnce.Do(h.release) }

// Keys of a connection's context.
type (
	handshakeKey  struct{}
	connectionKey struct{}
)

// ServeHTTP3 serves a site over HTTP/3 on conn until ctx is done or conn fails. Then it accepts no more connections and
// sends GOAWAY to clients. It waits for requests at most as long as Options.DrainTimeout and closes the remaining ones.
// It returns nil when ctx ended it. It closes conn. No other reader may use the socket. There is no 0-RTT, since an
// attacker who records such a request can send it again.
func (p *Proxy) ServeHTTP3(ctx context.Context, site string, conn *net.UDPConn) error {
	defer func() { _ = conn.Close() }()
	mark, err := markOf(conn)
	if err != nil {
		return fmt.Errorf("reading the cookie of the socket %s: %w", conn.LocalAddr(), err)
	}
	h, end := p.listener(ctx, site, true)
	defer end()
	p.mu.Lock()
	key := p.quicKey
	p.mu.Unlock()
	transport := &quic.Transport{
		Conn: &quicSocket{conn, ipv4.NewPacketConn(conn), p}, ConnectionIDGenerator: mark, ConnContext: p.admitQUIC,
		VerifySourceAddress: func(net.Addr) bool { return p.handshakes.open.Load() >= freeHandshakes },
	}
	if len(key) > 0 { // so that the next process can tell clients that a killed process' connection ended
		reset, token := quic.StatelessResetKey(derive(key, resetPurpose(conn.LocalAddr()))), quic.TokenGeneratorKey(derive(key, "token"))
		transport.StatelessResetKey, transport.TokenGeneratorKey = &reset, &token
	}
	defer func() { _ = transport.Close() }()
	l, err := transport.Listen(http3.ConfigureTLSConfig(p.tlsConfig(site)), p.quicConfig())
	if err != nil {
		return fmt.Errorf("listening for HTTP/3 at %s: %w", conn.LocalAddr(), err)
	}
	server := &http3.Server{
		Handler: http.HandlerFunc(h.serveHTTP3), ConnContext: p.quicConnected, MaxHeaderBytes: maxRequestHeader,
		Logger: slog.New(slog.DiscardHandler), // it logs the faults of each client
	}
	done := make(chan error, 1) // so that the goroutine can end when ctx did
	h.alternative.sockets.Add(1)
	go func() { done <- server.ServeListener(l) }()
	select {
	case err = <-done:
		err = fmt.Errorf("serving the site %s over HTTP/3 at %s: %w", site, conn.LocalAddr(), err)
	case <-ctx.Done():
		within := handshakeTime
		if errors.Is(context.Cause(ctx), ErrHandedOver) {
			within = p.options.HeaderTimeout // none takes longer (quicConfig), and new ones go to the next process
		}
		p.handshakes.await(within)
		_ = l.Close() // it refuses handshakes that are under way
		h.logEnd(<-done)
	}
	h.alternative.sockets.Add(-1)
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.options.DrainTimeout)
	defer cancel()
	_ = server.Shutdown(limited) // it closes the remaining requests after that time
	return err
}

// handshakes counts the QUIC handshakes under way.
type handshakes struct {
	open     atomic.Int64
	finished timers.Signal // open has become 0
}

// await waits until no handshake is under way, for the given time at most.
func (h *handshakes) await(within time.Duration) {
	longest := time.NewTimer(within)
	defer longest.Stop()
	defer h.finished.Send() // wakes the process' other sockets
	for h.open.Load() > 0 {
		select {
		case <-h.finished:
		case <-longest.C:
			return
		}
	}
}

// resetPurpose returns a different purpose for each address. With one key for all, an attacker who has seen the
// connection ID of a client could send it to another socket. That socket, which does not have the connection, would
// reveal the token that ends it (RFC 9000, 21.11).
func resetPurpose(at net.Addr) string { return "stateless reset at " + at.String() }

// derive makes a key for one purpose from key.
func derive(key []byte, purpose string) (out [32]byte) {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(purpose))
	copy(out[:], m.Sum(nil))
	return out
}

// serveHTTP3 answers a request that came over HTTP/3.
func (h *listener) serveHTTP3(w http.ResponseWriter, in *http.Request) {
	if c, ok := in.Context().Value(connectionKey{}).(*quicConnection); ok {
		c.beginRequest()
		defer c.endRequest()
	}
	h.ServeHTTP(w, in)
}

// quicConfig limits what a connection may hold, and detects clients that no longer respond.
func (p *Proxy) quicConfig() *quic.Config {
	config := &quic.Config{
		HandshakeIdleTimeout: p.options.HeaderTimeout / 2, MaxIdleTimeout: 45 * time.Second, KeepAlivePeriod: 20 * time.Second,
		InitialStreamReceiveWindow: quicWindow, MaxStreamReceiveWindow: quicWindow,
		InitialConnectionReceiveWindow: quicConnectionWindow, MaxConnectionReceiveWindow: quicConnectionWindow,
		MaxIncomingStreams: quicStreams, MaxIncomingUniStreams: 8, // a control stream, and two of QPACK
	}
	busy := config.Clone()
	busy.MaxIncomingStreams = fewStreams
	config.GetConfigForClient = func(client *quic.ClientInfo) (*quic.Config, error) {
		if p.limits.quic.exceeds(sourceOf(client.RemoteAddr), freeConnections) {
			return busy, nil
		}
		return config, nil
	}
	return config
}

var (
	errManyConnections = errors.New("too many connections")
	errNoClient        = errors.New("a trusted proxy cannot say by UDP whose connection it is")
)

// admitQUIC counts a connection from its first packet on. It stops counting the connection when ctx is done.
func (p *Proxy) admitQUIC(ctx context.Context, client *quic.ClientInfo) (context.Context, error) {
	source, tables := sourceOf(client.RemoteAddr), p.current.Load()
	if len(tables.trusted) > 0 && contains(tables.trusted, addressOf(client.RemoteAddr)) {
		if tables.proxied { // the address that a client claims would be trusted
			return nil, errNoClient
		}
		source = netip.Addr{} // many clients' connections
	}
	one := p.limits.admit(&p.limits.quic, source)
	if one == nil {
		return nil, errManyConnections
	}
	other := p.limits.admit(&p.limits.connections, source)
	if other == nil {
		one.uncount()
		return nil, errManyConnections
	}
	p.handshakes.open.Add(1)
	p.stats.Connections.Add(1)
	s := &quicHandshake{source: source, counted: []*counted{one, other}, release: func() {
		if p.handshakes.open.Add(-1) == 0 {
			p.handshakes.finished.Send()
		}
	}}
	context.AfterFunc(ctx, func() {
		s.finished()
		p.stats.Connections.Add(-1)
		one.uncount()
		other.uncount()
	})
	return context.WithValue(ctx, handshakeKey{}, s), nil
}

// quicConnected is called after a connection's handshake.
func (p *Proxy) quicConnected(ctx context.Context, conn *quic.Conn) context.Context {
	c := &quicConnection{conn: conn, idleTime: p.options.KeepAlive}
	if s, ok := ctx.Value(handshakeKey{}).(*quicHandshake); ok {
		s.finished()
		c.source, c.counted = s.source, s.counted
	}
	for _, one := range c.counted {
		one.quic = true
		one.opened(func() { c.close(http3.ErrCodeNoError, "the ingress proxy needs the connection for another client") })
	}
	p.limits.quic.mu.Lock()
	p.limits.quicOpen[c] = struct{}{}
	p.limits.quic.mu.Unlock()
	c.idle = time.AfterFunc(c.idleTime, func() { _ = conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "idle") })
	context.AfterFunc(ctx, func() {
		c.idle.Stop()
		p.limits.quic.mu.Lock()
		delete(p.limits.quicOpen, c)
		p.limits.quic.mu.Unlock()
	})
	return context.WithValue(ctx, connectionKey{}, c)
}

// quicSocket checks the memory at each batch of packets, since streams grow by headers and bodies before a handler
// reads them.
type quicSocket struct {
	*net.UDPConn
	batches *ipv4.PacketConn // for IPv6, too
	proxy   *Proxy
}

// ReadBatch implements the interface by which quic-go reads packets.
func (s *quicSocket) ReadBatch(packets []ipv4.Message, flags int) (int, error) {
	n, err := s.batches.ReadBatch(packets, flags)
	if s.proxy.limits.memory.aboveAfterGC(sourcesShed) {
		s.proxy.limits.shedQUIC()
	}
	return n, err
}

// close closes the connection, without waiting for that.
func (c *quicConnection) close(code http3.ErrCode, why string) {
	go func() { _ = c.conn.CloseWithError(quic.ApplicationErrorCode(code), why) }()
}
