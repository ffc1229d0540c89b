// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

const otherMachine = "192.0.2.2"

// machine is another machine with a backend, of which the link can be cut.
type machine struct {
	*netns.NS
	address string
}

// newMachine serves websockets that echo, and a stream of events that stays open at /events.
func newMachine(t *testing.T) machine {
	ns := netns.New(t)
	ns.Link(t, "machine", "uplink", []string{"192.0.2.1/24"}, []string{otherMachine + "/24"})
	websocket := websocketHandler(t, echo)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/events" {
			websocket(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "first")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	_ = s.Listener.Close()
	testenv.NoError(t, ns.Do(func() (err error) {
		s.Listener, err = net.Listen("tcp", otherMachine+":0")
		return err
	}))
	s.Start()
	t.Cleanup(s.CloseClientConnections) // Close would wait for connections whose link is cut
	t.Cleanup(func() { _ = s.Listener.Close() })
	return machine{ns, s.Listener.Addr().String()}
}

// cut takes the machine's link down, or up again: nothing that is sent arrives, and no connection is reset.
func (m machine) cut(t *testing.T, down bool) {
	t.Helper()
	testenv.NoError(t, m.Do(func() error {
		link, err := netlink.LinkByName("uplink")
		if err != nil {
			return err
		}
		if down {
			return netlink.LinkSetDown(link)
		}
		return netlink.LinkSetUp(link)
	}))
}

// TestTunnelEndsWithItsMachine: a websocket to a machine whose power was cut ends, whether something is sent on it or
// not. So does a stream of events.
func TestTunnelEndsWithItsMachine(t *testing.T) {
	for name, sends := range map[string]bool{"idle": false, "with data": true} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			f := newFixture(t, Options{UnresponsiveTimeout: 3 * time.Second}, site(t, "", m.address)...)
			conn, r := dialWebsocket(t, f, false, "late")
			expect(t, r, "late")
			m.cut(t, true)
			if sends {
				testenv.Must(io.WriteString(conn, "lost"))(t)
			}
			ends(t, conn, r)
		})
	}
	t.Run("events", func(t *testing.T) {
		m := newMachine(t)
		f := newFixture(t, Options{UnresponsiveTimeout: 3 * time.Second}, site(t, "", m.address)...)
		conn := testenv.Must(net.Dial("tcp", f.http))(t)
		defer conn.Close()
		testenv.Must(io.WriteString(conn, "GET /events HTTP/1.1\r\nHost: h\r\n\r\n"))(t)
		first := make([]byte, 16)
		testenv.Must(io.ReadFull(conn, first))(t)
		m.cut(t, true)
		ends(t, conn, conn)
	})
}

// ends waits until the proxy closes the connection of a client.
func ends(t *testing.T, conn net.Conn, r io.Reader) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, r); err != nil && os.IsTimeout(err) {
		t.Error("the connection is still open two minutes after the link was cut")
	}
}

// TestTunnelOutlivesAShortCut: what is sent while the link is cut arrives when it is back.
func TestTunnelOutlivesAShortCut(t *testing.T) {
	m := newMachine(t)
	f := newFixture(t, Options{UnresponsiveTimeout: 2 * patience}, site(t, "", m.address)...)
	conn, r := dialWebsocket(t, f, false, "late")
	expect(t, r, "late")
	m.cut(t, true)
	testenv.Must(io.WriteString(conn, "waits"))(t)
	m.cut(t, false)
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	expect(t, r, "waits")
}
