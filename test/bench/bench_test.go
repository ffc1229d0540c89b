//go:build bench

// SPDX-License-Identifier: Apache-2.0

// Package bench measures coracle beside upstream's separate processes, one after the other in the same run, each on a
// machine of namespaces of its own with the same image, client and load. It prints and never judges.
//
// CORACLE_UPSTREAM names the folder in which make upstream has built upstream's programs. CORACLE_BENCH_QUICK shortens
// every window.
package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { harness.Main(m) }

// figure is one measured number; lower is better unless more says otherwise.
type figure struct {
	name, unit string
	value      float64
}

// figures keeps the order in which they were measured.
type figures struct{ list []figure }

func (f *figures) add(name, unit string, v float64) { f.list = append(f.list, figure{name, unit, v}) }

func (f *figures) get(name string) (float64, bool) {
	for _, x := range f.list {
		if x.name == name {
			return x.value, true
		}
	}
	return 0, false
}

// window is how long an idle measurement lasts.
func window(full time.Duration) time.Duration {
	if os.Getenv("CORACLE_BENCH_QUICK") != "" {
		return full / 10
	}
	return full
}

func TestBench(t *testing.T) {
	bin := os.Getenv("CORACLE_UPSTREAM")
	testenv.Require(t, bin != "", "CORACLE_UPSTREAM is not set: run `make bench`, which builds upstream's programs and says where they are")
	load := build(t, "load")
	var coracleFigures, upstreamFigures figures
	t.Run("coracle", func(t *testing.T) { benchCoracle(t, load, &coracleFigures) })
	t.Run("upstream", func(t *testing.T) { benchUpstream(t, bin, load, &upstreamFigures) })
	if t.Failed() {
		return // half a column would be taken for a whole one
	}
	fmt.Printf("\n%-44s %12s %12s %8s\n", "", "coracle", "upstream", "ratio")
	for _, f := range coracleFigures.list {
		row := fmt.Sprintf("%-44s %12.2f", f.name+" ("+f.unit+")", f.value)
		if v, ok := upstreamFigures.get(f.name); ok {
			row += fmt.Sprintf(" %12.2f", v)
			if v != 0 {
				row += fmt.Sprintf(" %8.2f", f.value/v)
			}
		}
		fmt.Println(row)
	}
	for _, f := range upstreamFigures.list { // all of it where upstream was measured alone
		if _, ok := coracleFigures.get(f.name); !ok {
			fmt.Printf("%-44s %12s %12.2f\n", f.name+" ("+f.unit+")", "", f.value)
		}
	}
}

// tags are the product's, so that packages are compiled once.
const tags = "no_btrfs no_zfs no_devmapper grpcnotrace"

// build builds one of the programs beside this file.
func build(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	c := exec.Command("go", "build", "-tags", tags, "-o", path, "github.com/coracle-k8s/coracle/test/bench/"+name)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

// subject is what is measured: a machine with a cluster on it and the processes that make it.
type subject struct {
	*harness.Machine
	t          *testing.T
	load       string
	kubeconfig string
	kubectl    func(args ...string) (string, error)
	pids       func() []int
	out        *figures
}

// run runs the load program on the machine and decodes what it prints.
func (s *subject) run(into any, args ...string) {
	s.t.Helper()
	args = append(args[:1:1], append([]string{"-kubeconfig", s.kubeconfig}, args[1:]...)...)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	out := testenv.Must(harness.Output(s.Command(ctx, s.load, args...)))(s.t)
	testenv.NoError(s.t, json.Unmarshal([]byte(out), into), "%s", out)
}

type latencies struct {
	PerSecond, P50ms, P99ms float64
	Count                   int
	Seconds                 float64
}

const idlePods = 3

// measure goes through all figures on a cluster whose node is Ready.
func (s *subject) measure() {
	var first latencies
	s.run(&first, "pods", "-count", "1", "-image", harness.BoxImage)
	s.out.add("first pod create → Running", "ms", first.P50ms)
	for i := range idlePods {
		if out, err := s.kubectl("run", fmt.Sprintf("idle-%d", i), "--image="+harness.BoxImage, "--image-pull-policy=Never", "--command", "--", "testbox", "hold"); err != nil {
			s.t.Fatalf("%v\n%s", err, out)
		}
	}
	if out, err := s.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"); err != nil {
		pods, _ := s.kubectl("describe", "pods")
		s.t.Fatalf("%v\n%s\n%s", err, out, pods)
	}
	time.Sleep(window(60 * time.Second)) // settling is part of what is measured: idle means idle
	s.idle()
	var l latencies
	count := "50"
	s.run(&l, "pods", "-count", count, "-image", harness.BoxImage)
	s.out.add("pod create → Running, one by one, p50", "ms", l.P50ms)
	s.out.add("pod create → Running, one by one, p99", "ms", l.P99ms)
	s.run(&l, "pods", "-count", "20", "-parallel", "20", "-image", harness.BoxImage)
	s.out.add("pod create → Running, 20 at once, p99", "ms", l.P99ms)
	seconds := strconv.Itoa(int(window(20*time.Second) / time.Second))
	for _, clients := range []string{"1", "50"} {
		s.run(&l, "writes", "-clients", clients, "-seconds", seconds)
		s.out.add("ConfigMap creates, "+clients+" clients", "1/s", l.PerSecond)
		s.out.add("ConfigMap creates, "+clients+" clients, p50", "ms", l.P50ms)
		s.out.add("ConfigMap creates, "+clients+" clients, p99", "ms", l.P99ms)
	}
}

