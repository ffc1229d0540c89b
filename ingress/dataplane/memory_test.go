// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// dialFrom dials from an address of this machine.
func dialFrom(t *testing.T, source, address string) net.Conn {
	t.Helper()
	conn := testenv.Must((&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}).Dial("tcp", address))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestMemoryIsForThoseWhoHaveLittle: a source that has much gets no more when memory is scarce and loses connections
// when it is short, and others are served.
func TestMemoryIsForThoseWhoHaveLittle(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	var used atomic.Int64
	f := newFixtureOfMemory(t, Options{MaxConnections: 160}, 16<<20, used.Load, site(t, "", backend)...)
	level := func(sixteenths int64) {
		used.Store(sixteenths<<20 + 1)
		f.limits.memory.readAt.Store(0)
	}
	const much, little = "127.0.0.2", "127.0.0.3"
	var greedy []net.Conn
	for range 20 {
		greedy = append(greedy, dialFrom(t, much, f.http))
	}
	waitUntil(t, "all are counted", func() bool { return f.stats.Connections.Load() == 20 })
	served := func(source string) bool {
		c := &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}).DialContext(ctx, network, address)
			}}}
		res, err := c.Get("http://" + f.http)
		if err == nil {
			_ = res.Body.Close()
		}
		return err == nil && res.StatusCode == http.StatusOK
	}
	for _, c := range []struct {
		level        int64
		much, little bool
	}{{sourcesLimited - 1, true, true}, {sourcesLimited, false, true}, {sourcesShed, false, true}, {requestsRefused, false, false}} {
		level(c.level)
		testenv.Equal(t, served(much), c.much, "with %d sixteenths in use the source that has much is served:", c.level)
		testenv.Equal(t, served(little), c.little, "with %d sixteenths in use the other source is served:", c.level)
	}
	level(0)
	closed := 0
	for _, conn := range greedy {
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			closed++
		}
	}
	testenv.True(t, closed != 0 && closed != len(greedy),
		"%d of %d connections of the source that has much were closed", closed, len(greedy))
}

