// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	streamspdy "k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// podAPI is an API with one pod, whose port 80 sends back what it gets. Port 81 fails.
type podAPI struct {
	t    *testing.T
	gone atomic.Bool // the pod was deleted
	got  atomic.Int64
}

const podJSON = `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"a","uid":"u1"},"spec":{"containers":[{"name":"c","ports":[` +
	`{"name":"http","containerPort":80},{"name":"dns","containerPort":53,"protocol":"UDP"}]}]},` +
	`"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`

func (p *podAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/api/v1/namespaces/a/pods/web":
		if p.gone.Load() {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"kind":"Status","code":404,"reason":"NotFound","message":"pods \"web\" not found"}`)
			return
		}
		_, _ = io.WriteString(w, podJSON)
	case "/api/v1/namespaces/a/pods":
		_, _ = io.WriteString(w, `{"kind":"PodList","items":[`+strings.ReplaceAll(strings.Replace(podJSON, `"web"`, `"old"`, 1), "True", "False")+","+podJSON+`]}`)
	case "/api/v1/namespaces/a/services/web":
		_, _ = io.WriteString(w, `{"metadata":{"name":"web","namespace":"a"},"spec":{"selector":{"app":"web"},"ports":[{"name":"main","port":8080,"targetPort":"http"},{"port":9,"targetPort":81}]}}`)
	case "/api/v1/namespaces/a/pods/web/portforward":
		p.got.Add(1)
		p.tunnel(w, r)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// tunnel is a node's end of a forward.
func (p *podAPI) tunnel(w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{Subprotocols: []string{"SPDY/3.1+portforward.k8s.io"}}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	streams := make(chan httpstream.Stream, 8)
	conn, err := streamspdy.NewServerConnection(portforward.NewTunnelingConnection("test", ws), func(s httpstream.Stream, _ <-chan struct{}) error {
		streams <- s
		return nil
	})
	if err != nil {
		p.t.Error(err)
		return
	}
	defer func() { _ = conn.Close() }()
	var failures httpstream.Stream
	for {
		select {
		case <-conn.CloseChan():
			return
		case s := <-streams:
			switch {
			case s.Headers().Get(corev1.StreamType) == corev1.StreamTypeError:
				failures = s
			case s.Headers().Get(corev1.PortHeader) == "80":
				go func() {
					_, _ = io.Copy(s, s)
					_ = failures.Close()
					_ = s.Close()
				}()
			case s.Headers().Get(corev1.PortHeader) == "82": // reads nothing
			default:
				_, _ = io.WriteString(failures, "connection refused\n")
				_ = failures.Close()
				_ = s.Close()
			}
		}
	}
}

// forwardOf opens a forward.
func forwardOf(t *testing.T, s *httptest.Server, path, port string) forwardState {
	t.Helper()
	code, text, _ := roundTrip(t, s, "POST", "/forward", fmt.Sprintf(`{"path":%q,"port":%q}`, path, port), "Authorization", bearer)
	var f forwardState
	if err := json.Unmarshal([]byte(text), &f); err != nil || code != http.StatusOK {
		t.Fatalf("opening a forward: %d %s", code, text)
	}
	return f
}

// forwardsOf are the forwards that a page is shown.
func forwardsOf(t *testing.T, s *httptest.Server) []forwardState {
	t.Helper()
	_, text, _ := roundTrip(t, s, "GET", "/forwards", "", "Authorization", bearer)
	var out struct{ Forwards []forwardState }
	testenv.NoError(t, json.Unmarshal([]byte(text), &out))
	return out.Forwards
}

// eventually waits until a page is shown forwards as they are wanted.
func eventually(t *testing.T, s *httptest.Server, wanted func(all []forwardState) bool) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, "the forwards change", func() error {
		if all := forwardsOf(t, s); !wanted(all) {
			return fmt.Errorf("they are %+v", all)
		}
		return nil
	})
}

func dialForward(t *testing.T, f forwardState) net.Conn {
	t.Helper()
	var d net.Dialer
	conn := testenv.Must(d.DialContext(t.Context(), "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(f.Local))))(t)
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	return conn
}

func TestForwardLeadsToAPod(t *testing.T) {
	api := &podAPI{t: t}
	s := consoleOf(t, api.ServeHTTP)
	for _, c := range []struct{ path, port string }{
		{"/api/v1/namespaces/a/pods/web", "80"}, {"/api/v1/namespaces/a/pods/web", "http"},
		{"/api/v1/namespaces/a/services/web", "8080"}, {"/api/v1/namespaces/a/services/web", "main"},
	} {
		f := forwardOf(t, s, c.path, c.port)
		testenv.False(t, f.Port != 80 || f.Pod != "web" || !isForwardPort(f.Local), "%+v: the forward is %+v", c, f)
		conn := dialForward(t, f)
		text := bytes.Repeat([]byte("0123456789"), 50_000)
		go func() {
			_, _ = conn.Write(text)
			_ = conn.(*net.TCPConn).CloseWrite() //nolint:forcetypeassert // a TCP connection
		}()
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%+v: %d bytes came back, %v", c, len(got), err)
		}
	}
	eventually(t, s, func(all []forwardState) bool {
		return len(all) == 4 && all[3].Open == 0 && all[3].Opened == 1 && all[3].Failed == 0
	})
}

func TestForwardSaysWhatFails(t *testing.T) {
	api := &podAPI{t: t}
	s := consoleOf(t, api.ServeHTTP)
	f := forwardOf(t, s, "/api/v1/namespaces/a/services/web", "9")
	conn := dialForward(t, f)
	if got, err := io.ReadAll(conn); len(got) > 0 || err != nil {
		t.Errorf("a connection that is refused gives %q, %v", got, err)
	}
	eventually(t, s, func(all []forwardState) bool {
		return all[0].Failed == 1 && all[0].Error == "connection refused" && all[0].Ended == ""
	})
	for port, want := range map[string]string{"53": "TCP", "dns": "TCP", "none": "no container", "0": "no port", "": "no container"} {
		code, text, _ := roundTrip(t, s, "POST", "/forward", fmt.Sprintf(`{"path":"/api/v1/namespaces/a/pods/web","port":%q}`, port), "Authorization", bearer)
		testenv.False(t, code != http.StatusBadRequest || !strings.Contains(text, want), "port %q: %d %s", port, code, text)
	}
	for _, path := range []string{"/api/v1/nodes/n", "/api/v1/namespaces/a/pods/web/proxy", "/api/v1/namespaces/a/pods", "/metrics", "/apis/x.io/v1/namespaces/a/pods/web"} {
		if code, text, _ := roundTrip(t, s, "POST", "/forward", fmt.Sprintf(`{"path":%q,"port":"80"}`, path), "Authorization", bearer); code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
}

func TestStoppedForwardsAreClosed(t *testing.T) {
	api := &podAPI{t: t}
	s := consoleOf(t, api.ServeHTTP)
	h, _ := s.Config.Handler.(*Handler)
	f := forwardOf(t, s, "/api/v1/namespaces/a/pods/web", "80")
	conn := dialForward(t, f)
	eventually(t, s, func(all []forwardState) bool { return all[0].Open == 1 })
	if code, text, _ := roundTrip(t, s, "DELETE", "/forward/"+strconv.FormatInt(f.ID, 10), "", "Authorization", bearer); code != http.StatusOK {
		t.Errorf("stopping: %d %s", code, text)
	}
	if _, err := io.ReadAll(conn); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the connection of a forward that was stopped: %v", err)
	}
	if code, _, _ := roundTrip(t, s, "DELETE", "/forward/"+strconv.FormatInt(f.ID, 10), "", "Authorization", bearer); code != http.StatusNotFound {
		t.Errorf("stopping twice: %d", code)
	}

	h.forwards.poll = time.Millisecond
	f = forwardOf(t, s, "/api/v1/namespaces/a/pods/web", "80")
	api.gone.Store(true)
	eventually(t, s, func(all []forwardState) bool { return len(all) == 1 && all[0].Ended == "the pod was deleted" })
	awaitRefusal(t, f)

	api.gone.Store(false)
	h.forwards.poll = time.Hour
	f = forwardOf(t, s, "/api/v1/namespaces/a/pods/web", "80")
	dialForward(t, f)
	h.Close() // returns when all have ended
	awaitRefusal(t, f)
	if code, _, _ := roundTrip(t, s, "POST", "/forward", `{"path":"/api/v1/namespaces/a/pods/web","port":"80"}`, "Authorization", bearer); code != http.StatusServiceUnavailable {
		t.Errorf("a forward of a console that has ended: %d", code)
	}
}

// A pod that reads nothing keeps neither a forward nor the console from ending.
func TestForwardToAPodThatReadsNothingEnds(t *testing.T) {
	api := &podAPI{t: t}
	s := consoleOf(t, api.ServeHTTP)
	h, _ := s.Config.Handler.(*Handler)
	f := forwardOf(t, s, "/api/v1/namespaces/a/pods/web", "82")
	conn := dialForward(t, f)
	stuck := make(chan struct{})
	go func() {
		defer close(stuck)
		for {
			_ = conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
				return // the peer reads no more
			}
		}
	}()
	<-stuck
	h.Close() // returns
	awaitRefusal(t, f)
}

// awaitRefusal waits until nothing listens at a forward's port.
func awaitRefusal(t *testing.T, f forwardState) {
	t.Helper()
	var d net.Dialer
	testenv.Until(t, 2*time.Minute, "the port of a forward that has ended is closed", func() bool {
		conn, err := d.DialContext(t.Context(), "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(f.Local)))
		if err != nil {
			return true
		}
		_ = conn.Close()
		return false
	})
}

// An attacker who is a user opens forwards without end; the console must not have more than its bound, and forwards
// that ended make room.
func TestForwardsAreBounded(t *testing.T) {
	api := &podAPI{t: t}
	s := consoleOf(t, api.ServeHTTP)
	for range maxForwards {
		forwardOf(t, s, "/api/v1/namespaces/a/pods/web", "80")
	}
	const one = `{"path":"/api/v1/namespaces/a/pods/web","port":"80"}`
	if code, text, _ := roundTrip(t, s, "POST", "/forward", one, "Authorization", bearer); code != http.StatusServiceUnavailable {
		t.Errorf("one too many: %d %s", code, text)
	}
	h, _ := s.Config.Handler.(*Handler)
	h.forwards.list[3].stop("for a test")
	forwardOf(t, s, "/api/v1/namespaces/a/pods/web", "80")
	testenv.Equal(t, len(forwardsOf(t, s)), maxForwards, "forwards are kept:")
}

// What a pod's page leaves in a browser for its address must not be there for a console.
func TestConsoleHasNoPortOfForwards(t *testing.T) {
	inRange := testenv.Must(listenForward(t.Context()))(t)
	var lc net.ListenConfig
	other := testenv.Must(lc.Listen(t.Context(), "tcp4", "127.0.0.1:0"))(t)
	given := []net.Listener{inRange, other}
	l, err := listenBesideForwards(0, func() (net.Listener, error) {
		next := given[0]
		given = given[1:]
		return next, nil
	})
	if err != nil || l != other {
		t.Errorf("the console has %v, %v", l.Addr(), err)
	}
	_ = other.Close()
	testenv.Fails(t, testenv.Err(inRange.Accept()), "the port that was not taken is open")
}
