// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestLongConnectionIsOpenedLate: a target that takes a connection only after the patience with a request has not
// failed.
func TestLongConnectionIsOpenedLate(t *testing.T) {
	fd := testenv.Must(syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0))(t)
	defer syscall.Close(fd)
	testenv.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	if err := syscall.Listen(fd, 0); err != nil { // room for one connection
		t.Fatal(err)
	}
	at := testenv.Must(syscall.Getsockname(fd))(t)
	address := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: at.(*syscall.SockaddrInet4).Port}).String()
	first := testenv.Must(net.Dial("tcp", address))(t)
	defer first.Close()
	const patience = 10 * time.Millisecond
	ask := testenv.Must(asker("tcp://"+address, patience))(t)
	done := make(chan error, 1) // one result
	go func() { done <- ask() }()
	select {
	case err := <-done:
		t.Fatalf("the listener has no room, and the request ends with %v", err)
	case <-time.After(5 * patience):
	}
	for range 2 { // the first one takes the room
		c, _, err := syscall.Accept(fd)
		testenv.NoError(t, err)
		defer syscall.Close(c)
		go func() {
			b := make([]byte, 4<<10)
			for {
				n, err := syscall.Read(c, b)
				if n <= 0 || err != nil {
					return
				}
				for sent := b[:n]; len(sent) > 0; {
					n, err := syscall.Write(c, sent)
					if err != nil {
						return
					}
					sent = sent[n:]
				}
			}
		}()
	}
	testenv.Check(t, <-done)
}
