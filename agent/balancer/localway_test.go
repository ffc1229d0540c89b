// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const localServer = "192.0.2.1:6443"

func watchedIs(t *testing.T, b *Balancer, what string, servers ...string) {
	t.Helper()
	testenv.EqualSlices(t, b.Watched(), servers, "%s: connections to", what)
}

// TestNodeWithoutLocalWayIsNotHeard: where connections to the local address never arrive, servers are not to hear the
// node, whether they are refused, dropped in silence, or taken by another program, and whether older ones are open or
// not. That takes no more than 6 s after a request has failed. Where they arrive and servers fail, servers are to hear
// it.
func TestNodeWithoutLocalWayIsNotHeard(t *testing.T) {
	failed := errors.New("the API does not answer")
	for name, dial := range map[string]func(ctx context.Context) (net.Conn, error){
		"refused":         func(context.Context) (net.Conn, error) { return nil, errors.New("connection refused") },
		"dropped":         func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() },
		"another program": func(context.Context) (net.Conn, error) { c, _ := net.Pipe(); return c, nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &Balancer{
					o: Options{Logger: slog.New(slog.DiscardHandler)}, servers: []string{localServer},
					named: map[string]bool{}, excluded: map[string]bool{}, quiet: make(chan struct{}, 1), arrived: make(chan struct{}),
				}
				ctx := t.Context()
				b.dialLocal = dial
				left := b.arrive() // it is open, and nothing gets through any more
				began := time.Now()
				b.asked(ctx, failed)
				watchedIs(t, b, "nothing arrives")
				if took := time.Since(began); took > lostAfter*probeTimeout+(lostAfter-1)*listRetry {
					t.Errorf("that took %s", took)
				}
				b.asked(ctx, failed)
				watchedIs(t, b, "nothing arrives still")
				left()
				select {
				case <-b.quiet:
				default:
					t.Error("the last connection ended, and nothing asks why")
				}
				b.asked(ctx, nil)
				watchedIs(t, b, "a request succeeds", localServer)

				b.asked(ctx, failed)
				watchedIs(t, b, "nothing arrives again")
				b.dialLocal = func(context.Context) (net.Conn, error) {
					c, _ := net.Pipe()
					b.arrive()()
					return c, nil
				}
				b.asked(ctx, failed)
				watchedIs(t, b, "connections arrive, and the servers do not answer them", localServer)
			})
		})
	}
}

// TestOneProbeIsNotEnough: one that fails, and the next one arrives, is nothing.
func TestOneProbeIsNotEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Balancer{
			o: Options{Logger: slog.New(slog.DiscardHandler)}, servers: []string{localServer},
			quiet: make(chan struct{}, 1), arrived: make(chan struct{}),
		}
		probes := 0
		b.dialLocal = func(context.Context) (net.Conn, error) {
			if probes++; probes == 1 {
				return nil, errors.New("connection refused")
			}
			b.arrive()()
			c, _ := net.Pipe()
			return c, nil
		}
		b.asked(t.Context(), errors.New("the API does not answer"))
		if watchedIs(t, b, "the second one arrives", localServer); probes != 2 {
			t.Errorf("probed %d times", probes)
		}
	})
}

// TestProbeReachesListeningAddress: a probe of a real address arrives where it is served, and not where nothing is
// accepted.
func TestProbeReachesListeningAddress(t *testing.T) {
	b := testenv.Must(New(t.Context(), Options{
		Address: "127.0.0.1:0", File: filepath.Join(t.TempDir(), "servers.json"), Server: "127.0.0.1:1",
		ServerCAFile: oursFile, Logger: slog.New(slog.DiscardHandler),
	}))(t)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	testenv.False(t, b.reached(short), "nothing is accepted, and a probe arrives")
	stop := testenv.Run(t, b.Run)
	testenv.Until(t, patience, "a probe arrives", func() bool { return b.reached(t.Context()) })
	stop()
}
