// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestStartTakesOverEarlierRuns: whatever an earlier run has left, the next one serves, with the same process where
// that is of use.
func TestStartTakesOverEarlierRuns(t *testing.T) {
	rewrite := func(n *testNode, change func(r *processList)) {
		r := testenv.Must(readProcesses(n.o.Dir))(n.t)
		change(&r)
		text := testenv.Must(json.Marshal(r))(n.t)
		testenv.NoError(n.t, os.WriteFile(processFile(n.o.Dir), text, 0o600))
	}
	for name, c := range map[string]struct {
		prepare func(n *testNode, k *supervisor)
		same    bool // the process goes on
		others  bool // other ports are fine
	}{
		"nothing is wrong": {func(*testNode, *supervisor) {}, true, false},
		"it has ended": {func(n *testNode, k *supervisor) {
			_ = syscall.Kill(k.current.PID, syscall.SIGKILL)
			eventually(n.t, "it is gone", func() bool { return len(n.processes()) == 0 })
		}, false, false},
		"its pid is another process' now": {func(n *testNode, k *supervisor) {
			_ = syscall.Kill(k.current.PID, syscall.SIGKILL)
			eventually(n.t, "it is gone", func() bool { return len(n.processes()) == 0 })
			otherProcess := exec.Command("sleep", "600")
			testenv.NoError(n.t, otherProcess.Start())
			n.t.Cleanup(func() {
				testenv.Check(n.t, otherProcess.Process.Signal(syscall.Signal(0)), "another program's process was ended")
				_ = otherProcess.Process.Kill()
				_ = otherProcess.Wait()
			})
			rewrite(n, func(r *processList) { r.Processes[0].PID = otherProcess.Process.Pid })
		}, false, false},
		"the record is half written": {func(n *testNode, k *supervisor) {
			testenv.NoError(n.t, os.WriteFile(processFile(n.o.Dir), []byte(`{"processes":[{"pid":`), 0o600))
		}, true, false},
		"the record is lost": {func(n *testNode, k *supervisor) { _ = os.Remove(processFile(n.o.Dir)) }, true, false},
		"no process listens at its control socket": {func(n *testNode, k *supervisor) {
			_ = os.Remove(filepath.Join(n.o.Dir, k.current.Socket))
		}, false, false},
		"it does not answer": {func(n *testNode, k *supervisor) { _ = syscall.Kill(k.current.PID, syscall.SIGSTOP) }, false, true},
		"another program has the ports": {func(n *testNode, k *supervisor) {
			ports := k.sockets.ports()
			k.release()
			_ = syscall.Kill(n.processes()[0], syscall.SIGKILL)
			eventually(n.t, "it is gone", func() bool { return len(n.processes()) == 0 })
			for _, port := range ports {
				// A process counts as gone when its first thread is; the sockets are closed with the last one.
				eventually(n.t, fmt.Sprintf("port %d is free", port), func() bool {
					l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
					if err == nil {
						n.t.Cleanup(func() { _ = l.Close() })
					}
					return err == nil
				})
			}
		}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTestNode(t)
			k := n.run()
			pid, url, ports := k.current.PID, k.url(), k.sockets.ports()
			c.prepare(n, k)
			k.release()
			if len(n.processes()) == 0 && !c.others {
				// A process counts as gone when its first thread is; the sockets are closed with the last one.
				for _, port := range ports {
					eventually(t, fmt.Sprintf("port %d is free", port), func() bool {
						l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
						if err == nil {
							testenv.Check(t, l.Close())
						}
						return err == nil
					})
				}
			}
			k = n.keeper()
			testenv.NoError(t, k.startProxy())
			if k.sockets == nil { // it is known by no answer, which takes half a minute; that is another test's
				k.current.close()
				k.current.beganAt = time.Now()
				p := k.current
				k.current = nil
				testenv.NoError(t, p.signal(syscall.SIGKILL))
				eventually(t, "it is gone", func() bool { return !p.alive() })
				testenv.NoError(t, k.start(true))
			}
			n.serve(k)
			testenv.Check(t, ask(fresh(), k.url()))
			testenv.False(t, (k.current.PID == pid) != c.same, "process %d serves after %d", k.current.PID, pid)
			testenv.False(t, k.url() != url && !c.others, "it serves at %s, before at %s", k.url(), url)
			eventually(t, "one process listens", func() bool { return slices.Equal(n.listening(), []int{k.current.PID}) })
			if sockets := controlSockets(n.o.Dir); !slices.Contains(sockets, k.current.Socket) {
				t.Errorf("its control socket %s is not among %v", k.current.Socket, sockets)
			}
		})
	}
}

