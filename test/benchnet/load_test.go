//go:build bench

// SPDX-License-Identifier: Apache-2.0

package benchnet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// The load is our own: blocking sockets on threads that stay inside the client's namespace, and a server of the
// standard library in the same process. So the processor time of both ends is that of this process, which the machine's
// other load does not change much. What the kernel does for a packet on the way is in it, as it runs on the sender's
// thread where ends are joined by veth pairs; what other processes and kernel threads do is not.

const (
	echoPort = 7000 // answers what it reads, by TCP and UDP
	sinkPort = 7001 // takes everything
)

// serve runs a server inside a namespace until the test ends.
func serve(t testing.TB, in netns.Doer) *sink {
	s := &sink{}
	var closers []io.Closer
	var wg sync.WaitGroup
	err := in.Do(func() error {
		for port, handle := range map[int]func(net.Conn){echoPort: echo, sinkPort: s.drain} {
			l, err := net.Listen("tcp4", fmt.Sprint(":", port))
			if err != nil {
				return err
			}
			closers = append(closers, l)
			wg.Go(func() { testenv.Accept(l, func(c net.Conn) { go func() { defer c.Close(); handle(c) }() }) })
		}
		p, err := net.ListenPacket("udp4", fmt.Sprint(":", echoPort))
		if err != nil {
			return err
		}
		closers = append(closers, p)
		wg.Go(func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := p.(*net.UDPConn).ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				_, _ = p.(*net.UDPConn).WriteToUDPAddrPort(buf[:n], from)
			}
		})
		return nil
	})
	t.Cleanup(func() {
		for _, c := range closers {
			_ = c.Close()
		}
		wg.Wait()
	})
	testenv.NoError(t, err)
	return s
}

func echo(c net.Conn) {
	buf := make([]byte, 2048)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

type sink struct{ bytes atomic.Int64 }

func (s *sink) drain(c net.Conn) {
	buf := make([]byte, 256<<10)
	for {
		n, err := c.Read(buf)
		s.bytes.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// route is where load goes from and to, and who else works for it.
type route struct {
	from    netns.Doer
	to      netip.Addr
	sink    *sink
	through []*process
}

// used is the processor time of this process, and of those that a route leads through.
func (r route) used() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	sum := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	for _, p := range r.through {
		sum += p.cpu()
	}
	return sum
}

// clients runs a loop on threads of a namespace for a while. The loop returns when over is set.
func clients(in netns.Doer, n int, window time.Duration, loop func(over *atomic.Bool) error) error {
	var over atomic.Bool
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			errs[i] = in.Do(func() error {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				return loop(&over)
			})
		})
	}
	time.Sleep(window) // how long the load is measured
	over.Store(true)
	wg.Wait()
	return errors.Join(errs...)
}

// dial is a blocking socket that is connected, and gives up after ten seconds of silence.
func dial(kind int, to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	patience := unix.NsecToTimeval((10 * time.Second).Nanoseconds())
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience))
	if kind == unix.SOCK_STREAM {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})) // nothing is left of a closed one: ports come back at once
	}
	if err == nil {
		for {
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
			if err != unix.EINTR {
				break
			}
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connecting to %s: %w", to, err)
	}
	return fd, nil
}

func write(fd int, b []byte) (n int, err error) {
	for {
		if n, err = unix.Write(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}

func read(fd int, b []byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}

// stream sends as fast as it goes on one connection: Gbit/s that arrive, and processor time of both ends for each GB.
func (r route) stream(window time.Duration) (sample, error) {
	before, cpu, began := r.sink.bytes.Load(), r.used(), time.Now()
	err := clients(r.from, 1, window, func(over *atomic.Bool) error {
		fd, err := dial(unix.SOCK_STREAM, netip.AddrPortFrom(r.to, sinkPort))
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		buf := make([]byte, 128<<10)
		for !over.Load() {
			if _, err := write(fd, buf); err != nil {
				return err
			}
		}
		return nil
	})
	took, bytes := time.Since(began), float64(r.sink.bytes.Load()-before)
	return sample{"Gbit/s": bytes * 8 / 1e9 / took.Seconds(), "CPU ms/GB": milliseconds(r.used()-cpu) / (bytes / 1e9)}, err
}

// pingPong sends 64 bytes and waits for them, on as many connections at once.
func (r route) pingPong(kind int, port uint16, connections int, window time.Duration) (sample, error) {
	to := netip.AddrPortFrom(r.to, port)
	var mu sync.Mutex
	var all []float64
	cpu, began := r.used(), time.Now()
	err := clients(r.from, connections, window, func(over *atomic.Bool) error {
		fd, err := dial(kind, to)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var took []float64
		buf := make([]byte, 64)
		for !over.Load() {
			t := time.Now()
			if _, err := write(fd, buf); err != nil {
				return err
			}
			for n := 0; n < len(buf); {
				m, err := read(fd, buf[n:])
				if err != nil || m == 0 {
					return fmt.Errorf("waiting for the answer of %s: %w", to, err)
				}
				n += m
			}
			took = append(took, float64(time.Since(t).Nanoseconds())/1e3)
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, took...)
		return nil
	})
	return rates(all, time.Since(began), r.used()-cpu), err
}

// connect opens a connection, sends a byte, gets it back, and closes.
func (r route) connect(port uint16, at int, window time.Duration) (sample, error) {
	to := netip.AddrPortFrom(r.to, port)
	var mu sync.Mutex
	var all []float64
	cpu, began := r.used(), time.Now()
	err := clients(r.from, at, window, func(over *atomic.Bool) error {
		var took []float64
		buf := make([]byte, 1)
		for !over.Load() {
			t := time.Now()
			fd, err := dial(unix.SOCK_STREAM, to)
			if err != nil {
				return err
			}
			_, err = write(fd, buf)
			if err == nil {
				_, err = read(fd, buf)
			}
			if err = errors.Join(err, unix.Close(fd)); err != nil {
				return err
			}
			took = append(took, float64(time.Since(t).Nanoseconds())/1e3)
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, took...)
		return nil
	})
	return rates(all, time.Since(began), r.used()-cpu), err
}

func rates(micros []float64, took, cpu time.Duration) sample {
	n := float64(len(micros))
	if n == 0 {
		return sample{}
	}
	return sample{
		"/s": n / took.Seconds(), "CPU µs": float64(cpu.Microseconds()) / n,
		"p50 µs": quantile(micros, 0.5), "p99 µs": quantile(micros, 0.99),
	}
}

// prefixed names a sample's columns after what was measured.
func prefixed(name string, s sample, into sample) {
	for k, v := range s {
		into[name+" "+k] = v
	}
}
