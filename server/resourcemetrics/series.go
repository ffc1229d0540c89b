// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/metrics-server/pkg/storage"
)

const (
	// kubeletWindow is the window given for a kubelet's own rate: a kubelet measures on request, at most every 10 s.
	// The first rate after a pause covers up to a minute.
	kubeletWindow = 10 * time.Second
	// secondMeasurement is the time after which a kubelet has measured a container twice. An earlier rate of 0 may mean
	// none.
	secondMeasurement = 40 * time.Second
	// maxLag is by how much the time between two measurements may exceed the time between their requests. If it is
	// more, the node's clock was set.
	maxLag = time.Minute
	// staleAfter is the time without a new measurement after which a rate is dropped.
	staleAfter = 2 * time.Minute
	// capacityFactor is the accepted multiple of a node's capacity: a busy machine reads its counters late.
	capacityFactor = 2
)

// figure is the resource use of a node or a container. Metrics-server's own storage is not used: it has no value before
// two requests, and takes a counter that does not advance after a restart for one that began in the year 1.
type figure struct {
	point storage.MetricsPoint
	// read is when the point was first read, by this machine's clock. The point's own time is by the node's clock.
	read time.Time
	// rate is in billionths of a core, over the window before point.Timestamp. There is no rate when window is 0.
	rate   uint64
	window time.Duration
}

// continues says whether a point is of the same run of a node or container as f, and of the same clock setting.
func (f figure) continues(p storage.MetricsPoint, now time.Time) bool {
	elapsed := p.Timestamp.Sub(f.point.Timestamp)
	return !f.read.IsZero() && f.point.StartTime.Equal(p.StartTime) && p.CumulativeCPUUsed >= f.point.CumulativeCPUUsed &&
		elapsed >= 0 && elapsed <= now.Sub(f.read)+maxLag
}

// withPoint returns the figure after another point of the same run.
func (f figure) withPoint(p storage.MetricsPoint, now time.Time) figure {
	elapsed := p.Timestamp.Sub(f.point.Timestamp)
	switch {
	case elapsed > 0:
		used := p.CumulativeCPUUsed - f.point.CumulativeCPUUsed
		return figure{point: p, read: now, rate: uint64(float64(used) / elapsed.Seconds()), window: elapsed}
	case now.Sub(f.read) > staleAfter:
		return figure{point: f.point, read: f.read}
	default:
		return f // no new measurement
	}
}

// firstFigure returns the figure for a first point. Its rate is the kubelet's own, if that is known.
func firstFigure(p storage.MetricsPoint, now time.Time, rate uint64, known bool) figure {
	f := figure{point: p, read: now}
	age := p.Timestamp.Sub(p.StartTime)
	switch {
	case known && (rate > 0 || age >= secondMeasurement):
		f.rate, f.window = rate, kubeletWindow
	case age >= kubeletWindow && age < secondMeasurement:
		f.rate, f.window = uint64(float64(p.CumulativeCPUUsed)/age.Seconds()), age
	}
	return f
}

// series computes the figures of one kubelet's response.
type series struct {
	previous     *figures // may be nil
	kubeletRates *rates   // the kubelet's own rates; may be nil
	now          time.Time
	limits       limits
	impossible   string // the first impossible value
}

// complete says whether there is an earlier figure for each point of the response.
func (s *series) complete(node string, b *storage.MetricsBatch) bool {
	if s.previous == nil {
		return false
	}
	for _, p := range b.Nodes {
		if !s.previous.nodes[node].continues(p, s.now) {
			return false
		}
	}
	for ref, pod := range b.Pods {
		for name, p := range pod.Containers {
			if !s.previous.pods[ref].containers[name].continues(p, s.now) {
				return false
			}
		}
	}
	return true
}

func (s *series) node(name string, p storage.MetricsPoint) figure {
	var old figure
	if s.previous != nil {
		old = s.previous.nodes[name]
	}
	rate, known := s.kubeletRates.ofNode()
	return s.figure("the node", old, p, rate, known)
}

func (s *series) container(ref types.NamespacedName, name string, p storage.MetricsPoint) figure {
	var old figure
	if s.previous != nil {
		old = s.previous.pods[ref].containers[name]
	}
	rate, known := s.kubeletRates.rateOf(ref, name)
	return s.figure("container "+name+" of pod "+ref.String(), old, p, rate, known)
}

// figure computes the next figure, from old if the point continues it. An impossible value gives a figure without a
// rate, which no client sees.
func (s *series) figure(of string, old figure, p storage.MetricsPoint, rate uint64, known bool) figure {
	if impossible := s.limits.exceeded(p); impossible != "" {
		s.recordImpossible(of, impossible)
		return figure{}
	}
	var f figure
	if old.continues(p, s.now) {
		f = old.withPoint(p, s.now)
	} else {
		f = firstFigure(p, s.now, rate, known)
	}
	if f.rate > s.limits.rate {
		s.recordImpossible(of, fmt.Sprintf("%.0f CPU cores", float64(f.rate)/1e9))
		f.rate, f.window = 0, 0
	}
	return f
}

func (s *series) recordImpossible(of, impossible string) {
	if s.impossible == "" {
		s.impossible = of + " reportedly uses " + impossible
	}
}

// limits are the largest values that are accepted for a node.
type limits struct {
	rate   uint64 // billionths of a core
	memory uint64 // bytes
}

// limitsOf returns limits by the capacity that the kubelet reports for its node. Schedulers rely on it as well.
func limitsOf(n *corev1.Node) limits {
	l := limits{rate: maxValue, memory: maxValue}
	if milli := n.Status.Capacity.Cpu().MilliValue(); milli > 0 {
		l.rate = min(maxValue, capacityFactor*1e6*uint64(milli))
	}
	if bytes := n.Status.Capacity.Memory().Value(); bytes > 0 {
		l.memory = min(maxValue, capacityFactor*uint64(bytes))
	}
	return l
}

// exceeded describes the impossible value of a point, and is empty if there is none. Upstream's decoder returns
// negative numbers and NaN as 1<<63 and more.
func (l limits) exceeded(p storage.MetricsPoint) string {
	switch {
	case p.CumulativeCPUUsed >= 1<<63:
		return "a negative or impossibly large CPU time"
	case p.MemoryUsage > l.memory:
		return fmt.Sprintf("%d bytes of memory", p.MemoryUsage)
	}
	return ""
}
