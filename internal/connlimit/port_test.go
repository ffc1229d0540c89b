// SPDX-License-Identifier: Apache-2.0

package connlimit

import (
	"net"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestPortsAreListedWhileTheyListen: the list has a port from its opening until it is closed, with its bound and its
// connections. A port that is opened again at its address before the former listener is closed is listed once.
func TestPortsAreListedWhileTheyListen(t *testing.T) {
	wantList := func(when, want string) {
		t.Helper()
		if err := testutil.CollectAndCompare(Metrics{}, strings.NewReader(want)); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	wantList("at first", "")
	p := testenv.Must(Listen(t.Context(), "test", "tcp4", "127.0.0.1:0", &Table{Max: 2}))(t)
	l := p.Bounded(nil)
	var accepted []net.Conn
	for range 3 {
		c := testenv.Must(net.Dial("tcp", p.Addr().String()))(t)
		defer c.Close()
		accepted = append(accepted, testenv.Must(l.Accept())(t))
	}
	file := testenv.Must(p.File())(t)
	again := Keep("test", testenv.Must(net.FileListener(file))(t), &Table{})
	testenv.Check(t, file.Close())
	labels := `{address="` + p.Addr().String() + `",port="test"}`
	header := func(name, kind, help string) string {
		return "# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n" + name + labels
	}
	wantList("one with three connections", header("coracle_tcp_connections", "gauge", "Connections of a TCP port that count.")+" 2\n"+
		header("coracle_tcp_connections_closed_total", "counter", "Connections of a TCP port that were closed for newer ones.")+" 1\n"+
		header("coracle_tcp_connections_max", "gauge",
			"How many connections a TCP port may have that count: those of clients that have not authenticated.")+" 2\n")
	for _, c := range accepted {
		_ = c.Close() // one is closed already
	}
	testenv.Check(t, p.Close())
	testenv.Check(t, again.Close())
	wantList("at the end", "")
}

// TestRefusedSourcesAreClosedAtOnce: a connection from an address that is not admitted is closed and never served.
func TestRefusedSourcesAreClosedAtOnce(t *testing.T) {
	p := testenv.Must(Listen(t.Context(), "test", "tcp4", "127.0.0.1:0", &Table{Max: 2}))(t)
	defer p.Close()
	refused := testenv.Must(net.Dial("tcp", p.Addr().String()))(t)
	defer refused.Close()
	admitted := testenv.Must((&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", p.Addr().String()))(t)
	defer admitted.Close()
	l := p.Bounded(func(remote net.Addr) bool { return strings.HasPrefix(remote.String(), "127.0.0.2:") })
	c := testenv.Must(l.Accept())(t)
	defer c.Close()
	testenv.Equal(t, c.RemoteAddr().String(), admitted.LocalAddr().String(), "accepted:")
	testenv.Fails(t, testenv.Err(refused.Read(make([]byte, 1))), "the refused connection is open")
}
