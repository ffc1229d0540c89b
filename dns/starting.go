// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/pkg/transport"
)

// starts has the starting of each Server of this process by its loop name, while it starts CoreDNS. CoreDNS' registry
// belongs to the process.
var starts sync.Map // of string and *starting

// starting is a start of CoreDNS, or a trial of one, which ends before anything serves. CoreDNS opens its sockets one
// after the other and closes none of them when one cannot be opened. Those would share the port with the sockets of the
// next attempt, and some of the queries would go to sockets without a reader. So all addresses are tried before.
type starting struct {
	trial           bool
	replacedSockets map[string]bool // by network and address: sockets of the instance that is replaced
	// anySocket leaves the addresses unchecked.
	anySocket bool

	blocks, checked int // server blocks
}

var (
	// errTried ends a trial of a configuration that works.
	errTried = errors.New("the configuration works")
	// errSocket means that an address of a server block does not exist on this machine, or its port is in use.
	errSocket = errors.New("it cannot listen")
)

// newStarting prepares a start that replaces the running instance, which may be nil.
func newStarting(running *caddy.Instance) *starting {
	s := &starting{replacedSockets: map[string]bool{}}
	if running != nil {
		for _, server := range running.Servers() {
			for _, at := range []net.Addr{server.Addr(), server.LocalAddr()} {
				if at != nil {
					s.replacedSockets[at.Network()+" "+at.String()] = true
				}
			}
		}
	}
	return s
}

// checkAtStartup checks the addresses of a server block after all of the configuration has been read, and before
// CoreDNS opens its first socket. The last block ends a trial.
func (s *starting) checkAtStartup(c *caddy.Controller) {
	s.blocks++
	config, keys := dnsserver.GetConfig(c), c.ServerBlockKeys
	c.OnStartup(func() error {
		for _, key := range keys {
			protocol, _, port, err := dnsserver.SplitProtocolHostPort(key)
			if err != nil {
				return err
			}
			for _, host := range config.ListenHosts {
				if err := s.canListen(protocol, host, port); err != nil {
					return fmt.Errorf("%w: %w", errSocket, err)
				}
			}
		}
		if s.checked++; s.trial && s.checked == s.blocks {
			return errTried
		}
		return nil
	})
}

// canListen returns an error if an address does not exist, or another program uses its port.
func (s *starting) canListen(protocol, host, port string) error {
	if s.anySocket {
		return nil
	}
	if host == "" {
		host = netip.IPv6Unspecified().String()
	}
	at := net.JoinHostPort(host, port)
	packets := protocol == transport.QUIC || protocol == transport.HTTPS3
	if streams := !packets; streams && !s.replacedSockets["tcp "+at] {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	if packets = packets || protocol == transport.DNS; packets && !s.replacedSockets["udp "+at] {
		l, err := net.ListenPacket("udp", at)
		if err != nil {
			return err
		}
		return l.Close()
	}
	return nil
}

// checkStart returns the error that a start with these sections would have. CoreDNS reads all of the configuration and
// opens no socket.
func (s *Server) checkStart(st *starting, resolvers []netip.AddrPort, sections customConfig) error {
	extra, err := s.render(sections)
	if err != nil {
		return err
	}
	st.trial, st.blocks, st.checked = true, 0, 0
	starts.Store(loopName(s.o.id), st)
	defer starts.Delete(loopName(s.o.id))
	instance, err := caddy.Start(caddy.CaddyfileInput{
		Filepath: "Corefile", Contents: []byte(corefile(s.o, resolvers, extra)), ServerTypeName: "dns",
	})
	stop(instance) // what plugins started
	if errors.Is(err, errTried) {
		return nil
	}
	return err
}
