//go:build bench

// SPDX-License-Identifier: Apache-2.0

package benchnet

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/kubeproxy"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// process is a child in a namespace. It ends with the test, or with the benchmark.
type process struct {
	pid    int
	ns     netns.Doer
	key    string // WireGuard's, of a node
	stop   func()
	exited chan struct{}
}

// start runs a program inside a namespace. Its death signal follows the thread that started it, so that one waits for
// it.
func start(t testing.TB, ns netns.Doer, name string, cmd *exec.Cmd, onLine func(string)) *process {
	t.Helper()
	logFile := filepath.Join(t.TempDir(), name+".log")
	out := testenv.Must(os.Create(logFile))(t)
	cmd.Stderr = out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if onLine == nil {
		cmd.Stdout = out
	}
	p := &process{ns: ns, exited: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		_ = ns.Do(func() error {
			var lines *bufio.Scanner
			if onLine != nil {
				pipe, err := cmd.StdoutPipe()
				if err != nil {
					started <- err
					return err
				}
				lines = bufio.NewScanner(pipe)
			}
			err := cmd.Start()
			if err != nil {
				started <- err
				return err
			}
			p.pid = cmd.Process.Pid
			started <- nil
			for lines != nil && lines.Scan() {
				onLine(lines.Text())
			}
			return cmd.Wait()
		})
		close(p.exited)
	}()
	testenv.NoError(t, <-started, "starting %s", name)
	p.stop = func() {
		select {
		case <-p.exited:
			return
		default:
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.exited:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-p.exited
		}
	}
	t.Cleanup(func() {
		p.stop()
		_ = out.Close()
		if t.Failed() {
			b, _ := os.ReadFile(logFile)
			t.Logf("the end of %s's log:\n%s", name, b[max(0, len(b)-3000):])
		}
	})
	return p
}

// startNode runs a node's parts, and returns when it says that it is ready.
func startNode(t testing.TB, ns netns.Doer, c nodeConfig) *process {
	t.Helper()
	text := testenv.Must(json.Marshal(c))(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), nodeVar+"="+string(text))
	ready := make(chan string, 1)
	p := start(t, ns, c.Name, cmd, func(line string) {
		if key, ok := strings.CutPrefix(line, "ready"); ok {
			ready <- strings.TrimSpace(key)
		}
	})
	select {
	case p.key = <-ready:
	case <-p.exited:
		t.Fatalf("node %s ended", c.Name)
	case <-time.After(2 * time.Minute):
		t.Fatalf("node %s did not become ready", c.Name)
	}
	return p
}

// startKubeProxy runs upstream's program in nftables mode, with what else it has at its defaults.
func startKubeProxy(t testing.TB, ns netns.Doer, program, api, metrics string) *process {
	t.Helper()
	conf := testenv.Must(
		kubeproxy.Configuration{API: api, NodeName: "n1", ClusterCIDR: clusterCIDR.String(), Metrics: metrics}.Write(t.TempDir()))(t)
	return start(t, ns, "kube-proxy", exec.Command(program, "--config", conf), nil)
}

// cpu is what a process has used, with its children that have ended, such as nft.
func (p *process) cpu() time.Duration { return p.ticks(11, 15) }

// children is what those have used.
func (p *process) children() time.Duration { return p.ticks(13, 15) }

// ticks adds fields of /proc/PID/stat: utime, stime, cutime, cstime are 11 to 14 behind the name.
func (p *process) ticks(from, to int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	ticks := 0
	for _, f := range fields[from:to] {
		n, _ := strconv.Atoi(f)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100 on every architecture of ours
}

// anonMB is a process' memory that is in no file.
func (p *process) anonMB() float64 { return proc.StatusMB(p.pid, "RssAnon:") }

// peakMB is the most that a process has had resident, with what it has mapped of files.
func (p *process) peakMB() float64 { return proc.StatusMB(p.pid, "VmHWM:") }

// scrape reads a metric of a process' metrics page: the sum of the lines that begin like that.
func (p *process) scrape(addr, prefix string) (float64, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, network, addr string) (c net.Conn, err error) {
		err = p.ns.Do(func() (err error) { c, err = net.Dial(network, addr); return err })
		return c, err
	}}}
	resp, err := client.Get("http://" + addr + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	sum, found := 0.0, false
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if strings.HasPrefix(s.Text(), prefix) {
			fields := strings.Fields(s.Text())
			x, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err == nil {
				sum, found = sum+x, true
			}
		}
	}
	if !found {
		return 0, fmt.Errorf("no metric begins with %s", prefix)
	}
	return sum, nil
}

func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, what, f)
}