// TestHeadersOfManySourcesMakeRoom: connections that are open already send headers without an end, each source on few
// of them. What they send while memory is short closes connections, though no new one comes.
func TestHeadersOfManySourcesMakeRoom(t *testing.T) {
	var used atomic.Int64
	f := newFixtureOfMemory(t, Options{MaxConnections: 160}, 16<<20, used.Load, site(t, "")...)
	var all []net.Conn
	for i := range 40 {
		conn := dialFrom(t, fmt.Sprintf("127.0.0.%d", 2+i%4), f.http)
		testenv.Must(io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nX-A: "))(t)
		all = append(all, conn)
	}
	waitUntil(t, "all are counted", func() bool { return f.stats.Connections.Load() == 40 })
	used.Store(requestsRefused << 20)
	waitUntil(t, "some are closed", func() bool {
		f.limits.memory.readAt.Store(0)
		for _, conn := range all {
			_, _ = io.WriteString(conn, "a") // some are closed
		}
		return f.stats.Connections.Load() < 40
	})
	testenv.True(t, f.stats.Connections.Load() > 0, "all were closed")
}

// TestNothingIsReceivedWithoutMemory: where closing connections of the heaviest source did not make room in time, each
// connection that receives something more ends, before the kernel ends the process with all of them.
func TestNothingIsReceivedWithoutMemory(t *testing.T) {
	var used atomic.Int64
	f := newFixtureOfMemory(t, Options{MaxConnections: 160}, 16<<20, used.Load, site(t, "")...)
	conn := dialFrom(t, "127.0.0.2", f.http)
	testenv.Must(io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nX-A: "))(t)
	waitUntil(t, "it is counted", func() bool { return f.stats.Connections.Load() == 1 })
	used.Store((requestsRefused + 1) << 20)
	f.limits.memory.readAt.Store(0)
	f.limits.shedAt.Store(time.Now().Add(time.Hour).UnixNano()) // nothing is shed
	testenv.Must(io.WriteString(conn, "a"))(t)
	waitUntil(t, "it is closed", func() bool { return f.stats.Connections.Load() == 0 })
}

// TestStreamsCountAsConnections: a connection of HTTP/2 has no more requests under way than connections of HTTP/1.1
// might.
func TestStreamsCountAsConnections(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	backend := backendServer(t, func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-release
	})
	f := newFixture(t, Options{MaxConnections: 8}, site(t, "", backend)...)
	c := client(t, f.https, "h2")
	answers := make(chan int, 5)
	for range 4 { // half of them
		go func() {
			status, _ := get(t, c, "https://a/")
			answers <- status
		}()
		<-arrived
	}
	if status, _ := get(t, c, "https://a/"); status != http.StatusServiceUnavailable {
		t.Errorf("one too many is answered with %d", status)
	}
	close(release)
	for range 4 {
		testenv.Equal(t, <-answers, http.StatusOK, "one is answered with")
	}
	go func() { <-arrived }()
	if status, _ := get(t, c, "https://a/"); status != http.StatusOK {
		t.Errorf("a later one is answered with %d", status)
	}
}

// TestHeadersOfManyFieldsAreRefused: 32 KB of short fields take ten times as much memory for as long as the request
// lasts.
func TestHeadersOfManyFieldsAreRefused(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	f := newFixture(t, Options{}, site(t, "", backend)...)
	for fields, want := range map[int]string{100: "HTTP/1.1 200", 300: "HTTP/1.1 431"} {
		var header strings.Builder
		for i := range fields {
			fmt.Fprintf(&header, "a%d: b\r\n", i)
		}
		if got := exchangeRaw(t, f.http, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"+header.String()+"\r\n"); !strings.HasPrefix(got, want) {
			t.Errorf("%d fields: %q", fields, got)
		}
	}
}

// TestGarbageIsNotNeeded: after a burst a client with many connections is served, and memory that lives counts.
func TestGarbageIsNotNeeded(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // the collector would run by itself after minutes
	backend := backendServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	const most = 512 << 20
	var other atomic.Int64 // bytes in use beside this process'
	f := newFixtureOfMemory(t, Options{MaxConnections: 32}, most, func() int64 { return other.Load() + runtimeMemory() }, site(t, "", backend)...)
	f.limits.memory.mu.Lock()
	f.limits.memory.collect = runtime.GC
	f.limits.memory.mu.Unlock()
	for range 4 { // more than a sixteenth
		dialFrom(t, "127.0.0.2", f.http)
	}
	waitUntil(t, "all are counted", func() bool { return f.stats.Connections.Load() == 4 })
	runtime.GC()
	burst := make([]byte, 64<<20)
	other.Store(most/16*12 - runtimeMemory()) // twelve sixteenths are in use, two of them by burst
	served := func() bool {
		f.limits.memory.readAt.Store(0)
		f.limits.memory.mu.Lock()
		f.limits.memory.nextCollect = time.Time{}
		f.limits.memory.mu.Unlock()
		c := clientAt(t, "127.0.0.2", f.http, "http1")
		res, err := c.Get("http://a/")
		if err == nil {
			_ = res.Body.Close()
		}
		return err == nil && res.StatusCode == http.StatusOK
	}
	testenv.False(t, served(), "it is served while the memory is needed")
	runtime.KeepAlive(burst)
	burst = nil //nolint:ineffassign,wastedassign // it becomes garbage
	testenv.True(t, served(), "it is refused for garbage")
}

// TestGarbageIsCollectedAtTimes: however often memory is asked about, a twentieth of the time is spent on garbage at
// most.
func TestGarbageIsCollectedAtTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var collected time.Duration
		took := 10 * time.Millisecond
		m := &memoryBudget{limit: 1600, read: func() int64 { return 1600 }, collect: func() {
			time.Sleep(took) // fake time
			collected += took
		}}
		for _, took = range []time.Duration{10 * time.Millisecond, 200 * time.Millisecond} {
			began := time.Now()
			collected = 0
			for time.Since(began) < time.Minute {
				testenv.True(t, m.aboveAfterGC(sourcesShed), "memory is not needed that lives")
				time.Sleep(time.Millisecond) // fake time
			}
			testenv.True(t, collected > 0 && collected <= time.Minute/collectShare+took, "collecting of %s each took %s of a minute", took, collected)
		}
	})
}
