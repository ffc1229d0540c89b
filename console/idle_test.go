// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/net/proxy"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// idleNetwork is a network in memory behind a proxy, which ends a connection on which nothing passed for its patience.
type idleNetwork struct {
	patience time.Duration
	accepted chan net.Conn
	closed   chan struct{}
}

func newIdleNetwork(patience time.Duration) *idleNetwork {
	return &idleNetwork{patience: patience, accepted: make(chan net.Conn), closed: make(chan struct{})}
}

// Dial implements proxy.Dialer.
func (n *idleNetwork) Dial(string, string) (net.Conn, error) {
	client, near := net.Pipe()
	far, server := net.Pipe()
	end := func() {
		_ = near.Close()
		_ = far.Close()
	}
	timer := time.AfterFunc(n.patience, end)
	pass := func(to, from net.Conn) {
		defer timer.Stop()
		defer end()
		buffer := make([]byte, 4096)
		for {
			count, err := from.Read(buffer)
			if err != nil {
				return
			}
			timer.Reset(n.patience)
			if _, err := to.Write(buffer[:count]); err != nil {
				return
			}
		}
	}
	go pass(near, far)
	go pass(far, near)
	select {
	case n.accepted <- server:
		return client, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

// Accept, Close and Addr implement net.Listener.
func (n *idleNetwork) Accept() (net.Conn, error) {
	select {
	case c := <-n.accepted:
		return c, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

func (n *idleNetwork) Close() error {
	close(n.closed)
	return nil
}

func (n *idleNetwork) Addr() net.Addr { return &net.TCPAddr{} }

// toAPI is where the scheme "idle" of a proxy's address leads: client-go dials the API itself, but for a proxy.
var toAPI *idleNetwork

var _ = func() bool {
	proxy.RegisterDialerType("idle", func(*url.URL, proxy.Dialer) (proxy.Dialer, error) { return toAPI, nil })
	return true
}()

// echoShell is the API's end of a shell that sends back what it gets.
func echoShell(w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	for {
		_, text, err := conn.ReadMessage()
		if err != nil {
			return
		}
		if len(text) > 1 && text[0] == 0 { // stdin
			text[0] = 1 // stdout
			if conn.WriteMessage(websocket.BinaryMessage, text) != nil {
				return
			}
		}
	}
}

// idleShell opens a shell and leaves it alone for two hours. It returns what the tab gets when it types after that; the
// proxies before the console and before the API have the given patience.
func idleShell(t *testing.T, beforeConsole, beforeAPI time.Duration) (map[string]any, error) {
	t.Helper()
	toConsole := newIdleNetwork(beforeConsole)
	toAPI = newIdleNetwork(beforeAPI)
	api := &http.Server{Handler: http.HandlerFunc(echoShell), ReadHeaderTimeout: time.Minute}
	config := &rest.Config{
		Host: "http://api", Proxy: func(*http.Request) (*url.URL, error) { return &url.URL{Scheme: "idle"}, nil },
		Dial: func(_ context.Context, network, address string) (net.Conn, error) {
			return toAPI.Dial(network, address)
		}, // of other requests
	}
	h := testenv.Must(
		New(Options{Mode: ModeLoopback, Hosts: loopbackName, User: func(string) (*rest.Config, bool) { return config, true }}))(t)
	console := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = api.Serve(toAPI) }()
	go func() { _ = console.Serve(toConsole) }()
	defer func() { _ = console.Close() }()
	defer h.Close()
	defer func() { _ = api.Close() }()
	d := websocket.Dialer{
		NetDial:      toConsole.Dial,
		Subprotocols: []string{protocol, tokenProtocol + base64.RawURLEncoding.EncodeToString([]byte("good"))},
	}
	conn, response, err := d.DialContext(t.Context(), "ws://127.0.0.1/ws", nil)
	testenv.NoError(t, err)
	_ = response.Body.Close()
	defer func() { _ = conn.Close() }()
	testenv.NoError(t,
		conn.WriteJSON(pageMessage{ID: 1, Op: "exec", Path: "/api/v1/namespaces/a/pods/b/exec", Command: []string{"sh"}, TTY: true}))
	type got struct {
		message map[string]any
		err     error
	}
	messages := make(chan got, 8) // as many as there are
	go func() {
		for {
			var m map[string]any
			err := conn.ReadJSON(&m) // it answers pings, too
			messages <- got{m, err}
			if err != nil {
				return
			}
		}
	}()
	time.Sleep(2 * time.Hour) // of the test's own time (synctest): the shell is idle
	select {
	case m := <-messages: // the shell has ended
		return m.message, m.err
	default:
	}
	if err := conn.WriteJSON(pageMessage{ID: 1, Op: "stdin", Data: "typed"}); err != nil {
		return nil, err
	}
	m := <-messages
	return m.message, m.err
}

// ownTime runs f in a time of its own.
func ownTime(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	// The default handlers wait until a moment of the real time.
	handlers := utilruntime.ErrorHandlers
	utilruntime.ErrorHandlers = nil
	defer func() { utilruntime.ErrorHandlers = handlers }()
	synctest.Test(t, func(t *testing.T) {
		f(t)
		time.Sleep(time.Minute) // client-go's pings end with the first that fails
	})
}

func TestIdleShellSurvivesProxies(t *testing.T) {
	ownTime(t, func(t *testing.T) {
		if m, err := idleShell(t, time.Minute, time.Minute); err != nil || m["data"] != "typed" {
			t.Errorf("after two hours: %v, %v", m, err)
		}
	})
}

// Proxies with less patience than there is between two pings do end shells, and the page learns it.
func TestShellSaysWhyItEnded(t *testing.T) {
	ownTime(t, func(t *testing.T) {
		if m, err := idleShell(t, pingEvery-time.Second, time.Minute); !errors.Is(err, io.ErrUnexpectedEOF) && !websocket.IsUnexpectedCloseError(err) {
			t.Errorf("a tab whose connection was ended: %v, %v", m, err)
		}
	})
	ownTime(t, func(t *testing.T) {
		m, err := idleShell(t, time.Minute, 4*time.Second)
		text, _ := m["message"].(string)
		if err != nil || m["type"] != "end" || !strings.HasPrefix(text, "the connection to the container was lost") {
			t.Errorf("a shell whose connection was ended: %v, %v", m, err)
		}
	})
}
