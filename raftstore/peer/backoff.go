// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"crypto/tls"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// leastTimeout is Linux' least time until it sends again what was not acknowledged. Each time after that is twice
	// as long.
	leastTimeout = 200 * time.Millisecond
	// failedTries is after how many of them a connection is left: the next one comes later than a new connection takes.
	// Of packets that are lost by chance, three in a row are rare.
	failedTries = 2
)

// retransmitter is a connection that can say itself what the kernel says of its own. Those of memnet can.
type retransmitter interface {
	// Retransmits is how often what was sent first of what is not acknowledged was sent again.
	Retransmits() int
}

// backsOff says whether what is sent on the connection now waits until TCP tries again, as packets were lost. A peer
// that is slow to read or to answer acknowledges all the same.
func (c *conn) backsOff(now time.Time) bool {
	if c.t.clock(now)-c.heard.Load() < int64(leastTimeout) {
		return false // the kernel need not be asked while answers come in
	}
	return retransmits(c.Conn) >= failedTries
}

// retransmits is 0 for a connection that has been closed, and for one of which nothing is known.
func retransmits(c net.Conn) int {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if r, ok := c.(retransmitter); ok {
		return r.Retransmits()
	}
	s, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return 0
	}
	times := 0
	_ = raw.Control(func(fd uintptr) {
		// Retransmits, and not Backoff, which counts as well how often a reader who is full was asked whether he has
		// room again.
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Unacked > 0 {
			times = int(info.Retransmits)
		}
	})
	return times
}