// TestFirstVersionIsReplaced: a proxy that knows no question for its sockets is ended, and another one serves at its
// ports.
func TestFirstVersionIsReplaced(t *testing.T) {
	n := newTestNode(t)
	k := n.run()
	url, pid := k.url(), k.current.PID
	k.sockets.close() // as after an answer that did not come
	k.sockets = nil
	n.install("next")
	n.serve(k)
	testenv.False(t, k.url() != url || k.current.PID == pid, "process %d serves at %s, before %d at %s", k.current.PID, k.url(), pid, url)
	testenv.Check(t, ask(fresh(), k.url()))
	eventually(t, "one process is left", func() bool { return len(n.processes()) == 1 })
}

// TestProxyFollowsChangedLimits: another process with the new limits takes over, and none where they are the same, also
// where the record of the process is lost.
func TestProxyFollowsChangedLimits(t *testing.T) {
	n := newTestNode(t)
	k := n.run()
	url, pid := k.url(), k.current.PID
	k.release()
	testenv.NoError(t, os.Remove(processFile(n.o.Dir)))
	k = n.run()
	testenv.Equal(t, k.current.PID, pid, "without a change of limits the proxy is process")
	k.release()
	n.o.Memory, n.o.MaxConnections = 64<<20, 123
	k = n.run()
	testenv.False(t, k.url() != url || k.current.PID == pid, "process %d serves at %s, before %d at %s", k.current.PID, k.url(), pid, url)
	testenv.Check(t, ask(fresh(), k.url()))
	eventually(t, "one process is left", func() bool { return len(n.processes()) == 1 })
	pid = k.current.PID
	k.release()
	k = n.run() // it says its limits itself
	testenv.Equal(t, k.current.limits, table.Limits{Memory: 48 << 20, Connections: 123}, "its limits are")
	testenv.Equal(t, k.current.PID, pid, "after a restart of the agent the proxy is process")
	var held []net.Conn
	for range 123 / 2 { // half of them for one address
		conn := testenv.Must(net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")))(t)
		defer conn.Close()
		held = append(held, conn)
	}
	testenv.Check(t, ask(fresh(), k.url()))
	_ = held[0].SetReadDeadline(time.Now().Add(2 * time.Minute))
	if _, err := held[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the oldest of 62 idle connections: %v", err)
	}
}

// TestProxyFollowsChangedNodeAddresses: another process listens at the node's new addresses, and the old one drains.
func TestProxyFollowsChangedNodeAddresses(t *testing.T) {
	n := newTestNode(t)
	k := n.run()
	pid, ports := k.current.PID, k.sockets.ports()
	k.release()
	n.o.NodeIPs = append(n.o.NodeIPs, netip.MustParseAddr("127.0.0.2"))
	k = n.run()
	if k.current.PID == pid || !k.sockets.serve(n.o.NodeIPs) {
		t.Errorf("process %d listens at %v", k.current.PID, k.sockets.addresses())
	}
	testenv.True(t, maps.Equal(k.sockets.ports(), ports), "the ports are %v, and were %v", k.sockets.ports(), ports)
	for _, ip := range n.o.NodeIPs {
		testenv.Check(t, ask(fresh(), strings.Replace(k.url(), "127.0.0.1", ip.String(), 1)))
	}
	eventually(t, "one process listens", func() bool { return slices.Equal(n.listening(), []int{k.current.PID}) })
}

func TestRestartBackoffResetsAfterAMinute(t *testing.T) {
	var b backoff
	var got []time.Duration
	for _, lived := range []time.Duration{2 * time.Minute, 0, 0, 0, 0, 0, 0, 0, 0, time.Minute, 0} {
		got = append(got, b.nextWait(lived)/time.Second)
	}
	testenv.EqualSlices(t, got, []time.Duration{0, 1, 2, 4, 8, 16, 32, 60, 60, 0, 1}, "the waits are")
}

// TestProbeLeavesTableAndFindsStoppedProxy: an empty commit leaves the table as it is.
func TestProbeLeavesTableAndFindsStoppedProxy(t *testing.T) {
	n := newTestNode(t)
	k := n.run()
	for range 3 {
		testenv.Must(k.current.stats(t.Context()))(t)
	}
	testenv.Check(t, ask(fresh(), k.url()))
	ctx, cancel := context.WithCancel(t.Context())
	_ = syscall.Kill(k.current.PID, syscall.SIGSTOP)
	eventually(t, "all its threads are stopped", func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", k.current.PID))
		return len(threads) > 0 && !slices.ContainsFunc(threads, func(path string) bool {
			text, _ := os.ReadFile(path)
			return !strings.Contains(string(text), ") T ")
		})
	})
	cancel()
	testenv.Fails(t, testenv.Err(k.current.stats(ctx)), "a process that is stopped answers")
}

