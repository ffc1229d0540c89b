// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// Socket is a socket for clients with its name in table.EnvNames.
type Socket struct {
	Name     string
	Listener net.Listener // nil for the kind table.QUIC
	Packets  *net.UDPConn // nil for the other kinds
}

func (s *Socket) close() {
	if s.Packets != nil {
		_ = s.Packets.Close()
		return
	}
	_ = s.Listener.Close()
}

// Inherit makes a Socket of a descriptor, and closes the descriptor. The name consists of a site and a kind of
// listener.
func Inherit(name string, descriptor int) (Socket, error) {
	file := os.NewFile(uintptr(descriptor), name)
	defer file.Close() // the listener has a copy
	_, kind, ok := siteOf(name)
	if !ok {
		return Socket{}, fmt.Errorf("the agent names a socket %q, which is no site's", name)
	}
	s := Socket{Name: name}
	var err error
	if kind == table.QUIC {
		s.Packets, err = packets(file)
	} else {
		s.Listener, err = net.FileListener(file)
	}
	if err != nil {
		return Socket{}, fmt.Errorf("taking the socket %s from descriptor %d: %w", name, descriptor, err)
	}
	return s, nil
}

func packets(file *os.File) (*net.UDPConn, error) {
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, err
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		_ = conn.Close()
		return nil, errors.New("it is no UDP socket")
	}
	return udp, nil
}

func siteOf(name string) (site, kind string, ok bool) {
	at := strings.LastIndexByte(name, '/')
	if at <= 0 || !slices.Contains([]string{table.HTTP, table.HTTPS, table.QUIC}, name[at+1:]) {
		return "", "", false
	}
	return name[:at], name[at+1:], true
}

// Listeners are a proxy's sockets, which are added and removed while it serves. Methods may be called from several
// goroutines.
type Listeners struct {
	proxy *Proxy

	mu          sync.Mutex
	sockets     []*servedSocket
	serving     context.Context // nil before Serve
	stopServing context.CancelCauseFunc
	ended       bool
	running     sync.WaitGroup // counts sockets that are served, and those that drain after Remove
}

// servedSocket is a socket with the function that stops serving it. stop is nil before the socket is served.
type servedSocket struct {
	Socket
	stop context.CancelFunc
}

// NewListeners returns Listeners with the sockets that the process inherited.
func NewListeners(p *Proxy, sockets []Socket) *Listeners {
	l := &Listeners{proxy: p}
	l.Add(sockets)
	return l
}

// Serve serves all sockets, as Proxy.Serve does, until ctx is done or one of them fails. It waits until they have
// drained. It returns the failure's error.
func (l *Listeners) Serve(ctx context.Context) error {
	serving, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	l.mu.Lock()
	l.serving, l.stopServing = serving, fail
	for _, s := range l.sockets {
		l.start(s)
	}
	l.mu.Unlock()
	<-serving.Done()
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.running.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(serving)
}

// start serves a socket. The caller holds mu.
func (l *Listeners) start(s *servedSocket) {
	ctx, stop := context.WithCancel(l.serving)
	s.stop = stop
	site, kind, _ := siteOf(s.Name)
	l.running.Go(func() {
		defer stop()
		var err error
		if kind == table.QUIC {
			err = l.proxy.ServeHTTP3(ctx, site, s.Packets)
		} else {
			err = l.proxy.Serve(ctx, site, kind == table.HTTPS, s.Listener)
		}
		if err != nil && ctx.Err() == nil {
			l.stopServing(err)
		}
	})
}

// Add serves more sockets. Before Serve has begun it only keeps them; after Serve has ended it closes them.
func (l *Listeners) Add(sockets []Socket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range sockets {
		if l.ended {
			s.close() // it has accepted nothing
			continue
		}
		one := &servedSocket{Socket: s}
		l.sockets = append(l.sockets, one)
		if l.serving != nil {
			l.start(one)
		}
	}
}

// Remove closes the sockets of these names. Requests and tunnels on connections that were accepted may end first, as
// when Serve ends.
func (l *Listeners) Remove(names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sockets = slices.DeleteFunc(l.sockets, func(s *servedSocket) bool {
		if !slices.Contains(names, s.Name) {
			return false
		}
		if s.stop != nil {
			s.stop()
		}
		if s.stop == nil || s.Packets == nil { // draining needs the UDP socket
			s.close() // here, so that the port is free when this returns
		}
		return true
	})
}

// descriptors returns duplicates of the open sockets, with their names. The caller closes the duplicates.
func (l *Listeners) descriptors() (descriptors []int, names []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.sockets {
		d, err := s.duplicate()
		if errors.Is(err, net.ErrClosed) {
			continue
		}
		if err != nil {
			closeAll(descriptors)
			return nil, nil, fmt.Errorf("duplicating the socket %s for the agent: %w", s.Name, err)
		}
		descriptors, names = append(descriptors, d), append(names, s.Name)
	}
	return descriptors, names, nil
}

// duplicate duplicates the descriptor without net's File. os.File.Fd would make the socket blocking, for all
// duplicates, and a listener that blocks in the kernel cannot be closed.
func (s *Socket) duplicate() (int, error) {
	var has syscall.Conn = s.Packets
	if s.Packets == nil {
		l, ok := s.Listener.(syscall.Conn)
		if !ok {
			return 0, errors.New("it has no descriptor")
		}
		has = l
	}
	raw, err := has.SyscallConn()
	if err != nil {
		return 0, err
	}
	var copied int
	var failure error
	if err := raw.Control(func(d uintptr) { copied, failure = unix.FcntlInt(d, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return 0, err
	}
	return copied, failure
}

func closeAll(descriptors []int) {
	for _, d := range descriptors {
		_ = unix.Close(d)
	}
}
