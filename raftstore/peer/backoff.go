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
	// leastTimeout is the least time after which Linux's TCP retransmits what was not acknowledged. The time doubles
	// with each further retransmission.
	leastTimeout = 200 * time.Millisecond
	// failedTries is the number of retransmissions after which a connection is given up: the next one would come later
	// than a new connection takes. Of packets that are lost at random, three in a row are rare.
	failedTries = 2
)

// retransmitter is a connection that reports retransmissions itself, where the kernel does not. The connections of
// memnet do.
type retransmitter interface {
	// Retransmits returns how often the oldest unacknowledged data was retransmitted.
	Retransmits() int
}

// backsOff says whether data that is sent on the connection now waits for TCP's next retransmission, since packets were
// lost. A peer that is slow to read or to answer still acknowledges, and is not meant.
func (c *conn) backsOff(now time.Time) bool {
	if c.t.clock(now)-c.heard.Load() < int64(leastTimeout) {
		return false // the kernel need not be asked while answers arrive
	}
	return retransmits(c.Conn) >= failedTries
}

// retransmits returns how often the oldest unacknowledged data of c was retransmitted. It returns 0 for a closed
// connection, and for one about which nothing is known.
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
		// Retransmits is used and not Backoff, which also counts window probes to a reader whose buffer is full.
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Unacked > 0 {
			times = int(info.Retransmits)
		}
	})
	return times
}
