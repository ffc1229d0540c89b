// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	// protocol is the WebSocket's subprotocol. tokenProtocol begins another offered subprotocol that holds the page's
	// token, since a browser cannot set headers of a WebSocket.
	protocol      = "coracle.console.v1"
	tokenProtocol = "coracle.token."
	// maxStreams limits the streams of one tab.
	maxStreams = 128
	// maxMessage limits a message of a page, in bytes: text pasted into a shell, and the paths of a search. Other
	// messages are limited by maxRequest, since a stream keeps its request until it ends.
	maxMessage, maxRequest = 512 << 10, 16 << 10
	// maxPending limits the bytes that a tab's shells have not read yet.
	maxPending = 4 << 20
	// inputQueue limits the messages that a shell has not read yet: a burst of keys, or a pasted text in some pieces.
	// Each has maxInput bytes at most.
	inputQueue = 64
	maxInput   = 64 << 10
	// writeTimeout is the time that a tab may take to read a message. Only the tab's own streams wait for it.
	writeTimeout = 30 * time.Second
	// pingEvery is the interval of pings. They keep proxies from closing an idle connection, and detect tabs that have
	// disconnected.
	pingEvery   = 30 * time.Second
	pongTimeout = 75 * time.Second
	// reviewTimeout limits how long the API may take to say whether it still accepts the user's credentials.
	reviewTimeout = 10 * time.Second
)

type pageMessage struct {
	ID      int64             `json:"id"`
	Op      string            `json:"op"`
	Path    string            `json:"path"`
	Query   map[string]string `json:"query"`
	RV      string            `json:"rv"`
	Command []string          `json:"command"`
	Paths   []string          `json:"paths"`
	TTY     bool              `json:"tty"`
	Data    string            `json:"data"`
	Cols    uint16            `json:"cols"`
	Rows    uint16            `json:"rows"`
}

func (r *pageMessage) values() url.Values {
	out := url.Values{}
	for k, v := range r.Query {
		out.Set(k, v)
	}
	return out
}

// message is a message to a page: the number of its stream, its type, and its content.
type message map[string]any

// socket is the WebSocket of one tab.
type socket struct {
	h    *Handler
	u    *user
	conn *websocket.Conn
	// login is the user of the tab, and the expiry of the user's token.
	login *socketLogin
	name  string // of the user; on 127.0.0.1 the session's token

	writing sync.Mutex

	mu      sync.Mutex
	streams map[int64]*stream
	search  *stream // the newest one
	running sync.WaitGroup

	reviewing atomic.Bool // the API is asked whether it accepts the user's credentials

	pages   chan struct{} // capacity 1: held by the stream that sends a page of a list, or an object
	pending atomic.Int64  // bytes that shells have not read yet
}

// stream is a list, object, log or shell of a tab.
type stream struct {
	s      *socket
	id     int64
	cancel context.CancelFunc
	input  chan pageMessage // a page's messages to a shell, capacity inputQueue; nil for other streams
}

// socket serves a tab's WebSocket until the tab disconnects or the console ends.
func (h *Handler) socket(w http.ResponseWriter, r *http.Request) {
	token := tokenOf(r)
	if token == "" {
		answerError(w, http.StatusUnauthorized, "log in first")
		return
	}
	u, err := h.userOf(r, token)
	if err != nil {
		refuseUser(w, err)
		return
	}
	if h.o.Mode == ModeServer && tokenEnded(token, time.Now()) { // the API takes it for some seconds more
		answerError(w, http.StatusUnauthorized, whyRefused(token, time.Now()))
		return
	}
	name, err := h.authenticate(r.Context(), u)
	if err != nil {
		refuseError(w, err)
		return
	}
	if name == "" { // on 127.0.0.1, where all tabs are of one user
		name = token
	}
	release, free := h.sockets.acquire(name)
	if !free {
		answerError(w, http.StatusServiceUnavailable, "too many tabs are open: close some")
		return
	}
	defer func() {
		release()
		if !h.sockets.hasSockets() {
			h.o.Ended()
		}
	}()
	h.open.Add(1)
	defer h.open.Done()
	// The Origin was checked before, as for each request (foreign).
	up := websocket.Upgrader{
		Subprotocols: []string{protocol}, CheckOrigin: func(*http.Request) bool { return true }, ReadBufferSize: 4096,
		WriteBufferSize: 4096,
	}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	s := &socket{
		h: h, u: u, name: name, conn: conn, streams: map[int64]*stream{}, pages: make(chan struct{}, 1),
		login: newSocketLogin(h, u, name),
	}
	s.serve()
}

