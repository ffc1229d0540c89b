// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// History is the response to a request for a pod's or a node's past use, in JSON.
type History struct {
	// Enabled is false when the server that leads keeps no history. Server is its name.
	Enabled bool   `json:"enabled"`
	Server  string `json:"server"`
	// Since is when that server began to keep it: when it became the leader. It is nil before the first minute.
	Since *time.Time `json:"since,omitempty"`
	// Period is the number of seconds between two points.
	Period int `json:"period"`
	// Curves has one for each object of the name in the last day, the oldest first.
	Curves []Curve `json:"curves"`
}

// Curve is the use of one node or pod, a point for each period from Start on. Points without figures are null.
type Curve struct {
	UID   types.UID `json:"uid"`
	Start time.Time `json:"start"`
	// CPU is in thousandths of a core, Memory in bytes.
	CPU    Values `json:"cpu"`
	Memory Values `json:"memory"`
}

// Values are numbers, NaN for none.
type Values []float64

// MarshalJSON implements json.Marshaler. It writes null for NaN.
func (v Values) MarshalJSON() ([]byte, error) {
	out := make([]byte, 0, 8*len(v)+2)
	out = append(out, '[')
	for i, n := range v {
		if i > 0 {
			out = append(out, ',')
		}
		if math.IsNaN(n) {
			out = append(out, "null"...)
		} else {
			out = strconv.AppendFloat(out, n, 'f', -1, 64)
		}
	}
	return append(out, ']'), nil
}

// RecordHistory keeps a history until ctx is done, and then drops it. It asks all kubelets once a minute. Only one call
// may run at a time.
func (c *Collector) RecordHistory(ctx context.Context) {
	begun := time.Now()
	h := newHistory(begun, historyLimit)
	c.setHistory(h)
	defer c.setHistory(nil)
	ticker := time.NewTicker(historyPeriod)
	defer ticker.Stop()
	var f *figures
	for at := begun; ; at = time.Now() {
		f = c.collectOnce(ctx, f, func(*figures) {})
		if ctx.Err() != nil {
			return
		}
		if l, err := c.living(); err == nil { // the round has logged the error
			h.record(at, f, l)
			c.showStatus()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (c *Collector) setHistory(h *history) {
	c.mu.Lock()
	c.history = h
	c.mu.Unlock()
	c.showStatus()
}

// living returns the nodes and pods that exist now.
func (c *Collector) living() (l living, err error) {
	if l.nodes, err = c.o.Nodes.List(labels.Everything()); err != nil {
		return l, err
	}
	if l.pods, err = c.o.Pods.List(labels.Everything()); err != nil {
		return l, err
	}
	namespaces, err := c.o.Namespaces.List(labels.Everything())
	l.namespaces = make(map[string]types.UID, len(namespaces))
	for _, n := range namespaces {
		l.namespaces[n.Name] = n.UID
	}
	return l, err
}

// ReadHistory returns the past use of a pod, or of a node if the namespace is empty, over at most the given number of
// minutes. It returns false for Enabled while no history is kept. Pods of a deleted namespace are left out.
func (c *Collector) ReadHistory(namespace, name string, minutes int) History {
	c.mu.Lock()
	h := c.history
	c.mu.Unlock()
	out := History{Period: int(historyPeriod / time.Second), Curves: []Curve{}}
	if h == nil {
		return out
	}
	out.Enabled = true
	now := time.Now()
	since := now.Add(-now.Sub(h.begun)).UTC() // by the clock as it is now
	out.Since = &since
	var in types.UID
	if namespace != "" {
		n, err := c.o.Namespaces.Get(namespace)
		if err != nil {
			return out
		}
		in = n.UID
	}
	out.Curves = h.read(now, namespace, name, in, minutes)
	return out
}

// read returns the curves of a name. Their times are by the clock as it is now.
func (h *history) read(now time.Time, namespace, name string, in types.UID, minutes int) []Curve {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []Curve{}
	first := max(0, h.minute-int32(min(max(minutes, 1), historyPoints))+1)
	for _, s := range h.shares {
		for key, c := range s.curves {
			if key.namespace != namespace || key.name != name || c.namespaceUID != in {
				continue
			}
			if start, cpu, memory := c.values(first, h.minute); len(cpu) > 0 {
				age := now.Sub(h.begun.Add(time.Duration(start) * historyPeriod))
				out = append(out, Curve{UID: key.uid, Start: now.Add(-age).UTC().Round(time.Second), CPU: cpu, Memory: memory})
			}
		}
	}
	slices.SortFunc(out, func(a, b Curve) int { return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.UID, b.UID)) })
	return out
}

// values returns the points from a curve's first point in these minutes to its last one. start is the minute of the
// first.
func (c *curve) values(first, last int32) (start int32, cpu, memory Values) {
	for _, ch := range c.chunks {
		for i, p := range ch.points {
			minute := ch.hour*chunkPoints + int32(i)
			if minute < first || minute > last || p[0] == 0 {
				continue
			}
			if cpu == nil {
				start = minute
			}
			for int(minute-start) > len(cpu) {
				cpu, memory = append(cpu, math.NaN()), append(memory, math.NaN())
			}
			cpu, memory = append(cpu, float64(unpack(p[0]))/100), append(memory, float64(unpack(p[1])<<10))
		}
	}
	return start, cpu, memory
}
