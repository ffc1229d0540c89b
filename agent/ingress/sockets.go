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

// sockets are the listening sockets for clients, or duplicates of them. While this process has some, new connections
// wait in the kernel's queue when no proxy runs. They are bare descriptors, since an os.File would wake this process
// for each connection.
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

// files returns duplicates for a new process. The caller closes them.
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

// addresses returns the addresses of the sockets by their names.
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

// check returns an error for a descriptor that is no socket for clients. A proxy that an attacker controls may send any
// descriptor.
func (s *sockets) check() error {
	for i, d := range s.descriptors {
		name, err := unix.Getsockname(d)
		switch name.(type) {
		case *unix.SockaddrInet4, *unix.SockaddrInet6:
		default:
			return fmt.Errorf("the ingress proxy sent something other than a socket as %.50q: %w", s.names[i], err)
		}
	}
	return nil
}

// ports returns the ports of the sockets: by the kinds of listeners, and for Gateways by the names of the sockets.
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

// serve reports whether the sockets listen for HTTP and HTTPS at exactly these addresses.
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

// closeTimeout limits how long to wait until a proxy that was asked to end has closed its sockets.
const closeTimeout = 2 * time.Second

// listenAll opens for each of the node's addresses one socket for HTTP and one for HTTPS. All addresses have the same
// ports: the usual ones, or others where another program uses those. patient is set when a proxy was ended before:
// listenAll then waits until it has closed its sockets.
func listenAll(at []netip.Addr, patient bool) (*sockets, error) {
	s := &sockets{}
	for name, port := range map[string]int{table.HTTP: table.NodeHTTPPort, table.HTTPS: table.NodeHTTPSPort} {
		name = table.SiteIngress + "/" + name
		if s.listenPatiently(at, name, port, patient) == nil {
			continue
		}
		if err := s.listen(at, name, 0); err != nil { // another program has the port
			s.close()
			return nil, err
		}
	}
	return s, nil
}

// listenPatiently opens sockets as listen does. With patient it waits up to closeTimeout while the port is in use.
func (s *sockets) listenPatiently(at []netip.Addr, name string, port int, patient bool) error {
	err := s.listen(at, name, port)
	for end := time.Now().Add(closeTimeout); patient && errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond) // the kernel has no event for a port that becomes free
		err = s.listen(at, name, port)
	}
	return err
}

// movedTo returns sockets at the given addresses with the ports of s. It duplicates those that s has there already and
// opens the others. A Gateway's port that another program uses is left out.
func (s *sockets) movedTo(addresses []netip.Addr) (*sockets, error) {
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
			_ = l.Close() // the proxy gets duplicates, which stay open
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
