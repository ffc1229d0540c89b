// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// sockets are the listening sockets for clients, or duplicates of them. While this process has some, connections that
// come while no proxy runs wait in the kernel's queue. They are bare descriptors, since an os.File would wake this
// process for each connection.
type sockets struct {
	descriptors []int
	names       []string
}

func (s *sockets) close() {
	if s == nil {
		return
	}
	for _, d := range s.descriptors {
		_ = unix.Close(d)
	}
	s.descriptors, s.names = nil, nil
}

// files are duplicates for a process that is started; the caller closes them.
func (s *sockets) files() ([]*os.File, error) {
	var out []*os.File
	for i, d := range s.descriptors {
		copied, err := unix.FcntlInt(uintptr(d), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeFiles(out)
			return nil, fmt.Errorf("duplicating the socket %s: %w", s.names[i], err)
		}
		out = append(out, os.NewFile(uintptr(copied), s.names[i]))
	}
	return out, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// addresses are where the sockets listen, by their names.
func (s *sockets) addresses() map[string][]netip.AddrPort {
	out := map[string][]netip.AddrPort{}
	for i, d := range s.descriptors {
		name, err := unix.Getsockname(d)
		if err != nil {
			continue
		}
		var at netip.AddrPort
		switch a := name.(type) {
		case *unix.SockaddrInet4:
			at = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
		case *unix.SockaddrInet6:
			at = netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
		}
		out[s.names[i]] = append(out[s.names[i]], at)
	}
	return out
}

// check reports what is no socket for clients. A proxy that was taken over may send any descriptor.
func (s *sockets) check() error {
	for i, d := range s.descriptors {
		name, err := unix.Getsockname(d)
		switch name.(type) {
		case *unix.SockaddrInet4, *unix.SockaddrInet6:
		default:
			return fmt.Errorf("what the ingress proxy sends as its socket %.50q is none: %w", s.names[i], err)
		}
	}
	return nil
}

// ports are those of the sockets, by the kinds of listeners, and those of Gateways by the names of the sockets.
func (s *sockets) ports() map[string]int {
	out := map[string]int{}
	if s == nil {
		return out
	}
	for name, at := range s.addresses() {
		out[strings.TrimPrefix(name, table.SiteIngress+"/")] = int(at[0].Port())
	}
	return out
}

// serve says whether the sockets listen for HTTP and HTTPS at just these addresses.
func (s *sockets) serve(at []netip.Addr) bool {
	if s == nil {
		return false
	}
	all := s.addresses()
	for _, kind := range []string{table.HTTP, table.HTTPS} {
		have := all[table.SiteIngress+"/"+kind]
		if len(have) != len(at) || len(have) == 0 {
			return false
		}
		for _, a := range have {
			if !slices.Contains(at, a.Addr()) || a.Port() != have[0].Port() {
				return false
			}
		}
	}
	return true
}

// closedWithin is how long a proxy that was asked to end may take to close its sockets.
const closedWithin = 2 * time.Second

// listenAll opens for each of the node's addresses one socket for HTTP and one for HTTPS. All addresses have the same
// ports: the usual ones, or others where another program has those. Where a proxy was ended for it, patient waits until
// that has closed its sockets.
func listenAll(at []netip.Addr, patient bool) (*sockets, error) {
	s := &sockets{}
	for name, port := range map[string]int{table.HTTP: table.NodeHTTPPort, table.HTTPS: table.NodeHTTPSPort} {
		name = table.SiteIngress + "/" + name
		err := s.listen(at, name, port)
		for end := time.Now().Add(closedWithin); patient && errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond) // the kernel has no event for a port that becomes free
			err = s.listen(at, name, port)
		}
		if err == nil {
			continue
		}
		if err := s.listen(at, name, 0); err != nil { // another program has the port
			s.close()
			return nil, err
		}
	}
	return s, nil
}

// at opens sockets at other addresses with the ports that s has, and duplicates those of s that are at one of these. A
// Gateway's port that another program has there is left out.
func (s *sockets) at(addresses []netip.Addr) (*sockets, error) {
	out := &sockets{}
	for name, have := range s.addresses() {
		if name == quicName { // each process has its own
			continue
		}
		port := int(have[0].Port())
		missing := slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool {
			return slices.Contains(have, netip.AddrPortFrom(a, uint16(port)))
		})
		err := out.listen(missing, name, port)
		if err != nil && ofGateway(name) {
			continue
		}
		if err != nil {
			out.close()
			return nil, err
		}
		at := 0
		for i, d := range s.descriptors {
			if s.names[i] != name {
				continue
			}
			if slices.Contains(addresses, have[at].Addr()) {
				copied, err := unix.FcntlInt(uintptr(d), unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					out.close()
					return nil, fmt.Errorf("duplicating the socket %s: %w", name, err)
				}
				out.descriptors, out.names = append(out.descriptors, copied), append(out.names, name)
			}
			at++
		}
	}
	return out, nil
}

func (s *sockets) listen(at []netip.Addr, name string, port int) error {
	var opened []net.Listener
	defer func() {
		for _, l := range opened {
			_ = l.Close() // the copies stay
		}
	}()
	for _, ip := range at {
		l, err := net.Listen("tcp", netip.AddrPortFrom(ip, uint16(port)).String())
		if err != nil {
			return fmt.Errorf("listening for the ingress: %w", err)
		}
		opened = append(opened, l)
		if tcp, ok := l.Addr().(*net.TCPAddr); ok {
			port = tcp.Port
		}
	}
	for _, l := range opened {
		raw, err := l.(syscall.Conn).SyscallConn()
		if err != nil {
			return fmt.Errorf("taking a socket for the proxy: %w", err)
		}
		var copied int
		var failure error
		if err := raw.Control(func(d uintptr) { copied, failure = unix.FcntlInt(d, unix.F_DUPFD_CLOEXEC, 0) }); err != nil ||
			failure != nil {
			return fmt.Errorf("duplicating a socket for the proxy: %w", errors.Join(err, failure))
		}
		s.descriptors, s.names = append(s.descriptors, copied), append(s.names, name)
	}
	return nil
}