func TestProxysControlGroupIsLimited(t *testing.T) {
	read := func(parts ...string) string {
		text, err := os.ReadFile(filepath.Join(parts...))
		if err != nil {
			return err.Error()
		}
		return string(text)
	}
	touch := func(path string) {
		t.Helper()
		testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		testenv.NoError(t, os.WriteFile(path, nil, 0o644))
	}
	for version, files := range map[string]map[string]string{
		"v2": {"memory.max": "268435456", "memory.high": "251658240", "pids.max": "512", "cgroup.procs": "4711", "../cpu.weight": "20"},
		"v1": {"memory/memory.limit_in_bytes": "268435456", "memory/cgroup.procs": "4711", "pids/pids.max": "512", "pids/cgroup.procs": "4711", "cpu/cgroup.procs": "4711",
			"cpu/../cpu.shares": "204"},
	} {
		root, events := t.TempDir(), "memory.events"
		if version == "v2" {
			touch(filepath.Join(root, "cgroup.controllers"))
			touch(filepath.Join(root, "cgroup.procs"))
		} else {
			events = "memory/" + events
		}
		testenv.Fails(t, groups{root, defaultMemory}.addProcess("4711", 4711), "%s: there are no files to write, and no error", version)
		at := func(file string) string {
			if h, f, ok := strings.Cut(file, "/"); ok && h != ".." {
				touch(filepath.Join(root, h, "cgroup.procs"))
				return filepath.Join(root, h, cgroupName, "4711", f)
			}
			return filepath.Join(root, cgroupName, "4711", file)
		}
		for file := range files {
			touch(at(file))
		}
		testenv.Check(t, groups{root, defaultMemory}.addProcess("4711", 4711), "%s", version)
		for file, want := range files {
			testenv.Equal(t, read(at(file)), want, "%s: %s holds", version, file)
		}
		for text, want := range map[string]bool{"low 0\noom 3\noom_kill 0\n": false, "oom_kill 1\n": true} {
			testenv.NoError(t, os.WriteFile(at(events), []byte(text), 0o644))
			testenv.Equal(t, groups{root, defaultMemory}.wasKilled("4711"), want, "%s: %q says", version, text)
		}
	}
}

// TestGroupOfTheKernel moves a process to a real control group, where this machine lets a test make one.
func TestGroupOfTheKernel(t *testing.T) {
	cmd := exec.Command("cat") // waits for its input
	in := testenv.Must(cmd.StdinPipe())(t)
	defer in.Close()
	testenv.NoError(t, cmd.Start())
	name := fmt.Sprintf("test-%d", cmd.Process.Pid)
	defer groups{cgroupRoot, defaultMemory}.sweep()
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if err := (groups{cgroupRoot, defaultMemory}).addProcess(name, cmd.Process.Pid); err != nil {
		t.Skip(err)
	}
	testenv.Contains(t, string(testenv.Must(os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid)))(t)), "/"+cgroupName+"/"+name, "the process is in")
	testenv.False(t, groups{cgroupRoot, defaultMemory}.wasKilled(name), "it counts as ended for its memory")
}
