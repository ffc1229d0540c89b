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
	Target     target
}

// target is what we want; the zero value: nothing.
type target struct {
	// Ratio to etcd's, at least or at most.
	AtLeast, AtMost float64 `json:",omitempty"`
	// Limit of our own figure, and whether there is one.
	Limit    float64 `json:",omitempty"`
	HasLimit bool    `json:",omitempty"`
}

func (t target) String() string {
	switch {
	case t.AtLeast > 0:
		return fmt.Sprintf("≥ %.3g×", t.AtLeast)
	case t.AtMost > 0:
		return fmt.Sprintf("≤ %.3g×", t.AtMost)
	case t.HasLimit:
		return fmt.Sprintf("≤ %.4g", t.Limit)
	}
	return ""
}

// verdict says whether the target was met.
func (t target) verdict(ours, ratio float64) string {
	var met bool
	switch {
	case t.AtLeast > 0 && ratio > 0:
		met = ratio >= t.AtLeast
	case t.AtMost > 0 && ratio > 0:
		met = ratio <= t.AtMost
	case t.HasLimit:
		met = ours <= t.Limit
	default:
		return ""
	}
	if met {
		return "met"
	}
	return "MISSED"
}

func (r *report) row(name, unit string, t target) *row {
	for _, x := range r.rows {
		if x.Name == name && x.Unit == unit {
			return x
		}
	}
	x := &row{Name: name, Unit: unit, Target: t}
	r.rows = append(r.rows, x)
	return x
}

// add notes one figure of one of the systems.
func (r *report) add(sys system, name, unit string, t target, value float64) {
	x := r.row(name, unit, t)
	if _, ours := sys.(*coracle); ours {
		x.Coracle = append(x.Coracle, value)
	} else {
		x.Etcd = append(x.Etcd, value)
	}
}

// latencies notes a rate and the latencies behind it.
func (r *report) latencies(sys system, name, unit string, rate, p99 target, l load.Result) {
	r.add(sys, name, unit, rate, l.Rate)
	r.add(sys, name, "p50 ms", target{}, l.P50)
	r.add(sys, name, "p99 ms", p99, l.P99)
	if l.Errors > 0 {
		r.add(sys, name, "failed", target{}, float64(l.Errors))
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
	fmt.Fprintf(w, "\n%-62s %-9s %10s %10s %8s  %-8s\n%s\n", "", "", "coracle", "etcd", "ratio", "target", strings.Repeat("-", 122))
	last := ""
	for _, x := range r.rows {
		ours, haveCoracle := median(x.Coracle)
		etcdMedian, haveEtcd := median(x.Etcd)
		var ratio float64
		shown := ""
		if haveCoracle && haveEtcd && etcdMedian != 0 {
			ratio = ours / etcdMedian
			shown = fmt.Sprintf("%.2f×", ratio)
		}
		name := x.Name
		if name == last {
			name = ""
		}
		last = x.Name
		verdict := ""
		if haveCoracle {
			verdict = x.Target.verdict(ours, ratio)
		}
		fmt.Fprintf(w, "%-62s %-9s %10s %10s %8s  %-8s %s\n", name, x.Unit, number(ours, haveCoracle), number(etcdMedian, haveEtcd), shown, x.Target, verdict)
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
