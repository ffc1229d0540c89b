//go:build bench

// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/proc"
)

// TestIdle leaves a server with three pods alone for CORACLE_BENCH_IDLE, such as 1h, and prints what it wrote to its
// disk every five minutes. It is for the target of a day, which five minutes after a start say little about.
func TestIdle(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("CORACLE_BENCH_IDLE"))
	if err != nil {
		t.Skip("CORACLE_BENCH_IDLE does not say how long to stay idle, such as 1h")
	}
	m := harness.NewMachine(t)
	s := m.NewServer()
	if err := os.MkdirAll(filepath.Join(s.DataDir, "images"), 0o755); err != nil {
		t.Fatal(err)
	}
	harness.WriteBoxImage(t, filepath.Join(s.DataDir, "images", "box.tar"))
	s.Start()
	x := &subject{Machine: m, t: t, load: build(t, "load"), kubeconfig: s.Kubeconfig, kubectl: s.TryKubectl}
	var r readiness
	x.run(&r, "ready", "-seconds", "180")
	for i := range idlePods {
		if out, err := s.TryKubectl("run", "idle-"+strconv.Itoa(i), "--image="+harness.BoxImage, "--image-pull-policy=Never", "--command", "--", "testbox", "hold"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if out, err := s.TryKubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const step = 5 * time.Minute
	written := func() float64 { return float64(proc.Written(s.Pid())) / 1024 }
	began, first, last := time.Now(), written(), written()
	for time.Since(began) < length {
		time.Sleep(step) // the length of a measurement
		now := written()
		fmt.Printf("%6s  %8.1f KB in 5 min  %6.2f MB a day so far  RSS %.0f MB\n", time.Since(began).Round(time.Second),
			now-last, (now-first)/1024*24*60/time.Since(began).Minutes(), proc.StatusMB(s.Pid(), "VmRSS:"))
		last = now
	}
}
