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
	// minTimeout is the least time after which Linux's TCP retransmits what was not acknowledged. The time doubles
	// with each further retransmission.
	minTimeout = 200 * time.Millisecond
	// failedTries is the number of retransmissions after which a connection is given up: the next one would come later
	// than a new connection takes. Of packets that are lost at random, three in a row are rare.
	failedTries = 2
	// idleTimeout is how long the kernel keeps a connection for calls on which the peer acknowledges nothing. It probes
	// an idle connection after probeAfter. The kernel's timers for such times are late by up to an eighth.
	idleTimeout, probeAfter = 10 * time.Second, 9 * time.Second
)

// retransmitter is a connection that reports retransmissions itself, where the kernel does not. The connections of
// memnet do.
type retransmitter interface {
	// Retransmits returns how often the oldest unacknowledged data was retransmitted.
	Retransmits() int
}

// prober is a connection that probes an idle peer itself, where the kernel does not. The connections of memnet do.
type prober interface {
	// EndAfterSilence ends the connection when the peer has been out of reach for so long.
	EndAfterSilence(time.Duration)
}

// endAfterSilence has the kernel end a connection on which the peer has acknowledged nothing for silence. gRPC's own
// keepalive does that by the wall clock: when that is set, it ends connections that work, or never those that do not.
// An error means that the connection has ended, or that the kernel has no such option. Then TCP's own time-outs hold.
func endAfterSilence(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if p, ok := c.(prober); ok {
		p.EndAfterSilence(idleTimeout)
		return
	}
	control(c, func(fd int) {
		for _, o := range []struct{ level, option, value int }{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(probeAfter / time.Second)},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int((idleTimeout - probeAfter) / time.Second)},
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(idleTimeout / time.Millisecond)}, // counts instead of a number of probes
		} {
			_ = unix.SetsockoptInt(fd, o.level, o.option, o.value)
		}
	})
}

// backsOff says whether data that is sent on the connection now waits for TCP's next retransmission, since packets were
// lost. A peer that is slow to read or to answer still acknowledges, and is not meant.
func (c *conn) backsOff(now time.Time) bool {
	if c.conns.clock(now)-c.lastRead.Load() < int64(minTimeout) {
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
	times := 0
	control(c, func(fd int) {
		// Retransmits is used and not Backoff, which also counts window probes to a reader whose buffer is full.
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Unacked > 0 {
			times = int(info.Retransmits)
		}
	})
	return times
}

// control calls f with the kernel's socket of a connection that has one and is not closed.
func control(c net.Conn, f func(fd int)) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := s.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}
