// SPDX-License-Identifier: Apache-2.0

package content

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/joining/protocol"
)

const (
	// maxConns is how many connections of other machines are open at a time. With one more, the oldest of the machine
	// with the most is closed (connlimit); a receiver that loses one goes on with another machine.
	maxConns = 512
	// maxUploads is how many whole blobs are sent at a time, maxPartial how many that this machine is still receiving:
	// these take no more of its network than it receives itself. maxRelayed is how many a server passes on.
	maxUploads, maxPartial, maxRelayed = 2, 8, 8
	// chunk is how much is sent between two looks at the rate, and chunkTimeout how long the receiver may take for it.
	chunk        = 128 << 10
	chunkTimeout = 5 * time.Second
	// answerTimeout is how long the other end may take for an answer that is no blob.
	answerTimeout = 30 * time.Second
	// MinRate is the least useful rate: a client leaves a machine that sends less. A lower limit is raised to it.
	MinRate = wholeLeast / int64(wholeWindow/time.Second)
	// maxQuestion limits the body of a question in bytes.
	maxQuestion = 16 << 10
	// nodeUser begins the common name of a node's certificate.
	nodeUser = "system:node:"
)

type (
	// findRequest is a question to a server.
	findRequest struct {
		// Node is the asking machine's node. Servers name it; that of another machine is in its certificate.
		Node    string        `json:"node,omitempty"`
		Digest  digest.Digest `json:"digest"`
		Exclude []string      `json:"exclude,omitempty"`
	}
	// findAnswer is the server's answer.
	findAnswer struct {
		// Nodes have the blob, or are receiving it. None means that the asking machine is to fetch it from outside.
		Nodes []string `json:"nodes"`
	}
)

// Server serves this machine's content to others.
type Server struct {
	source   func() Source
	counters *Counters
	rate     *rate.Limiter // nil without a limit
	tracker  *tracker      // nil on an agent
	relay    *http.Client  // reaches nodes through their connections to this server; nil on an agent
	o        ServerOptions
	names    atomic.Pointer[http.HandlerFunc] // answers for names of images; nil for none

	uploads, partial, relayed chan struct{}
	// sending bounds uploads of both kinds, so that each has a useful part of the rate.
	sending chan struct{}
}

// ServerOptions configure a Server.
type ServerOptions struct {
	// Source returns this machine's content, or nil while there is none.
	Source   func() Source
	Counters *Counters
	// Refuses, if set, returns why a machine is not served, or nil. It is called for each request.
	Refuses func(*tls.ConnectionState) error
	// Rate limits what is sent to all machines together, in bytes per second; 0 is no limit. There are no more uploads
	// at a time than get MinRate each.
	Rate int64
	// Own, Sessions and Dial are a server's. Own is the name of its own node. Sessions returns the other connected
	// nodes by name, each with what identifies its present connection. Dial opens an authenticated connection to a
	// node through that.
	Own      string
	Sessions func() map[string]any
	Dial     func(ctx context.Context, node string) (net.Conn, error)
}

// NewServer returns a Server.
func NewServer(o ServerOptions) *Server {
	s := &Server{
		o: o, source: o.Source, counters: o.Counters,
		uploads: make(chan struct{}, maxUploads), partial: make(chan struct{}, maxPartial), relayed: make(chan struct{}, maxRelayed),
		sending: make(chan struct{}, maxUploads+maxPartial+maxRelayed),
	}
	if o.Rate > 0 {
		s.sending = make(chan struct{}, min(max(o.Rate/MinRate, 1), int64(cap(s.sending))))
		s.rate = rate.NewLimiter(rate.Limit(max(o.Rate, MinRate)), chunk)
	}
	if o.Sessions != nil {
		s.relay = newHTTPClient(o.Dial)
		s.tracker = newTracker(s.sessions, s.learn)
	}
	return s
}

