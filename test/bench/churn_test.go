//go:build bench

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// memory is what a server takes at one moment.
type memory struct {
	RSS, Anonymous            float64 // MB, from the kernel
	HeapObjects, HeapSpans    float64 // MB: what lives and what is not collected yet; the pages that this is spread over
	MetricsLines, Goroutines  int
	HeapReleased, StackMemory float64 // MB
}

func mb(n float64) float64 { return n / (1 << 20) }

// memoryOf measures a server. What it asks of the server comes after what it reads of the kernel.
func memoryOf(s *harness.Server) memory {
	m := memory{RSS: proc.StatusMB(s.Pid(), "VmRSS:"), Anonymous: proc.StatusMB(s.Pid(), "RssAnon:")}
	text := s.Kubectl("get", "--raw", "/metrics")
	for line := range strings.Lines(text) {
		m.MetricsLines++
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		switch name {
		case "go_memstats_heap_alloc_bytes":
			m.HeapObjects = mb(v)
		case "go_memstats_heap_inuse_bytes":
			m.HeapSpans = mb(v)
		case "go_memstats_heap_released_bytes":
			m.HeapReleased = mb(v)
		case "go_memstats_stack_inuse_bytes":
			m.StackMemory = mb(v)
		case "go_goroutines":
			m.Goroutines = int(v)
		}
	}
	return m
}

// startMemory starts a server with three pods and lets it settle.
func startMemory(t *testing.T) *harness.Server {
	s := harness.NewMachine(t).NewServer(strings.Fields(os.Getenv("CORACLE_BENCH_ARGS"))...)
	testenv.NoError(t, os.MkdirAll(filepath.Join(s.DataDir, "images"), 0o755))
	harness.WriteBoxImage(t, filepath.Join(s.DataDir, "images", "box.tar"))
	s.StartNode()
	idleWorkload(s)
	return s
}

// idleWorkload starts the pods of an idle measurement and waits for them.
func idleWorkload(s *harness.Server) {
	for i := range idlePods {
		s.Kubectl("run", fmt.Sprintf("idle-%d", i), "--image="+harness.BoxImage, "--image-pull-policy=Never", "--command", "--", "testbox", "hold")
	}
	s.Kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s")
}

// TestChurn measures what a heavy churn (test/bench/churn) leaves in a server's memory: fresh, right after it, and ten
// minutes later. CORACLE_BENCH_CHURN has more arguments for the churn, CORACLE_BENCH_ARGS for the server;
// CORACLE_BENCH_PROFILES a folder for the profiles of each moment.
func TestChurn(t *testing.T) {
	churn := build(t, "churn")
	s := startMemory(t)
	rows := []string{"fresh"}
	var measured []memory
	sample := func() {
		measured = append(measured, memoryOf(s))
		saveProfiles(t, s, rows[len(rows)-1])
		fmt.Printf("%-16s %+v\n", rows[len(rows)-1], measured[len(measured)-1])
	}
	time.Sleep(window(2 * time.Minute)) // idle means idle
	sample()
	args := []string{"-kubeconfig", s.Kubeconfig, "-image", harness.BoxImage}
	if os.Getenv("CORACLE_BENCH_QUICK") != "" {
		args = append(args, "-namespaces", "30", "-definitions", "10", "-running", "30")
	}
	args = append(args, strings.Fields(os.Getenv("CORACLE_BENCH_CHURN"))...)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Minute)
	defer cancel()
	did, err := harness.Output(s.Command(ctx, churn, args...))
	if err != nil {
		t.Fatalf("%v\n%s", err, s.LogTail(20))
	}
	var counts map[string]float64
	testenv.NoError(t, json.Unmarshal([]byte(did), &counts), "%s", did)
	fmt.Printf("churn: %s", did)
	rows = append(rows, "after churn")
	sample()
	for _, minutes := range []int{5, 10} {
		time.Sleep(window(5 * time.Minute)) // the length of a measurement
		rows = append(rows, fmt.Sprintf("%d min later", minutes))
		sample()
	}
	printMemory(rows, measured)
}

func printMemory(rows []string, measured []memory) {
	fmt.Printf("\n%-14s %9s %9s %12s %12s %10s %12s %14s\n", "", "RSS", "anonymous", "heap objects", "heap spans", "stacks", "goroutines", "metrics lines")
	for i, m := range measured {
		fmt.Printf("%-14s %6.0f MB %6.0f MB %9.0f MB %9.0f MB %7.1f MB %12d %14d\n", rows[i], m.RSS, m.Anonymous, m.HeapObjects, m.HeapSpans,
			m.StackMemory, m.Goroutines, m.MetricsLines)
	}
	first, last := measured[0], measured[len(measured)-1]
	fmt.Printf("%-14s %9.2f %9.2f\n", "last / fresh", last.RSS/first.RSS, last.Anonymous/first.Anonymous)
}

// saveProfiles writes heap and goroutine profiles where CORACLE_BENCH_PROFILES says, if it does. The kubelet's port has
// upstream's profiling handlers, and the kubelet is in the server's process. Looking costs some memory.
func saveProfiles(t *testing.T, s *harness.Server, moment string) {
	dir := os.Getenv("CORACLE_BENCH_PROFILES")
	if dir == "" {
		return
	}
	for _, kind := range []string{"heap", "goroutine", "allocs"} {
		out, err := s.TryKubectl("get", "--raw", "/api/v1/nodes/node-1/proxy/debug/pprof/"+kind)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, strings.ReplaceAll(moment, " ", "-")+"."+kind), []byte(out), 0o644)
		}
		testenv.NoError(t, err)
	}
}
