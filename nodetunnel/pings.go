// SPDX-License-Identifier: Apache-2.0

package nodetunnel

import (
	"encoding/binary"
	"errors"
	"time"
)

const (
	// maxPings limits the pings within a second. A peer sends one a second, and after a pause perhaps a few.
	maxPings = 20
	// frameHead is the length of a frame's header: version, type, flags (2), stream (4), length (4), as in yamux'
	// spec.md.
	frameHead = 12
	typeData  = 0
	typePing  = 2
)

var errPings = errors.New("too many pings: the peer is no node of this cluster's programs")

// pingLimit counts the pings that a peer sends. yamux starts a goroutine for each, which waits until the reply is
// written: a peer that sends many and reads nothing would use up all memory.
type pingLimit struct {
	head        [frameHead]byte
	have        int    // received bytes of the header
	body        uint32 // bytes of the frame's data that were not received yet
	windowStart time.Time
	count       int
}

// allow processes the next bytes and returns whether the peer keeps to the limit. It must be called from one goroutine.
func (p *pingLimit) allow(b []byte, now time.Time) bool {
	for len(b) > 0 {
		if skip := min(uint64(p.body), uint64(len(b))); skip > 0 {
			p.body -= uint32(skip)
			b = b[skip:]
			continue
		}
		n := copy(p.head[p.have:], b)
		p.have += n
		b = b[n:]
		if p.have < frameHead {
			return true
		}
		p.have = 0
		switch p.head[1] {
		case typeData:
			p.body = binary.BigEndian.Uint32(p.head[8:])
		case typePing:
			if now.Sub(p.windowStart) > time.Second {
				p.windowStart, p.count = now, 0
			}
			if p.count++; p.count > maxPings {
				return false
			}
		}
	}
	return true
}
