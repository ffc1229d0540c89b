// SPDX-License-Identifier: Apache-2.0

package vip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

const (
	// probes is the number of probes. probeGap is the pause after each. RFC 5227 has three over some seconds, since its
	// machines may all have been switched on at once and its networks may be slow wireless ones. Here a user waits for
	// the result.
	probes   = 4
	probeGap = 300 * time.Millisecond
)

// InUseError means that another machine has an address.
type InUseError struct {
	Address netip.Addr
	By      net.HardwareAddr
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s is in use: the machine with the Ethernet address %s answers for it. Choose an address that no machine has and "+
		"that no DHCP server gives out", e.Address, e.By)
}

// Probe checks for about a second whether a machine of the network has an address. It returns an InUseError if so.
func Probe(ctx context.Context, p Interface, address netip.Addr) error {
	s, err := open(p, address)
	if err != nil {
		return err
	}
	defer func() { _ = s.close() }()
	n, buffer := p.neighbour(address), make([]byte, 2048)
	for range probes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.write(n.probe()); err != nil {
			return fmt.Errorf("asking who has %s on %s: %w", address, p.Name, err)
		}
		if err := s.setDeadline(time.Now().Add(probeGap)); err != nil {
			return err
		}
		for {
			frame, err := s.read(buffer)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return fmt.Errorf("asking who has %s on %s: %w", address, p.Name, err)
			}
			if h := n.hear(frame); h.conflicting != noHW {
				return &InUseError{Address: address, By: net.HardwareAddr(h.conflicting[:])}
			}
		}
	}
	return nil
}
