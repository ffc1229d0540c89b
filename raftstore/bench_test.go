// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3/kubernetes"
)

// BenchmarkPut creates keys of 1 KB through the path that the API server
// takes, with real flushes, and reports latencies beside the rate.
func BenchmarkPut(b *testing.B) {
	for _, clients := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			putAll(b, openStore(b, Options{Dir: b.TempDir()}), clients)
		})
	}
}

// putAll makes b.N puts of 1 KB with so many clients of a server at a time.
func putAll(b *testing.B, s *Store, clients int) {
	ctx, value := context.Background(), []byte(noise(1<<10))
	var next atomic.Int64
	latencies := make([][]time.Duration, clients)
	var all sync.WaitGroup
	b.ResetTimer()
	for w := range clients {
		all.Go(func() {
			c := s.Client()
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				start := time.Now()
				resp, err := c.Kubernetes.OptimisticPut(ctx, fmt.Sprintf("/bench/%012d", i), value, 0, kubernetes.PutOptions{})
				if err != nil || !resp.Succeeded {
					b.Errorf("%v, %v", resp, err)
					return
				}
				latencies[w] = append(latencies[w], time.Since(start))
			}
		})
	}
	all.Wait()
	b.StopTimer()
	reportLatencies(b, slices.Concat(latencies...))
}

func reportLatencies(b *testing.B, all []time.Duration) {
	slices.Sort(all)
	at := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))].Microseconds()) }
	b.ReportMetric(float64(len(all))/b.Elapsed().Seconds(), "puts/s")
	b.ReportMetric(at(0.5), "p50-µs")
	b.ReportMetric(at(0.99), "p99-µs")
}