// Run serves the authenticated connections of a listener until ctx is done. It returns when all of them are closed.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	var open sync.WaitGroup
	if s.tracker != nil {
		defer s.tracker.running.Wait() // no request begins any more
	}
	defer open.Wait()
	h := &http.Server{
		Handler: s, ReadHeaderTimeout: chunkTimeout, WriteTimeout: answerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 8 << 10,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed:
				open.Done()
			}
		},
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // a client cannot fill the log
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	stop := context.AfterFunc(ctx, func() { _ = h.Close() })
	defer stop()
	if s.relay != nil {
		defer s.relay.CloseIdleConnections()
	}
	err := h.Serve(&plainListener{Listener: l, open: connlimit.Table{Max: maxConns}})
	_ = h.Close() // closes what is left, after an error of the listener
	if err != nil && !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("content: %w", err)
	}
	return nil
}

// plainListener hides from net/http that connections use TLS: it would close those whose ALPN it does not know. It
// bounds the number of connections.
type plainListener struct {
	net.Listener
	open connlimit.Table
}

// Accept implements net.Listener.
func (l *plainListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	done, _ := l.open.Add(c.RemoteAddr(), func() { _ = c.Close() }) // the table is never closed
	return plainConn{c, done}, nil
}

type plainConn struct {
	net.Conn
	done func()
}

