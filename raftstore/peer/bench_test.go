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

func BenchmarkPipeline(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 512 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			from, to := pairFor(b)
			p, err := from.AppendEntriesPipeline(to.id, to.address)
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			answered := make(chan struct{})
			go func() {
				for range b.N {
					if err := (<-p.Consumer()).Error(); err != nil {
						b.Error(err)
						break
					}
				}
				close(answered)
			}()
			data := make([]byte, size)
			b.SetBytes(int64(size))
			b.ResetTimer()
			for i := range b.N {
				r := from.entries(1, uint64(i+1))
				r.Entries[0].Data = data
				if _, err := p.AppendEntries(r, new(raft.AppendEntriesResponse)); err != nil {
					b.Fatal(err)
				}
			}
			<-answered
		})
	}
}
