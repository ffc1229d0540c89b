// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/test/storebench/load"
)

// report collects figures in the order in which they first came.
type report struct {
	rows []*row
}

func newReport() *report { return &report{} }

// row is one thing measured on both, several times.
type row struct {
	Name, Unit string
	Coracle    []float64
	Etcd       []float64
}

func (r *report) row(name, unit string) *row {
	for _, x := range r.rows {
		if x.Name == name && x.Unit == unit {
			return x
		}
	}
	x := &row{Name: name, Unit: unit}
	r.rows = append(r.rows, x)
	return x
}

// add notes one figure of one of the systems.
func (r *report) add(sys system, name, unit string, value float64) {
	x := r.row(name, unit)
	if _, ours := sys.(*coracle); ours {
		x.Coracle = append(x.Coracle, value)
	} else {
		x.Etcd = append(x.Etcd, value)
	}
}

// latencies notes a rate and the latencies behind it.
func (r *report) latencies(sys system, name, unit string, l load.Result) {
	r.add(sys, name, unit, l.Rate)
	r.add(sys, name, "p50 ms", l.P50)
	r.add(sys, name, "p99 ms", l.P99)
	if l.Errors > 0 {
		r.add(sys, name, "failed", float64(l.Errors))
		fmt.Printf("  %s, %s: %d failed: %s\n", sys.name(), name, l.Errors, l.FirstError)
	}
}

func median(of []float64) (float64, bool) {
	if len(of) == 0 {
		return 0, false
	}
	s := slices.Sorted(slices.Values(of))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2, true
}

func number(v float64, ok bool) string {
	switch {
	case !ok:
		return "–"
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// print writes the table: medians of the rounds.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%-62s %-9s %10s %10s %8s\n%s\n", "", "", "coracle", "etcd", "ratio", strings.Repeat("-", 103))
	last := ""
	for _, x := range r.rows {
		ours, haveCoracle := median(x.Coracle)
		etcdMedian, haveEtcd := median(x.Etcd)
		shown := ""
		if haveCoracle && haveEtcd && etcdMedian != 0 {
			shown = fmt.Sprintf("%.2f×", ours/etcdMedian)
		}
		name := x.Name
		if name == last {
			name = ""
		}
		last = x.Name
		fmt.Fprintf(w, "%-62s %-9s %10s %10s %8s\n", name, x.Unit, number(ours, haveCoracle), number(etcdMedian, haveEtcd), shown)
	}
}

// write puts every figure into a file.
func (r *report) write(path string, d *device) error {
	b, err := json.MarshalIndent(map[string]any{
		"processors": runtime.NumCPU(), "memory": memorySize(), "device": d, "figures": r.rows,
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
