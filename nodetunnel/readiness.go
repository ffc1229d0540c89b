// SPDX-License-Identifier: Apache-2.0

package nodetunnel

import (
	"context"
	"io"
	"net/netip"
	"time"

	"github.com/hashicorp/yamux"
)

// readinessTarget is the address by which a server sends a node its readiness. It is in a block that is not routed (RFC
// 6666), so that no machine has it. A node that knows of no readiness refuses it like every address that is not its
// own.
var readinessTarget = netip.MustParseAddrPort("[100::c0ac:2]:1")

// Reasons why a server is not ready: clients should use another server that is.
const (
	// NoLeader means that the store has no leader that this server can use, so that it serves no writes.
	NoLeader = "no-leader"
	// ClockOff means that the server's clock is wrong, so that it refuses valid certificates.
	ClockOff = "clock-off"
)

// ReportReadiness sends the node the present reason why this server is not ready, empty if it is, unless the node has
// it already. It returns when the node has processed it. Concurrent calls are made one after the other. The error of a
// node that knows of no readiness wraps ErrRefused.
func (s *Session) ReportReadiness(present func() string) error {
	s.reporting.Lock()
	defer s.reporting.Unlock()
	reason := present()
	if reason == s.reported {
		return nil
	}
	c, err := s.Dial(context.Background(), readinessTarget) // openTimeout limits it
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(openTimeout)); err != nil {
		return err
	}
	if err := writeMessage(c, reason); err != nil {
		return err
	}
	s.reported = reason
	_, err = io.Copy(io.Discard, c) // until the node closes it
	return err
}

// serveReadiness receives a server's readiness. The stream's deadline is set.
func (n Node) serveReadiness(stream *yamux.Stream) {
	if writeMessage(stream, "") != nil {
		return
	}
	if reason, err := readMessage(stream, maxReason); err == nil {
		n.Readiness(reason)
	}
}
