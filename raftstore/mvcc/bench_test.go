// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// BenchmarkPut applies entries of 16 puts to 10,000 keys: with and without
// request ids, which 64 commands may still ask for.
func BenchmarkPut(b *testing.B) {
	for _, named := range []bool{false, true} {
		b.Run(fmt.Sprintf("id=%v", named), func(b *testing.B) {
			const batch, keys, waiting = 16, 10_000, 64
			s := New()
			var session uint64
			if named {
				session = open(b, s, 1, "server")
			}
			value := make([]byte, 100)
			var commands [batch]Command
			var seq uint64
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += batch {
				for j := range commands {
					seq++
					commands[j] = Command{
						Request: &pb.PutRequest{Key: fmt.Appendf(nil, "/registry/pods/%d", seq*7919%keys), Value: value},
						Session: session, Seq: seq, Floor: max(seq, waiting) - waiting,
					}
				}
				s.ApplyEntry(seq, 1, commands[:])
				s.Freeze()
				if seq%keys < batch {
					s.Apply(&pb.CompactionRequest{Revision: s.rev})
				}
			}
		})
	}
}

// BenchmarkDecode reads entries of 16 puts.
func BenchmarkDecode(b *testing.B) {
	for _, session := range []uint64{0, 1 << 20} {
		b.Run(fmt.Sprintf("id=%v", session != 0), func(b *testing.B) {
			const batch = 16
			entry := NewEntry(nil)
			for seq := range uint64(batch) {
				var err error
				r := &pb.PutRequest{Key: []byte("/registry/pods/some/name"), Value: make([]byte, 100)}
				if entry, err = AppendCommand(entry, Command{Request: r, Session: session, Seq: 1<<20 + seq, Floor: 1 << 20}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += batch {
				if _, err := DecodeEntry(entry); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