// Close implements net.Conn.
func (c plainConn) Close() error {
	c.done()
	return c.Conn.Close()
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// peer returns the state of the TLS connection of a request.
func peer(r *http.Request) *tls.ConnectionState {
	if c, ok := r.Context().Value(connKey{}).(plainConn); ok {
		if t, ok := c.Conn.(*tls.Conn); ok {
			state := t.ConnectionState()
			return &state
		}
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.o.Refuses != nil {
		if err := s.o.Refuses(peer(r)); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxQuestion)
	switch path := r.URL.Path; {
	case r.Method == http.MethodGet && strings.HasPrefix(path, blobsPath):
		s.serveBlob(w, r)
	case r.Method == http.MethodGet && path == havePath && isServer(peer(r)):
		s.serveHave(w, r)
	case r.Method == http.MethodPost && path == findPath && s.tracker != nil:
		s.serveFind(w, r)
	case r.Method == http.MethodGet && path == namesPath && s.tracker != nil:
		s.serveNames(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (s *Server) serveBlob(w http.ResponseWriter, r *http.Request) {
	d, err := parseDigest(strings.TrimPrefix(r.URL.Path, blobsPath))
	offset, err2 := parseRange(r.Header.Get("Range"))
	if err := errors.Join(err, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if node := r.URL.Query().Get("node"); node != "" && s.relay != nil {
		s.passOn(w, r, node, d, offset)
		return
	}
	source := s.source()
	if source == nil {
		http.NotFound(w, r)
		return
	}
	blob, err := source.Open(r.Context(), d, offset)
	switch {
	case errdefs.IsNotFound(err):
		http.NotFound(w, r)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer blob.Body.Close()
	places := s.uploads
	if blob.Partial {
		places = s.partial
		w.Header().Set(partialHeader, "1")
	}
	w.Header().Set("Content-Length", strconv.FormatInt(max(blob.Size-offset, 0), 10))
	s.send(w, r, blob.Body, places)
}

// send sends a blob if one of the places is free.
func (s *Server) send(w http.ResponseWriter, r *http.Request, from io.Reader, places chan struct{}) {
	for _, p := range []chan struct{}{places, s.sending} {
		select {
		case p <- struct{}{}:
			defer func() { <-p }()
		default:
			w.Header().Del("Content-Length")
			http.Error(w, "this machine sends as much as it may", http.StatusServiceUnavailable)
			return
		}
	}
	sent, err := s.copy(r.Context(), w, from)
	if err == nil {
		s.counters.Sent.Add(sent)
		return
	}
	s.counters.Sent.Bytes.Add(sent)
	panic(http.ErrAbortHandler) // the receiver sees that it is cut off
}

// copy sends chunks at the machine's rate. A receiver that takes too long for one is cut off.
func (s *Server) copy(ctx context.Context, w http.ResponseWriter, from io.Reader) (sent int64, err error) {
	control, buffer := http.NewResponseController(w), make([]byte, chunk)
	if err := control.Flush(); err != nil { // the receiver of a partial blob sees at once that it is on its way
		return 0, err
	}
	defer func() { _ = control.SetWriteDeadline(time.Time{}) }() // the connection may serve another question
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if s.rate != nil {
				if err := s.rate.WaitN(ctx, n); err != nil {
					return sent, err
				}
			}
			if err := control.SetWriteDeadline(time.Now().Add(chunkTimeout)); err != nil {
				return sent, err
			}
			if _, err := w.Write(buffer[:n]); err != nil {
				return sent, err
			}
			if err := control.Flush(); err != nil { // a receiver of a partial blob must not wait for the next chunk
				return sent, err
			}
			sent += int64(n)
		}
		switch {
		case errors.Is(err, io.EOF):
			return sent, nil
		case err != nil:
			return sent, err
		}
	}
}

// passOn sends a blob of a node that the asking machine cannot reach.
func (s *Server) passOn(w http.ResponseWriter, r *http.Request, node string, d digest.Digest, offset int64) {
	if _, connected := s.o.Sessions()[node]; !connected { // what is no node's name could change the request
		http.NotFound(w, r)
		return
	}
	answer, err := request(r.Context(), s.relay, node, d, offset, "")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusPartialContent {
		w.WriteHeader(answer.StatusCode)
		return
	}
	for _, name := range []string{"Content-Length", partialHeader} {
		if v := answer.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	s.send(w, r, answer.Body, s.relayed)
}

func (s *Server) serveHave(w http.ResponseWriter, r *http.Request) {
	var all []digest.Digest
	if source := s.source(); source != nil {
		var err error
		if all, err = source.Digests(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	_, _ = w.Write(encodeHave(all)) // the other end sees a cut
}

// serveNames answers with the images that this server has imported. There is no answer without a node, which imports
// them.
func (s *Server) serveNames(w http.ResponseWriter, r *http.Request) {
	if names := s.names.Load(); names != nil {
		(*names)(w, r)
		return
	}
	http.NotFound(w, r)
}

func (s *Server) serveFind(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(chunkTimeout)) // fails for a connection that is closed
	var q findRequest
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	d, err := parseDigest(string(q.Digest))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	asker := q.Node
	if !isServer(peer(r)) {
		asker = nodeOf(peer(r))
	}
	if asker == "" {
		http.Error(w, "the question names no node", http.StatusForbidden)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(findAnswer{s.tracker.find(r.Context(), asker, d, q.Exclude)}) // the other end sees a cut
}

// sessions returns the nodes that this server knows, with its own: what identifies that is its present source.
func (s *Server) sessions() map[string]any {
	all := s.o.Sessions()
	if source := s.source(); source != nil {
		all[s.o.Own] = source
	}
	return all
}

// learn requests what a node has, through its connection to this server.
func (s *Server) learn(ctx context.Context, node string) ([]uint64, error) {
	if source := s.source(); node == s.o.Own && source != nil {
		all, err := source.Digests(ctx)
		return prefixes(all), err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+node+havePath, nil)
	if err != nil {
		return nil, err
	}
	answer, err := s.relay.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	return readHave(answer)
}

// isServer reports whether the other end is a server.
func isServer(c *tls.ConnectionState) bool {
	return c != nil && len(c.PeerCertificates) > 0 && c.PeerCertificates[0].Subject.CommonName == protocol.ServerName
}

// nodeOf returns the name of the other end's node, or "" if it has no node's certificate.
func nodeOf(c *tls.ConnectionState) string {
	if c == nil || len(c.PeerCertificates) == 0 {
		return ""
	}
	name, ok := strings.CutPrefix(c.PeerCertificates[0].Subject.CommonName, nodeUser)
	if !ok {
		return ""
	}
	return name
}

// parseRange reads "bytes=N-", the only form that is used here, or nothing.
func parseRange(text string) (offset int64, err error) {
	if text == "" {
		return 0, nil
	}
	number, ok := strings.CutPrefix(text, "bytes=")
	number, ok2 := strings.CutSuffix(number, "-")
	if offset, err = strconv.ParseInt(number, 10, 64); !ok || !ok2 || err != nil || offset < 0 {
		return 0, fmt.Errorf("content: the range %q is none from an offset on", text)
	}
	return offset, nil
}
