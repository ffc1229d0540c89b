// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// All sleeps of this file are of fake time.

// oneInUse is a balancer that knows the servers one and other, with a connection to the first. What is returned tells
// when that is closed. It is for a bubble of fake time.
func oneInUse(t *testing.T) (*Balancer, <-chan time.Time) {
	t.Helper()
	list, conns := newServerList(Options{Logger: slog.New(slog.DiscardHandler)}), &connTable{openConns: map[net.Conn]string{}}
	list.servers, list.lastUsed = []string{"one", "other"}, "one"
	b := &Balancer{serverList: list, connTable: conns, verifier: &verifier{list: list, conns: conns, handshakes: map[string]*runningHandshake{}}}
	client, up := net.Pipe()
	t.Cleanup(func() { client.Close() })
	b.openConns[up] = "one"
	closed := make(chan time.Time, 1) // one: it may never be asked for
	go func() {
		_, _ = client.Read(make([]byte, 1))
		closed <- time.Now()
	}()
	return b, closed
}

// leaves ends the test unless a server's connection is closed by now, or is not, as it should be.
func leaves(t *testing.T, closed <-chan time.Time, want bool, message string, args ...any) {
	t.Helper()
	left := false
	select {
	case <-closed:
		left = true
	default:
	}
	if left != want {
		t.Fatalf(message, args...)
	}
}

// checkPaused checks the server one while the process is paused for as long as late says.
func checkPaused(t *testing.T, b *Balancer, l *probeState, pause func(time.Duration), late time.Duration) {
	t.Helper()
	checked := make(chan struct{})
	go func() {
		defer close(checked)
		b.checkServer(t.Context(), "one", l)
	}()
	synctest.Wait()
	pause(late)
	<-checked
}

// pausedProcess gives a balancer a clock that goes on while the process is paused. What is returned pauses it.
func pausedProcess(b *Balancer) (pause func(time.Duration)) {
	var past atomic.Int64
	b.now = func() time.Time { return time.Now().Add(time.Duration(past.Load())) }
	return func(d time.Duration) { past.Add(int64(d)) }
}

func watching(t *testing.T, b *Balancer) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		b.watch(ctx)
	}()
	t.Cleanup(func() { cancel(); <-stopped })
	synctest.Wait() // it has begun
}

// lateRound is a second in which this machine is paused from just after its pings on, and wakes when both servers have
// answered: the answer of the other one is read before the balancer looks, that of the one in use after it.
func lateRound(b *Balancer, pause func(time.Duration), by time.Duration) {
	next := time.Now().Add(timers.Until(checkEvery))
	time.Sleep(time.Until(next) - 10*time.Millisecond)
	pause(by)
	b.Replied("other", true)
	time.Sleep(20 * time.Millisecond)
}

// TestLateProbesAreNotFailures: a machine that gets no processor time hears late, and looks late. No server is left for
// that.
func TestLateProbesAreNotFailures(t *testing.T) {
	for _, by := range []time.Duration{900 * time.Millisecond, 1500 * time.Millisecond, 4 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			b, closed := oneInUse(t)
			pause := pausedProcess(b)
			b.Replied("one", true)
			watching(t, b)
			for range 20 {
				lateRound(b, pause, by)
				synctest.Wait()
				time.Sleep(900 * time.Millisecond) // as late as the look was
				b.Replied("one", true)
			}
			leaves(t, closed, false, "a server that answers is left by a machine that is late by %v", by)
		})
	}
}

// TestDeadServerIsLeftOnSlowMachine: however late a machine is all the time, it leaves a server that is dead.
func TestDeadServerIsLeftOnSlowMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, closed := oneInUse(t)
		pause := pausedProcess(b)
		b.Replied("one", true)
		watching(t, b)
		const most = 2*(maxLateChecks+1) + 1
		for range most {
			lateRound(b, pause, time.Second)
		}
		synctest.Wait()
		leaves(t, closed, true, "after %d looks it is not left", most)
	})
}

// TestLateTimeoutsAreNotFailures: a question to a server that this machine itself gives up late says nothing of the
// server, nor of the way to it. If all of them do, the server is dead all the same.
func TestLateTimeoutsAreNotFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, closed := oneInUse(t)
		pause := pausedProcess(b)
		b.handshakes["one"] = &runningHandshake{done: make(chan struct{})} // its machine does not answer
		var l probeState
		asks := func(late time.Duration) {
			t.Helper()
			checkPaused(t, b, &l, pause, late)
			synctest.Wait()
		}
		asks(delayThreshold)
		testenv.False(t, l.failedProbes != 1 || !l.hostUnreachable, "a question that was left open does not count: %+v", l)
		l = probeState{}
		for i := range maxLateChecks {
			asks(time.Second)
			testenv.Require(t, l.failedProbes == 0 && !l.hostUnreachable, "question %d was given up late, and counts: %+v", i, l)
		}
		asks(time.Second)
		testenv.True(t, l.failedProbes == 1,
			"%d questions were given up late, and the next one does not count either: %+v", maxLateChecks, l)
		leaves(t, closed, false, "the server was left")
		asks(0)
		leaves(t, closed, true, "two questions were left open, and the server is not left")
	})
}

// TestAnswersDuringLateRequestAreReadFirst: what other servers have said while a question was late is read before what
// this one has. It is not left for that.
func TestAnswersDuringLateRequestAreReadFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, closed := oneInUse(t)
		pause := pausedProcess(b)
		b.Replied("one", true)
		b.handshakes["one"] = &runningHandshake{done: make(chan struct{})}
		time.Sleep(responsiveWindow)
		var l probeState
		checkPaused(t, b, &l, pause, time.Second)
		b.Replied("other", true)
		b.checkServer(t.Context(), "one", &l)
		synctest.Wait()
		leaves(t, closed, false, "the server was left")
	})
}

// TestDeadServerIsLeftDespiteLateRequests: a machine that is late in all that it asks, and hears no other server,
// leaves one that has answered before and is dead now.
func TestDeadServerIsLeftDespiteLateRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, closed := oneInUse(t)
		began := time.Now()
		b.now = func() time.Time { return began.Add(time.Since(began) * 6 / 5) } // checks are late by a fifth of a second, questions by two
		b.handshakes["one"] = &runningHandshake{done: make(chan struct{})}       // its machine does not answer
		b.Replied("one", true)
		watching(t, b)
		time.Sleep(5 * time.Minute) // fake time
		synctest.Wait()
		leaves(t, closed, true, "it is not left")
	})
}

// TestReachableOnlyAfterAnswer: that there is a way to a server again shows in its answer, not in that its silence does
// not count.
func TestReachableOnlyAfterAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, closed := oneInUse(t)
		pause := pausedProcess(b)
		b.handshakes["one"] = &runningHandshake{done: make(chan struct{})} // its machine does not answer
		b.Replied("one", true)
		time.Sleep(responsiveWindow) // fake time
		var l probeState
		states := func(late time.Duration) {
			t.Helper()
			checkPaused(t, b, &l, pause, late)
			synctest.Wait()
		}
		states(0)           // a question that counts
		states(time.Second) // one that does not
		states(0)           // heard, as it seems
		leaves(t, closed, false, "its connections are closed, as if there were a way to its machine again")
		testenv.False(t, l.failedProbes != 1 || l.lateProbes != 1 || !l.hostUnreachable, "what was found out is forgotten: %+v", l)
		b.Replied("one", true)
		states(0)
		leaves(t, closed, true, "there is a way again, and the connections of before stay")
		testenv.False(t, l.failedProbes != 0 || l.lateProbes != 0 || l.hostUnreachable, "it has answered: %+v", l)
	})
}
