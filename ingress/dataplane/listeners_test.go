// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// listening is a socket, as an agent has it; the caller closes the descriptor.
func listening(t *testing.T) (address string, descriptor int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.NoError(t, err)
	defer l.Close()
	s := Socket{Listener: l}
	descriptor, err = s.duplicate()
	testenv.NoError(t, err)
	return l.Addr().String(), descriptor
}

// send sends a line with descriptors.
func (a *agent) send(c table.Change, descriptors ...int) {
	a.t.Helper()
	line := testenv.Must(json.Marshal(c))(a.t)
	testenv.NoError(a.t, table.Send(a.conn.(*net.UnixConn), append(line, '\n'), descriptors))
}

// startServing is a whole proxy whose sockets come from agents; what it returns ends it and returns what failed.
func startServing(t *testing.T) (socket string, end func() error) {
	t.Helper()
	p := mustNew(t)
	socket = filepath.Join(t.TempDir(), "s")
	l := testenv.Must(net.Listen("unix", socket))(t)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	ended := make(chan error, 2) // of both
	listeners := NewListeners(p, nil)
	go func() { ended <- (&Control{Proxy: p, Logger: quiet(), Listeners: listeners}).Serve(ctx, l) }()
	go func() { ended <- listeners.Serve(ctx) }()
	return socket, func() error {
		cancel()
		return errors.Join(<-ended, <-ended)
	}
}

// codeAt asks once, on a connection of its own.
func codeAt(address string) (int, error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get("http://" + address + "/")
	if err != nil {
		return 0, err
	}
	_ = res.Body.Close()
	return res.StatusCode, nil
}

func TestSocketsComeAndGoWithCommits(t *testing.T) {
	socket, end := startServing(t)
	a := dialAgent(t, socket)
	first, firstSocket := listening(t)
	second, secondSocket := listening(t)
	a.send(table.Change{Listen: []string{"s/http", "other/http"}}, firstSocket, secondSocket)
	a.commit(section(t, table.HostKey("s", ""), routed("a", "/")))
	if code, err := codeAt(first); code != http.StatusServiceUnavailable {
		t.Errorf("a site with a route without endpoints: %d, %v", code, err)
	}
	if code, err := codeAt(second); code != http.StatusNotFound {
		t.Errorf("a site without hosts: %d, %v", code, err)
	}
	closeAll([]int{firstSocket, secondSocket}) // the proxy has its own
	a.send(table.Change{Close: []string{"s/http"}})
	a.commit()
	if code, err := codeAt(first); err == nil {
		t.Errorf("a closed socket answers %d", code)
	}
	if code, err := codeAt(second); code != http.StatusNotFound {
		t.Errorf("the other socket after the first was closed: %d, %v", code, err)
	}
	testenv.Check(t, end())
}

// TestSocketChangesItsName: the agent keeps the socket, so that no connection is refused meanwhile.
func TestSocketChangesItsName(t *testing.T) {
	socket, end := startServing(t)
	a := dialAgent(t, socket)
	address, d := listening(t)
	a.send(table.Change{Listen: []string{"other/http"}}, d)
	a.commit(section(t, table.HostKey("s", ""), routed("a", "/")))
	a.send(table.Change{Close: []string{"other/http"}})
	a.send(table.Change{Listen: []string{"s/http"}}, d)
	a.commit()
	closeAll([]int{d})
	if code, err := codeAt(address); code != http.StatusServiceUnavailable {
		t.Errorf("the socket with another name: %d, %v", code, err)
	}
	testenv.Check(t, end())
}

// TestManySocketsAreHandedOver: more than one message of the kernel's carries.
func TestManySocketsAreHandedOver(t *testing.T) {
	socket, end := startServing(t)
	a := dialAgent(t, socket)
	const many = 600
	var want []string
	for i := range many {
		_, d := listening(t)
		name := fmt.Sprintf("ns:gateway:%d/http", i)
		want = append(want, name)
		a.send(table.Change{Listen: []string{name}}, d)
		closeAll([]int{d})
	}
	a.commit()
	a.send(table.Change{Sockets: true})
	r := &table.Receiver{Conn: a.conn.(*net.UnixConn)}
	var answer table.Response
	testenv.NoError(t, json.NewDecoder(r).Decode(&answer))
	descriptors, err := r.Take(many)
	testenv.Require(t, err == nil && slices.Equal(answer.Sockets, want), "%d sockets are named: %v", len(answer.Sockets), err)
	for i, d := range descriptors {
		s := testenv.Must(Inherit(answer.Sockets[i], d))(t)
		_ = s.Listener.Close()
	}
	testenv.Check(t, end()) // no socket has become one that blocks
}

// TestUncommittedSocketsAreClosed: the agent's end of the connection closes what it sent last.
func TestUncommittedSocketsAreClosed(t *testing.T) {
	socket, end := startServing(t)
	for _, names := range [][]string{{"s/http"}, {"no socket's"}, {"s/http", "s/https"}} { // the last names more than come
		a := dialAgent(t, socket)
		address, d := listening(t)
		a.send(table.Change{Listen: names}, d)
		closeAll([]int{d})
		_ = a.conn.(*net.UnixConn).CloseWrite()
		testenv.Fails(t, testenv.Err(a.r.ReadByte()), "%v is answered", names)
		if code, err := codeAt(address); err == nil {
			t.Errorf("%v: a socket that was not committed answers %d", names, code)
		}
	}
	if err := end(); err != nil && !strings.Contains(err.Error(), "closed") {
		t.Error(err)
	}
}