// serve reads the page's messages. It returns when the connection and all its streams have ended.
func (s *socket) serve() {
	ctx, cancel := context.WithCancel(context.Background())
	defer s.running.Wait()
	defer func() { _ = s.conn.Close() }() // the tab may have closed it
	defer cancel()
	s.running.Go(func() { s.keepAlive(ctx) })
	s.conn.SetReadLimit(maxMessage)
	_ = s.conn.SetReadDeadline(time.Now().Add(pongTimeout)) // an error occurs again in the read below
	s.conn.SetPongHandler(func(string) error { return s.conn.SetReadDeadline(time.Now().Add(pongTimeout)) })
	for {
		kind, text, err := s.conn.ReadMessage()
		if err != nil {
			return
		}
		var r pageMessage
		if kind != websocket.TextMessage || json.Unmarshal(text, &r) != nil || len(text) > maxRequest && r.Op != "search" &&
			r.Op != "stdin" {
			return // not a message of the console's pages
		}
		if !s.handle(ctx, r) {
			return // not a message of the console's pages
		}
	}
}

// keepAlive sends pings. It closes the connection when the console ends, the token has expired, or a write fails.
func (s *socket) keepAlive(ctx context.Context) {
	tick := time.NewTicker(s.h.o.pingEvery)
	defer tick.Stop()
	defer func() { _ = s.conn.Close() }() // ends the read in serve
	refused := make(chan struct{}, 1)     // one review runs at a time
	answers := true                       // of the last review
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.h.closing:
			s.closeWith(websocket.CloseGoingAway, "the console has ended")
			return
		case <-refused:
			s.closeWith(websocket.ClosePolicyViolation, "the cluster does not accept the credentials any more")
			return
		case <-tick.C:
			if s.login.hasExpired(time.Now()) {
				s.closeWith(websocket.ClosePolicyViolation, "the token has ended")
				return
			}
			if s.reviewing.CompareAndSwap(false, true) {
				s.running.Go(func() {
					defer s.reviewing.Store(false)
					answers = s.review(ctx, answers, refused)
				})
			}
			if s.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTimeout)) != nil {
				return
			}
		}
	}
}

// closeWith tells the page why its connection ends.
func (s *socket) closeWith(code int, why string) {
	m := websocket.FormatCloseMessage(code, why)
	_ = s.conn.WriteControl(websocket.CloseMessage, m, time.Now().Add(time.Second)) // the connection ends either way
}

// review asks the API whether it still accepts the user's credentials, which may have been revoked, and sends to
// refused when it does not. In this way a page without a list, too, learns that the API does not answer, and that it
// answers again. answered and the result are whether the API answered, last time and this time.
func (s *socket) review(ctx context.Context, answered bool, refused chan<- struct{}) bool {
	asking, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	_, err := s.u.whoAmI(asking)
	if ctx.Err() != nil {
		return answered
	}
	if apierrors.IsUnauthorized(err) {
		refused <- struct{}{}
		return true
	}
	if err != nil && !isTemporary(err) {
		err = nil // it answers: an API may not have this review
	}
	if (err == nil) == answered {
		return answered
	}
	m := message{"type": "state", "ok": err == nil}
	if err != nil {
		_, m["reason"], m["message"] = explainError(err)
	}
	st := &stream{s: s} // number 0, which no stream has
	_ = st.send(m)      // the tab may have disconnected
	return err == nil
}

