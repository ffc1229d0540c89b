// SPDX-License-Identifier: Apache-2.0

package nodetunnel

import (
	"encoding/binary"
	"testing"
	"time"
)

func frame(kind byte, body int) []byte {
	b := make([]byte, frameHead+body)
	b[1] = kind
	binary.BigEndian.PutUint32(b[8:], uint32(body))
	for i := frameHead; i < len(b); i++ {
		b[i] = typePing // data that look like pings
	}
	if kind == typePing {
		return b[:frameHead]
	}
	return b
}

func TestPingsAreRateLimited(t *testing.T) {
	start := time.Unix(1000, 0)
	for _, piece := range []int{1, 5, frameHead, 1 << 20} {
		var p pingLimit
		feed := func(b []byte, at time.Time) bool {
			for len(b) > 0 {
				n := min(piece, len(b))
				if !p.allow(b[:n], at) {
					return false
				}
				b = b[n:]
			}
			return true
		}
		for second := range 3 {
			at := start.Add(time.Duration(second) * 2 * time.Second)
			for range maxPings {
				if !feed(frame(typeData, 1000), at) || !feed(frame(typePing, 0), at) {
					t.Fatalf("in pieces of %d: refused within the limit", piece)
				}
			}
		}
		if feed(frame(typePing, 0), start.Add(4*time.Second)) {
			t.Errorf("in pieces of %d: one too many within a second is taken", piece)
		}
	}
}
