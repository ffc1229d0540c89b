// SPDX-License-Identifier: Apache-2.0

package nodetunnel

import (
	"context"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// streamsEach is how many streams BenchmarkOpenStream opens over one connection: a quarter of what a node allows.
const streamsEach = maxStreams / 4

// BenchmarkOpenStream measures what an open stream takes while nothing is said on it, as that of `kubectl logs -f`:
// both ends of the connection are in this process, and the node's kubelet is a TCP listener whose connections nobody
// reads here, so that it takes little. carried is what each stream has led each way before.
func BenchmarkOpenStream(b *testing.B) {
	for _, c := range []struct {
		name    string
		carried int
	}{{"new", 0}, {"after-64KiB", 64 << 10}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				openStreams(b, c.carried)
			}
		})
	}
}

func openStreams(b *testing.B, carried int) {
	b.Helper()
	kubelets, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer kubelets.Close()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	nodeEnd, serverEnd := net.Pipe()
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel() // before waiting
	n := echo()
	n.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, kubelets.Addr().String())
	}
	running.Go(func() { _ = n.Serve(ctx, nodeEnd) })
	s, err := NewSession(serverEnd)
	if err != nil {
		b.Fatal(err)
	}
	running.Go(func() { _ = s.Wait() })

	before := taken()
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for range streamsEach {
		stream, err := s.Dial(ctx, kubelet)
		if err != nil {
			b.Fatal(err)
		}
		target, err := kubelets.Accept()
		if err != nil {
			b.Fatal(err)
		}
		open = append(open, stream, target)
		for _, way := range [][2]net.Conn{{stream, target}, {target, stream}} {
			if err := carry(way[0], way[1], carried); err != nil {
				b.Fatal(err)
			}
		}
	}
	after := taken()
	per := func(after, before uint64) float64 { return (float64(after) - float64(before)) / streamsEach }
	b.ReportMetric(per(after.heap, before.heap), "heap-B/stream")
	b.ReportMetric(per(after.stacks, before.stacks), "stack-B/stream")
	b.ReportMetric(per(after.goroutines, before.goroutines), "goroutines/stream")
}

// carry brings some bytes from one end to the other.
func carry(from, to net.Conn, size int) error {
	sent := make(chan error, 1) // one: who sends need not wait for the reader
	go func() {
		_, err := from.Write(make([]byte, size))
		sent <- err
	}()
	if _, err := io.CopyN(io.Discard, to, int64(size)); err != nil {
		return err
	}
	return <-sent
}

type takes struct{ heap, stacks, goroutines uint64 }

// taken is what the process takes at rest.
func taken() takes {
	time.Sleep(100 * time.Millisecond) // goroutines that have opened a stream end, or begin to wait
	for range 3 {                      // the first one frees what the next ones find unused, pools among it
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return takes{m.HeapAlloc, m.StackInuse, uint64(runtime.NumGoroutine())}
}
