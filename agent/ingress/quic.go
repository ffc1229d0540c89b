// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// A QUIC connection belongs to the process that accepted it, while packets arrive at the port of all processes. So each
// process has its own UDP sockets at the same port (SO_REUSEPORT). While one drains, a filter in the kernel gives it
// the packets with its sockets' mark, and the next process all others.

const (
	quicName = table.SiteIngress + "/" + table.QUIC
	// quicBuffer is how many bytes of packets wait in the kernel for a process. quic-go asks for that size, and lacks
	// the permission to set it.
	quicBuffer = 7 << 20
	// quicKeyBytes is the length of the node's secret.
	quicKeyBytes = 32
)

// addQUIC opens UDP sockets for HTTP/3. before are the sockets of the process that serves already, or nil. Without UDP
// sockets HTTP/1.1 and HTTP/2 are served.
func (k *supervisor) addQUIC(s, before *sockets) {
	if !k.http3 {
		return
	}
	err := s.listenQUIC(k.listenAddresses, before)
	if k.withoutQUIC = err != nil; k.withoutQUIC {
		k.log("ingress: HTTP/3 is not served, since its UDP sockets cannot be opened", "error", err)
	}
}

// guardedUDP returns the UDP ports on which the proxy listens.
func (k *supervisor) guardedUDP() []int {
	if port := k.sockets.ports()[table.QUIC]; port > 0 {
		return []int{port}
	}
	return nil
}

// setHTTP3 sets whether HTTP/3 is to be served.
func (k *supervisor) setHTTP3(http3 bool) {
	if k.http3 != http3 {
		k.http3, k.withoutQUIC = http3, false
	}
}

// serves reports whether the sockets are the wanted ones.
func (k *supervisor) serves(s *sockets) bool {
	return s.serve(k.listenAddresses) && (k.withoutQUIC || s.serveQUIC(k.listenAddresses) == k.http3)
}

// serveQUIC reports whether the sockets are for HTTP/3 at exactly these addresses.
func (s *sockets) serveQUIC(at []netip.Addr) bool {
	return sameAddresses(s.addresses()[quicName], at)
}

// listenQUIC opens a UDP socket at each address. The port is that of the sockets in before, if there are any. Otherwise
// it is the usual port, or any other if that one is in use.
func (s *sockets) listenQUIC(at []netip.Addr, before *sockets) error {
	port, count := uint16(table.NodeHTTPSPort), len(s.descriptors)
	old := map[netip.Addr]int{}
	if before != nil {
		seen := 0
		addresses := before.addresses()[quicName]
		for i, d := range before.descriptors {
			if before.names[i] == quicName {
				old[addresses[seen].Addr()], port = d, addresses[seen].Port()
				seen++
			}
		}
	}
	for _, try := range []uint16{port, 0} {
		var err error
		for _, ip := range at {
			var d int
			if d, err = openQUIC(netip.AddrPortFrom(ip, try), old[ip]); err != nil {
				break
			}
			s.descriptors, s.names = append(s.descriptors, d), append(s.names, quicName)
			if have := s.addresses()[quicName]; try == 0 && len(have) > 0 {
				try = have[0].Port()
			}
		}
		if err == nil {
			return nil
		}
		for _, d := range s.descriptors[count:] {
			_ = unix.Close(d)
		}
		s.descriptors, s.names = s.descriptors[:count], s.names[:count]
		if try == 0 || !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
	}
	return nil
}

// openQUIC opens a UDP socket. old is the descriptor of the present socket at that address, or 0 if there is none.
func openQUIC(at netip.AddrPort, old int) (d int, err error) {
	if old > 0 {
		if err := steerPackets(old); err != nil {
			return 0, fmt.Errorf("filtering packets for the proxy at %s: %w", at, err)
		}
	}
	family := unix.AF_INET6
	var address unix.Sockaddr = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	if at.Addr().Is4() {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	d, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("opening a UDP socket for HTTP/3: %w", err)
	}
	err = unix.SetsockoptInt(d, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	if err == nil && family == unix.AF_INET6 {
		err = unix.SetsockoptInt(d, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		_ = unix.SetsockoptInt(d, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, quicBuffer) // it works with less, too
		_ = unix.SetsockoptInt(d, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, quicBuffer)
		err = unix.Bind(d, address)
	}
	if err != nil {
		_ = unix.Close(d)
		return 0, fmt.Errorf("listening for HTTP/3 at %s: %w", at, err)
	}
	return d, nil
}

// steerPackets attaches a filter to a socket. Packets with the socket's mark go to the first socket at its address, and
// all others to the second one, as soon as it exists. The filter's result is a socket's index in the order of binding.
// The kernel ignores the filter where no socket has that index.
func steerPackets(first int) error {
	cookie, err := unix.GetsockoptUint64(first, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return err
	}
	const (
		load8, load16 = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, unix.BPF_LD | unix.BPF_H | unix.BPF_ABS
		equal, bits   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		result        = unix.BPF_RET | unix.BPF_K
	)
	mark := uint32(table.QUICMark(cookie))
	filter := []unix.SockFilter{ // offsets are those of RFC 8999
		{Code: load8, K: 0},
		{Code: bits, K: 0x80, Jf: 4},                          // a short header: jump to the seventh
		{Code: load8, K: 5},                                   // the length of the connection ID
		{Code: equal, K: table.QUICConnectionIDLength, Jf: 5}, // an ID that the client made: jump to the last
		{Code: load16, K: 6},                                  // of a long header
		{Code: equal, K: mark, Jt: 2, Jf: 3},                  //
		{Code: load16, K: 1},                                  // of a short header
		{Code: equal, K: mark, Jf: 1},                         //
		{Code: result, K: 0},                                  //
		{Code: result, K: 1},
	}
	return unix.SetsockoptSockFprog(first, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: uint16(len(filter)),
		Filter: &filter[0]})
}

// http3Port returns the UDP port of the Service for HTTP/3. It returns 0 where the Service has none, and HTTP/3 is not
// served.
func (n *Node) http3Port() uint16 {
	svc, err := n.o.Services.Lister().Services(metav1.NamespaceSystem).Get(table.Service)
	if err != nil {
		return 0
	}
	for _, p := range svc.Spec.Ports {
		if p.Name == table.QUIC && p.Protocol == corev1.ProtocolUDP {
			return uint16(p.Port)
		}
	}
	return 0
}

// putHTTP3 adds to a table what the proxy announces to clients about HTTP/3.
func (n *Node) putHTTP3(to table.Sections) {
	port := n.http3Port()
	if port == 0 {
		return
	}
	key, err := quicKey(n.o.Dir)
	if err == nil {
		err = to.Put(table.HTTP3Key(table.SiteIngress), table.HTTP3{Port: port, Key: key})
	}
	if err != nil {
		n.o.Logger.Warn("ingress: HTTP/3 is not advertised to clients", "error", err)
	}
}

// quicKey returns the node's secret, which exists as long as the folder.
func quicKey(dir string) ([]byte, error) {
	path := filepath.Join(dir, "quic.key")
	key, err := os.ReadFile(path)
	if err == nil && len(key) == quicKeyBytes {
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the key of QUIC: %w", err)
	}
	key = make([]byte, quicKeyBytes)
	_, _ = rand.Read(key) // never fails
	if err := atomicfile.Write(path, key, 0o600); err != nil {
		return nil, fmt.Errorf("writing the key of QUIC: %w", err)
	}
	return key, nil
}
