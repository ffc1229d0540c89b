// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"fmt"
	"testing"

	"github.com/hashicorp/raft"
)

// These measure what the transport adds, over TLS on the loopback interface.

func pairFor(b *testing.B) (from, to *server) {
	g := newLoopback(b)
	return start(b, g, 0, "a.1", quiet), start(b, g, 1, "b.1", func(o *Options) { quiet(o); serving(o) })
}

func quiet(o *Options) { o.Logger = nil }

func BenchmarkHeartbeat(b *testing.B) {
	from, to := pairFor(b)
	for b.Loop() {
		if _, err := from.beat(to, 1); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	for _, size := range []int{16, 1 << 10, 128 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			from, to := pairFor(b)
			body := make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := from.Call(b.Context(), string(to.address), "who", body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEntries(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 512 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			from, to := pairFor(b)
			data := make([]byte, size)
			b.SetBytes(int64(size))
			for i := uint64(1); b.Loop(); i++ {
				r := from.entries(1, i)
				r.Entries[0].Data = data
				if err := from.AppendEntries(to.id, to.address, r, new(raft.AppendEntriesResponse)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
