// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"io"
	"net"
	"net/http/httputil"
	"net/url"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// meter measures the CPU time of the whole process, which a loaded machine changes less than the time of the clock.
type meter struct {
	t     testing.TB
	from  time.Duration
	total time.Duration
}

func cpuTime(t testing.TB) *meter {
	m := &meter{t: t}
	m.resume()
	return m
}

func (m *meter) now() time.Duration {
	var use syscall.Rusage
	testenv.NoError(m.t, syscall.Getrusage(syscall.RUSAGE_SELF, &use))
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

func (m *meter) pause()  { m.total += m.now() - m.from }
func (m *meter) resume() { m.from = m.now() }

func (m *meter) report(b *testing.B) {
	m.pause()
	b.ReportMetric(float64(m.total.Microseconds())/float64(b.N), "cpu-µs/op")
}

const rawResponse = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"

// rawBackend answers each request without reading more of it than its end, so that its own CPU time is small.
func rawBackend(t testing.TB) string {
	return accepting(t, func(conn net.Conn) {
		defer conn.Close()
		for r := bufio.NewReader(conn); ; {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) == 2 {
				if _, err := io.WriteString(conn, rawResponse); err != nil {
					return
				}
			}
		}
	})
}

// BenchmarkHTTP1 sends requests on four connections. cpu-µs/op is of the client, the proxy and the backend together;
// "direct" is without a proxy, and "stock" has a ReverseProxy of the standard library in the place of ours. The proxy's
// own CPU time is the difference to "direct".
func BenchmarkHTTP1(b *testing.B) {
	backend := rawBackend(b)
	stock := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: backend})
	transport := mustNew(b).upstream.transport(false)
	transport.DialContext = new(net.Dialer).DialContext
	stock.Transport = transport
	for name, address := range map[string]string{
		"direct": backend,
		"proxy":  newFixture(b, Options{}, site(b, "", backend)...).http,
		"stock":  backendServer(b, stock.ServeHTTP),
	} {
		b.Run(name, func(b *testing.B) { benchmarkRequests(b, address) })
	}
}

func benchmarkRequests(b *testing.B, address string) {
	const clients = 4
	work := make(chan struct{}, clients) // so that clients seldom wait for the loop
	done := make(chan error, clients)
	cpu := cpuTime(b)
	for range clients {
		go func() { done <- requests(address, work) }()
	}
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	for range clients {
		testenv.NoError(b, <-done)
	}
	cpu.report(b)
}

// requests sends a request for each piece of work on one connection.
func requests(address string, work <-chan struct{}) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	const request = "GET /some/path?x=1 HTTP/1.1\r\nHost: example.org\r\nUser-Agent: bench\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n\r\n"
	for range work {
		if _, err := io.WriteString(conn, request); err != nil {
			return err
		}
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return err
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := r.Discard(13); err != nil {
			return err
		}
	}
	return nil
}
