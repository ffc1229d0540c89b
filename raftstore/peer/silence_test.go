// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestLostPacketsAreResentOnNewConnections loses packets for a while, as TCP sees it: what waits on old
// connections for TCP to try again is sent on new ones instead.
func TestLostPacketsAreResentOnNewConnections(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		m.Backoff(true)
		a, b := start(t, m, 0, "a.1", serving), start(t, m, 1, "b.1", serving)
		entries := func() error {
			return a.AppendEntries(b.id, b.address, a.entries(1, 5), new(raft.AppendEntriesResponse))
		}
		testenv.NoError(t, entries())
		testenv.Must(a.beat(b, 1))(t)
		testenv.Must(a.Call(t.Context(), string(b.address), "echo", nil))(t)
		time.Sleep(time.Second) // fake time: the connections fall idle
		m.Partition([]string{"a"}, []string{"b"})
		began := time.Now()
		done := make(chan error)
		go func() { done <- entries() }()
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, _ = a.Call(ctx, string(b.address), "echo", nil)
			_, err := a.Call(t.Context(), string(b.address), "echo", nil) // fails or blocks by turns, as long as it lasts
			for err != nil {
				time.Sleep(10 * time.Millisecond) // between two calls, until one gets through
				_, err = a.Call(t.Context(), string(b.address), "echo", nil)
			}
			done <- nil
		}()
		const loss = 3100 * time.Millisecond // TCP's next try would be at 6.2 s
		time.AfterFunc(loss, m.HealAll)
		for {
			_, err := a.beat(b, 1)
			if err == nil && time.Since(began) >= loss {
				break
			}
			testenv.Require(t, err != nil, "a heartbeat came through")
			time.Sleep(50 * time.Millisecond) // the pace of heartbeats
		}
		for range 2 {
			testenv.NoError(t, <-done)
		}
		if took := time.Since(began); took > loss+a.opts.Timeout+200*time.Millisecond {
			t.Fatalf("took %v", took)
		}
	})
}

// TestAbandonedCallsLeaveNoStuckConnection: packets are lost in silence for so long that TCP's next try on the
// connection for calls is far away. Calls that were given up meanwhile leave no connection on which the next one would
// wait for that.
func TestAbandonedCallsLeaveNoStuckConnection(t *testing.T) {
	const loss = 20 * time.Second
	missed := func(t *testing.T, a *server, address, method string, lose func()) {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(200*time.Millisecond, lose)
		time.AfterFunc(650*time.Millisecond, func() { cancel(ErrLeaderMoved) })
		testenv.Fails(t, testenv.Err(a.Call(ctx, address, method, nil)), "a call was answered")
	}
	for name, during := range map[string]func(t *testing.T, a *server, address string, lose func()){
		"to a leader, until there is another one": func(t *testing.T, a *server, address string, lose func()) {
			lose()
			missed(t, a, address, "echo", func() {})
		},
		"to a leader that answered others meanwhile": func(t *testing.T, a *server, address string, lose func()) {
			time.AfterFunc(100*time.Millisecond, func() {
				testenv.Check(t, testenv.Err(a.Call(t.Context(), address, "echo", nil)))
			})
			missed(t, a, address, "hang", lose)
		},
		"to a leader that had to be connected": func(t *testing.T, a *server, address string, lose func()) {
			a.CloseCalls(address)
			missed(t, a, address, "hang", lose)
		},
		"short ones": func(t *testing.T, a *server, address string, lose func()) {
			lose()
			for range 30 {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				testenv.Fails(t, testenv.Err(a.Call(ctx, address, "echo", nil)), "a call was answered")
				cancel()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, func(t *testing.T, m memory) {
				m.Backoff(true)
				a, b := start(t, m, 0, "a.1", serving), start(t, m, 1, "b.1", serving)
				address := string(b.address)
				testenv.Must(a.Call(t.Context(), address, "echo", nil))(t)
				time.Sleep(time.Second)         // fake time: the connection falls idle
				lost := make(chan time.Time, 1) // once
				during(t, a, address, func() {
					m.Partition([]string{"a"}, []string{"b"})
					lost <- time.Now()
				})
				time.Sleep(time.Until((<-lost).Add(loss))) // fake time
				m.HealAll()
				began := time.Now()
				_, err := a.Call(t.Context(), address, "echo", nil)
				for err != nil && time.Since(began) < loss {
					time.Sleep(10 * time.Millisecond) // between two calls, until one gets through
					_, err = a.Call(t.Context(), address, "echo", nil)
				}
				if took := time.Since(began); err != nil || took > 200*time.Millisecond {
					t.Fatalf("after the loss a call took %v: %v", took, err)
				}
			})
		})
	}
}

// TestSnapshotSourceIsLost loses the server that sends a snapshot in silence: raft
// must get its main loop back.
func TestSnapshotSourceIsLost(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", nil)
		gaveUp := make(chan error, 1)
		b.setRespond(func(rpc raft.RPC) {
			_, err := io.Copy(io.Discard, rpc.Reader)
			gaveUp <- err
			rpc.Respond(&raft.InstallSnapshotResponse{}, err)
		})
		r, w := io.Pipe()
		sent := make(chan error)
		go func() {
			var resp raft.InstallSnapshotResponse
			sent <- a.InstallSnapshot(b.id, b.address, &raft.InstallSnapshotRequest{Size: 2 << 20}, &resp, r)
		}()
		testenv.Must(w.Write(make([]byte, 1<<20)))(t)
		time.Sleep(time.Second) // fake time: the follower has taken what came
		m.Partition([]string{"a"}, []string{"b"})
		began := time.Now()
		if err := <-gaveUp; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > snapshotSilence {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		testenv.Must(w.Write(make([]byte, 1<<20)))(t)
		_ = w.Close()
		if err := <-sent; err == nil || time.Since(began) > 2*snapshotStall {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		m.HealAll()
	})
}

// TestSnapshotTakesItsTime lets a snapshot take much longer than any timeout
// and then fails one that stands still.
func TestSnapshotTakesItsTime(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", nil)
		const size = 64 << 20
		stall := make(chan struct{})
		b.setRespond(func(rpc raft.RPC) {
			chunk, total := make([]byte, 1<<20), 0
			for {
				n, err := rpc.Reader.Read(chunk)
				total += n
				if err != nil {
					break
				}
				time.Sleep(10 * time.Millisecond) // hundreds of pieces
			}
			select {
			case <-stall:
			case <-time.After(snapshotStall):
			}
			rpc.Respond(&raft.InstallSnapshotResponse{Success: total == size}, nil)
		})
		began := time.Now()
		var r raft.InstallSnapshotResponse
		if err := a.InstallSnapshot(b.id, b.address, &raft.InstallSnapshotRequest{Size: size}, &r, bytes.NewReader(make([]byte, size))); err != nil || !r.Success {
			t.Fatalf("%+v, %v after %v", r, err, time.Since(began))
		}
		if took := time.Since(began); took < snapshotStall {
			t.Fatalf("took only %v", took)
		}
		m.Cut("a", "b")
		began = time.Now()
		err := a.InstallSnapshot(b.id, b.address, &raft.InstallSnapshotRequest{Size: size}, &r, bytes.NewReader(make([]byte, size)))
		if took := time.Since(began); err == nil || took > 2*snapshotStall {
			t.Fatalf("%v after %v", err, took)
		}
		close(stall)
		m.HealAll()
	})
}
