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

	clientv3 "go.etcd.io/etcd/client/v3"
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

// BenchmarkRange lists 500 of 100,000 keys of 1 KB, and gets one.
func BenchmarkRange(b *testing.B) {
	s := openStore(b, Options{Dir: b.TempDir()})
	ctx, c, value := context.Background(), s.Client(), noise(1<<10)
	var all sync.WaitGroup
	for w := range 100 {
		all.Go(func() {
			for i := range 1000 {
				if _, err := c.Put(ctx, fmt.Sprintf("/bench/%03d/%03d", w, i), value); err != nil {
					b.Error(err)
				}
			}
		})
	}
	all.Wait()
	b.Run("list-500", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if _, err := c.KV.Get(ctx, "/bench/050/2", clientv3.WithRange("/bench/050/7")); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if _, err := c.Kubernetes.Get(ctx, "/bench/050/500", kubernetes.GetOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkWatch sends each write to a thousand watchers of its range while a
// thousand others watch something else.
func BenchmarkWatch(b *testing.B) {
	s := openStore(b, Options{Dir: b.TempDir()})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	c := s.Client()
	var all sync.WaitGroup
	for i := range 1000 {
		c.Watch(ctx, fmt.Sprintf("/idle/%d/", i), clientv3.WithPrefix())
		watch := c.Watch(ctx, "/busy/", clientv3.WithPrefix(), clientv3.WithPrevKV())
		all.Go(func() {
			for seen := 0; seen < b.N; {
				seen += len((<-watch).Events)
			}
		})
	}
	b.ResetTimer()
	for range b.N {
		if _, err := c.Put(ctx, "/busy/key", "x"); err != nil {
			b.Fatal(err)
		}
	}
	all.Wait()
	b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkWatchGRPC does so with a hundred watchers that share one connection
// and one stream, as etcd's client has it.
func BenchmarkWatchGRPC(b *testing.B) {
	s := openStore(b, Options{Dir: b.TempDir()})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	c, native, value := dial(b, s), s.Client(), noise(10<<10)
	const watchers = 100
	var all sync.WaitGroup
	for range watchers {
		watch := c.Watch(ctx, "/busy/", clientv3.WithPrefix())
		all.Go(func() {
			for seen := 0; seen < b.N; {
				seen += len((<-watch).Events)
			}
		})
	}
	b.ResetTimer()
	for range b.N {
		if _, err := native.Put(ctx, "/busy/key", value); err != nil {
			b.Fatal(err)
		}
	}
	all.Wait()
	b.ReportMetric(float64(b.N)*watchers/b.Elapsed().Seconds(), "events/s")
}
