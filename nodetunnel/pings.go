// SPDX-License-Identifier: Apache-2.0

package nodetunnel

import (
	"encoding/binary"
	"errors"
	"time"
)

const (
	// mostPings is how many pings may come within a second. A peer sends one a second, and after a pause perhaps a few.
	mostPings = 20
	// frameHead is the length of a frame's head: version, type, flags (2), stream (4), length (4), as yamux' spec.md
	// has them.
	frameHead = 12
	typeData  = 0
	typePing  = 2
)

var errPings = errors.New("too many pings: the peer is no node of this cluster's programs")

// pingLimit counts the pings in what a peer sends. yamux starts a goroutine for each, which waits until the answer is
// written: who sends many and reads nothing would take all memory.
type pingLimit struct {
	head  [frameHead]byte
	have  int    // bytes of the head that have come
	body  uint32 // bytes of the frame's data that are still to come
	since time.Time
	count int
}

// allow looks at the next bytes and says whether the peer keeps to the limit. It is for one goroutine.
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
			if now.Sub(p.since) > time.Second {
				p.since, p.count = now, 0
			}
			if p.count++; p.count > mostPings {
				return false
			}
		}
	}
	return true
}
