// SPDX-License-Identifier: Apache-2.0

// Package echo is servers that say their name, over TLS as servers of a cluster, and clients of these, for tests of
// what stands between them.
package echo

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// Patience is how long a client waits for an answer on a busy machine.
const Patience = 2 * time.Minute

// Server answers each line with its name and the line, over TLS as a server of the cluster.
type Server struct {
	Address  string
	Conns    chan net.Conn // those that it has accepted
	listener net.Listener
}

// New is a server of the cluster at an address of 127.0.0.1. It stops with the test.
func New(t *testing.T, name, address string) *Server {
	t.Helper()
	return NewOf(t, Ours, name, address, "127.0.0.1")
}

// NewOf has a certificate of that authority for a host.
func NewOf(t *testing.T, ca *testca.Authority, name, address, host string) *Server {
	t.Helper()
	config := Config(t, ca, host)
	l, err := net.Listen("tcp", testenv.Address(t, address)) // which may be listened on again
	testenv.NoError(t, err)
	s := &Server{Address: l.Addr().String(), listener: l, Conns: make(chan net.Conn, 100)}
	t.Cleanup(s.Stop)
	go testenv.Accept(l, func(c net.Conn) {
		s.Conns <- c
		go func() {
			c := tls.Server(c, config)
			defer func() { _ = c.Close() }()
			lines := bufio.NewReader(c)
			for {
				line, err := lines.ReadString('\n')
				if err != nil {
					return
				}
				_, _ = fmt.Fprintf(c, "%s %s", name, line)
			}
		}()
	})
	return s
}

// Ours is the cluster's authority, with its certificate in OursFile; Others are another cluster's.
var (
	Ours, Others *testca.Authority
	OursFile     string
)

// Main makes the authorities, runs the tests, and returns the process' exit code.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "echo")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	Ours, err = testca.New(dir)
	if err != nil {
		panic(err)
	}
	Others, err = testca.New(filepath.Join(dir, "others"))
	if err != nil {
		panic(err)
	}
	OursFile = filepath.Join(dir, "ca.crt")
	return m.Run()
}

// Config is that of a server with a certificate of an authority for a host.
func Config(t testing.TB, ca *testca.Authority, host string) *tls.Config {
	t.Helper()
	files := testenv.Must(ca.Issue(protocol.ServerName, host))(t)
	pair := testenv.Must(tls.LoadX509KeyPair(files.Cert, files.Key))(t)
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

// Stop is what the end of a process looks like.
func (s *Server) Stop() {
	s.StopAccepting()
	for {
		select {
		case c := <-s.Conns:
			c.Close()
		default:
			return
		}
	}
}

// StopAccepting leaves the connections open and takes no more.
func (s *Server) StopAccepting() { s.listener.Close() }

// Client holds one connection to a server.
type Client struct {
	*tls.Conn
	Lines *bufio.Reader
}

// NewClient is one on a connection. It trusts any server: who answers is what the tests are about.
func NewClient(c net.Conn) *Client {
	conn := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	return &Client{conn, bufio.NewReader(conn)}
}

// Ask says hi, and returns what the server says.
func (c *Client) Ask() (string, error) {
	if _, err := io.WriteString(c, "hi\n"); err != nil {
		return "", err
	}
	return c.Lines.ReadString('\n')
}

// Mute takes connections and says nothing: what a blocked process looks like, since its kernel accepts.
func Mute(t *testing.T, address string) string {
	t.Helper()
	l := testenv.Must(net.Listen("tcp", address))(t)
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// Ended wants the end of a client's connection.
func Ended(t *testing.T, c *Client) {
	t.Helper()
	if _, err := c.Lines.ReadString('\n'); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want the connection's end", err)
	}
}
