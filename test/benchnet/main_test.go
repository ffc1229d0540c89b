//go:build bench

// SPDX-License-Identifier: Apache-2.0

// Package benchnet measures the network of a node and of a small cluster: what a pod's network costs when it starts and
// ends, the ways between pods, Services beside upstream's kube-proxy, NetworkPolicies beside none, and the ingress
// proxy beside those of others. It prints tables and never judges; `make bench-net` runs it, `make bench-ingress` the
// last part, and docs/benchmarks.md says what each table means.
//
// Everything happens in network namespaces of its own. A node is a child process in one of them, this program by
// another name, which runs the product's own packages as the agent does; kube-proxy is upstream's program, built from
// the module that go.mod names. What is compared is measured in turns, since the machine's other work comes and goes.
package benchnet

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/netns"
)

func TestMain(m *testing.M) {
	if os.Getenv(nodeVar) != "" {
		os.Exit(nodeMain())
	}
	os.Exit(netns.Main(m))
}

// quick says that a run of two minutes is wanted, which shows that things work; its figures mean little.
func quick() bool { return os.Getenv("CORACLE_BENCH_QUICK") != "" }

// pick is whole, or short in a quick run.
func pick[T any](whole, short T) T {
	if quick() {
		return short
	}
	return whole
}

// load is the machine's load average of the last minute.
func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

func TestMachine(t *testing.T) {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	fmt.Printf("%d cores, Linux %s, load %s, %s\n", runtime.NumCPU(), strings.TrimSpace(string(b)), load(), time.Now().UTC().Format(time.DateTime))
}

// sample is what one turn of a variant measured, by column.
type sample map[string]float64

// variant is one row of a table.
type variant struct {
	name string
	run  func() (sample, error)
}

// column says how a figure is printed.
type column struct {
	name   string
	format string // of fmt; empty is %.1f
	ratio  bool   // beside it the ratio to the first row, the median of the turns'
}

// compare lets the variants take turns, and prints the medians.
func compare(t *testing.T, title string, turns int, columns []column, variants []variant) {
	t.Helper()
	got := make([][]sample, len(variants))
	before := load()
	for range turns {
		for i, v := range variants {
			s, err := v.run()
			if err != nil {
				t.Errorf("%s, %s: %v", title, v.name, err)
				s = sample{}
			}
			got[i] = append(got[i], s)
		}
	}
	fmt.Printf("\n%s (%d turns, load %s to %s)\n\n", title, turns, before, load())
	head, line := "| |", "| --- |"
	for _, c := range columns {
		head += " " + c.name + " |"
		line += " --- |"
		if c.ratio {
			head += " ratio |"
			line += " --- |"
		}
	}
	fmt.Println(head + "\n" + line)
	for i, v := range variants {
		row := "| " + v.name + " |"
		for _, c := range columns {
			format := c.format
			if format == "" {
				format = "%.1f"
			}
			x, ok := median(got[i], func(s sample) (float64, bool) { x, ok := s[c.name]; return x, ok })
			row += " " + cell(format, x, ok) + " |"
			if c.ratio {
				turn := -1
				x, ok := median(got[i], func(s sample) (float64, bool) {
					turn++
					x, ok := s[c.name]
					first := got[0][turn][c.name]
					return x / first, ok && first != 0 && i > 0
				})
				row += " " + cell("%.2f", x, ok) + " |"
			}
		}
		fmt.Println(row)
	}
}

func cell(format string, x float64, ok bool) string {
	if !ok {
		return ""
	}
	return fmt.Sprintf(format, x)
}

func median(all []sample, get func(sample) (float64, bool)) (float64, bool) {
	var xs []float64
	for _, s := range all {
		if x, ok := get(s); ok {
			xs = append(xs, x)
		}
	}
	if len(xs) == 0 {
		return 0, false
	}
	return quantile(xs, 0.5), true
}

// quantile sorts xs.
func quantile(xs []float64, q float64) float64 {
	if len(xs) == 0 {
		return 0
	}
	slices.Sort(xs)
	return xs[min(int(q*float64(len(xs))), len(xs)-1)]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// built builds a program of the module graph, once; the go command keeps what it compiled.
func built(t *testing.T, name, pkg string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	c := exec.Command("go", "build", "-tags", "no_btrfs no_zfs no_devmapper grpcnotrace", "-ldflags", "-s -w", "-o", path, pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", pkg, err, out)
	}
	return path
}