// idle measures memory, and CPU and disk writes over five minutes, of the processes at rest.
func (s *subject) idle() {
	var shimRSS float64
	for _, pid := range shims(s.Machine) {
		shimRSS += proc.StatusMB(pid, "VmRSS:")
	}
	usage := func() (rss, anon, cpu, written float64) {
		for _, pid := range s.pids() {
			rss += proc.StatusMB(pid, "VmRSS:")
			anon += proc.StatusMB(pid, "RssAnon:")
			cpu += cpuSeconds(pid)
			written += float64(proc.Written(pid)) / 1024
		}
		return
	}
	_, _, cpu0, written0 := usage()
	began := time.Now()
	time.Sleep(window(60 * time.Second))
	rss, anon, _, _ := usage()
	s.out.add("idle RSS, three pods", "MB", rss)
	s.out.add("idle anonymous memory", "MB", anon)
	s.out.add("besides, RSS of the three pods' shims", "MB", shimRSS)
	time.Sleep(window(300*time.Second) - time.Since(began))
	rss, _, cpu1, written1 := usage()
	s.out.add("idle RSS, four minutes later", "MB", rss)
	s.out.add("idle CPU over five minutes", "% core", 100*(cpu1-cpu0)/time.Since(began).Seconds())
	s.out.add("idle disk writes", "KB/min", (written1-written0)/time.Since(began).Minutes())
}

func cpuSeconds(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	user, _ := strconv.ParseFloat(string(f[11]), 64)
	system, _ := strconv.ParseFloat(string(f[12]), 64)
	return (user + system) / 100 // USER_HZ is 100 on every Linux that Go runs on
}

type readiness struct{ ReadyzMs, NodeReadyMs float64 }

func benchCoracle(t *testing.T, load string, out *figures) {
	m := harness.NewMachine(t)
	s := m.NewServer()
	image := filepath.Join(m.Dir, "box.tar")
	harness.WriteBoxImage(t, image)
	x := &subject{
		Machine: m, t: t, load: load, kubeconfig: s.Kubeconfig, out: out,
		kubectl: s.TryKubectl, pids: func() []int { return []int{s.Pid()} },
	}
	if info, err := os.Stat(s.Coracle()); err == nil {
		out.add("binary", "MB", float64(info.Size())/1e6)
	}
	s.Start()
	var r readiness
	x.run(&r, "ready", "-seconds", "180")
	out.add("empty directory → /readyz", "ms", r.ReadyzMs)
	out.add("empty directory → node Ready", "ms", r.NodeReadyMs)
	testenv.Must(m.Run("env", "CORACLE_DATA_DIR="+s.DataDir, m.Coracle(), "ctr", "-n", "k8s.io", "images", "import", image))(t)
	x.measure()
}

// shims lists the shim processes on a machine.
func shims(m *harness.Machine) []int {
	var out []int
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(b, []byte("\x00-namespace\x00k8s.io\x00")) || !m.Owns(p) {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(p, "/")[2])
		out = append(out, pid)
	}
	return out
}