// handle executes a page's message. It returns false for a message that the console's pages do not send.
func (s *socket) handle(ctx context.Context, r pageMessage) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	open := s.streams[r.ID]
	switch r.Op {
	case "close":
		if open != nil {
			open.cancel()
			delete(s.streams, r.ID)
		}
		return true
	case "token":
		return s.login.renew(ctx, s, r.Data)
	case "stdin", "resize":
		if len(r.Data) > maxInput {
			return false
		}
		if open == nil || open.input == nil {
			return true
		}
		if !open.queue(r) { // a shell that does not read does not delay the tab's other streams
			open.cancel()
			delete(s.streams, r.ID)
			s.running.Go(func() {
				open.sendEnd(http.StatusTooManyRequests, "TooManyRequests", "the program does not read what is typed")
			})
		}
		return true
	}
	if open != nil || len(s.streams) >= maxStreams { // pages never use a number again
		return false
	}
	streamCtx, cancel := context.WithCancel(ctx)
	st := &stream{s: s, id: r.ID, cancel: cancel}
	if r.Op == "exec" || r.Op == "attach" {
		st.input = make(chan pageMessage, inputQueue)
	}
	s.streams[r.ID] = st
	if r.Op == "search" { // a page shows only one search
		if s.search != nil {
			s.search.cancel()
		}
		s.search = st
	} else {
		r.Paths = nil
	}
	s.running.Go(func() {
		defer cancel()
		st.run(streamCtx, r)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.streams[r.ID] == st {
			delete(s.streams, r.ID)
		}
		for len(st.input) > 0 { // no more messages arrive: only streams in the map get input
			s.pending.Add(-int64(len((<-st.input).Data)))
		}
	})
	return true
}

// acquirePage waits until no other stream of the tab sends a page of a list, or an object. A tab that does not read
// thus holds one of these in memory, and not one for each stream.
func (st *stream) acquirePage(ctx context.Context) error {
	select {
	case st.s.pages <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errClosed
	}
}

func (st *stream) leavePage() { <-st.s.pages }

// queue holds a page's message to a shell until the shell reads it. It returns false when there are too many.
func (st *stream) queue(r pageMessage) bool {
	if st.s.pending.Load()+int64(len(r.Data)) > maxPending {
		return false
	}
	select {
	case st.input <- r:
		st.s.pending.Add(int64(len(r.Data)))
		return true
	default:
		return false
	}
}

func (st *stream) run(ctx context.Context, r pageMessage) {
	var err error
	switch r.Op {
	case "list":
		err = (&list{stream: st, path: r.Path, query: r.values()}).run(ctx, r.RV)
	case "object":
		err = st.watchObject(ctx, r.Path)
	case "search":
		err = st.search(ctx, r.Query["text"], r.Paths)
	case "log":
		err = st.readLog(ctx, r.Path, r.values())
	case "exec", "attach":
		err = st.runCommand(ctx, &r)
	case "drain":
		err = st.drainNode(ctx, &r)
	default:
		err = fmt.Errorf("the console does not know %q: load the page again", r.Op)
	}
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		st.sendEnd(0, "", "")
		return
	}
	code, reason, text := explainError(err)
	code = cmp.Or(code, http.StatusBadGateway)
	st.sendEnd(code, reason, text)
}

// sendEnd sends that the stream has ended, and why. Code 0 says that there was no error.
func (st *stream) sendEnd(code int, reason, text string) {
	_ = st.send(message{"type": "end", "code": code, "reason": reason, "message": text}) // the tab may have disconnected
}

// errClosed says that a tab does not read any more.
var errClosed = errors.New("the tab has ended")

// send writes a message of this stream. It waits for a slow tab, up to writeTimeout.
func (st *stream) send(m message) error {
	m["id"] = st.id
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("writing a message: %w", err)
	}
	st.s.writing.Lock()
	defer st.s.writing.Unlock()
	_ = st.s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) // an error occurs again in the write below
	if err := st.s.conn.WriteMessage(websocket.TextMessage, text); err != nil {
		_ = st.s.conn.Close() // ends the read in serve, and with it all streams
		return errClosed
	}
	return nil
}
