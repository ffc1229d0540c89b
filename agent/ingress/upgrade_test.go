// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// upgrade has five versions take over from each other, each found by another run of the agent, while eight clients ask
// about 200 times in a second: none may fail. url is where they ask, and drained waits for what becomes of an old one.
func (n *testNode) upgrade(k *supervisor, url func(*supervisor) string, ask func(client int) error, drained func(*supervisor)) *supervisor {
	n.t.Helper()
	var asked atomic.Int64
	end := make(chan struct{})
	var mu sync.Mutex
	var failures []error
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			pace := time.NewTicker(40 * time.Millisecond)
			defer pace.Stop()
			for {
				select {
				case <-end:
					return
				case <-pace.C:
				}
				if err := ask(i); err != nil {
					mu.Lock()
					failures = append(failures, err)
					mu.Unlock()
				}
				asked.Add(1)
			}
		})
	}
	at, pids := url(k), []int{k.current.PID}
	for i := range 5 {
		before := asked.Load()
		eventually(n.t, "forty requests were answered", func() bool { return asked.Load() >= before+40 })
		k.release() // the agent ends
		n.install(fmt.Sprintf("v%d", i+1))
		k = n.run()
		if slices.Contains(pids, k.current.PID) || url(k) != at {
			n.t.Fatalf("process %d serves at %s after %v at %s", k.current.PID, url(k), pids, at)
		}
		testenv.True(n.t, strings.HasSuffix(k.current.Program, fmt.Sprintf("-v%d", i+1)), "it runs %s", k.current.Program)
		pids = append(pids, k.current.PID)
		drained(k)
	}
	close(end)
	all.Wait()
	if len(failures) > 0 {
		n.t.Errorf("of %d requests %d failed, such as: %v", asked.Load(), len(failures), failures[0])
	}
	return k
}

// TestUpgradesFailNoRequest: clients ask on connections that are kept alive and on fresh ones.
func TestUpgradesFailNoRequest(t *testing.T) {
	n := newTestNode(t)
	k := n.run()
	url := k.url()
	echo := websocket(t, url)
	var clients []*http.Client
	for i := range 8 {
		clients = append(clients, fresh())
		if i%2 == 0 {
			clients[i] = &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}, Timeout: 2 * time.Minute}
		}
	}
	k = n.upgrade(k, (*supervisor).url, func(i int) error { return ask(clients[i], url) }, func(k *supervisor) {
		eventually(t, "the old one has closed its sockets", func() bool { return slices.Equal(n.listening(), []int{k.current.PID}) })
	})
	for _, c := range clients {
		c.CloseIdleConnections()
	}
	testenv.Check(t, echo(), "the websocket of the first version")
	// The second to the fifth end by themselves: their connections end with a response.
	eventually(t, "only the websocket's process drains", func() bool { return len(n.processes()) == 2 })
	k.release()
	if err := Remove(n.o.Dir); err != nil {
		t.Log(err) // nftables may not be there
	}
	if r, err := readProcesses(n.o.Dir); err != nil || len(r.Processes) > 0 {
		t.Errorf("the record holds %v, %v", r, err)
	}
}

// TestFailedTakeOverKeepsOldProxy: a version that does not start, or does not answer, changes nothing.
func TestFailedTakeOverKeepsOldProxy(t *testing.T) {
	for name, program := range map[string]string{"no program": "neither ELF nor a script", "ends at once": "#!/bin/false\n"} {
		t.Run(name, func(t *testing.T) {
			n := newTestNode(t)
			k := n.run()
			pid, url := k.current.PID, k.url()
			n.installFile("bad", []byte(program))
			testenv.Require(t, k.outdated(), "the version counts as the same")
			testenv.Fails(t, testenv.Err(k.takeOver(t.Context(), n.table)), "it has taken over")
			testenv.False(t, k.current.PID != pid || k.url() != url, "process %d serves at %s, was %d at %s", k.current.PID, k.url(), pid, url)
			testenv.Check(t, ask(fresh(), url))
			testenv.Equal(t, len(testenv.Must(readProcesses(n.o.Dir))(t).Processes), 1, "the record holds")
			n.install("good")
			n.serve(k)
			testenv.True(t, k.current.PID != pid, "a good version does not take over after a bad one")
		})
	}
}

// TestConnectionsWaitWhileProxyRestarts: while the proxy is gone connections wait, and the next answers them.
func TestConnectionsWaitWhileProxyRestarts(t *testing.T) {
	n := newTestNode(t)
	k := n.run()
	url, pid := k.url(), k.current.PID
	testenv.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	cause := <-k.current.connEnded
	eventually(t, "it is gone", func() bool { return len(n.processes()) == 0 })
	waiting := make(chan error, 10) // one from each request
	for range cap(waiting) {
		go func() { waiting <- ask(fresh(), url) }()
	}
	began := time.Now()
	t.Log(k.giveUp(cause))
	testenv.NoError(t, k.start(false))
	n.serve(k)
	t.Logf("another serves after %s", time.Since(began))
	for range cap(waiting) {
		testenv.Check(t, <-waiting)
	}
	testenv.False(t, k.url() != url || k.current.PID == pid, "process %d at %s after %d at %s", k.current.PID, k.url(), pid, url)
}

// killedAgent is what a step of the take-over throws to end the run there.
type killedAgent struct{}

// TestInterruptedTakeOverLeavesOneProxy: whatever of the agent, the old and the new proxy is killed between any two
// steps of a take-over, the next run ends with one proxy that listens, and answers.
func TestInterruptedTakeOverLeavesOneProxy(t *testing.T) {
	for _, at := range []string{"launch", "record", "connect", "table", "answer", "retire", "record drain"} {
		for _, victim := range []string{"agent", "old", "new", "agent and old", "agent and new", "all"} {
			t.Run(at+"/"+victim, func(t *testing.T) {
				t.Parallel()
				n := newTestNode(t)
				k := n.run()
				old := k.current.PID
				n.install("next")
				reached := false
				k.onStep = func(name string) {
					if name != at || reached {
						return
					}
					reached = true
					for _, pid := range n.processes() {
						if isOld := pid == old; victim == "all" || isOld && strings.Contains(victim, "old") || !isOld && strings.Contains(victim, "new") {
							_ = syscall.Kill(pid, syscall.SIGKILL)
							eventually(t, "it is gone", func() bool { return !slices.Contains(n.processes(), pid) })
						}
					}
					if victim == "all" || strings.Contains(victim, "agent") {
						panic(killedAgent{})
					}
				}
				func() {
					defer func() {
						if cause := recover(); cause != nil && cause != any(killedAgent{}) {
							panic(cause)
						}
					}()
					_, err := k.takeOver(t.Context(), n.table)
					t.Log("take-over:", err)
				}()
				testenv.Require(t, reached, "the step was not reached")
				k.release()
				k = n.run()
				eventually(t, "one process of the record listens", func() bool {
					left := unclaimed(n, k)
					return slices.Equal(slices.DeleteFunc(n.listening(), func(pid int) bool { return slices.Contains(left, pid) }), []int{k.current.PID})
				})
				for _, pid := range unclaimed(n, k) { // it accepts nothing, and ends within a minute
					testenv.True(t, slices.Contains([]string{"record", "connect"}, at), "process %d is left", pid)
				}
				for range 20 {
					testenv.Check(t, ask(fresh(), k.url()))
				}
				testenv.False(t, strings.HasSuffix(k.current.Program, "-v0"), "the old version serves")
			})
		}
	}
}

// unclaimed are processes that listen, and that no record holds: they were started, and their agent was killed before
// it could write that.
func unclaimed(n *testNode, k *supervisor) []int {
	return slices.DeleteFunc(n.listening(), func(pid int) bool {
		return slices.ContainsFunc(k.processes.Processes, func(e entry) bool { return e.PID == pid })
	})
}
