// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	"maps"
	"math/bits"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// historyPeriod is the time between two points of the history.
	historyPeriod = time.Minute
	// historyPoints is how many points a curve has at most: those of a day.
	historyPoints = 24 * 60
	// historyLimit limits the history in bytes, whatever the number of pods. The curves of 1,100 pods of a day fit.
	historyLimit = 8 << 20
	// chunkPoints is how many points are allocated at once: those of an hour.
	chunkPoints = 60
	// chunkBytes is what a chunk takes: a size class of Go's allocator, and a pointer in a slice that grows by
	// doubling.
	chunkBytes = 256 + 16
	// curveBytes is what a curve takes without its chunks and names: the entry in the map, and the struct.
	curveBytes = 256
	// roomParts is the part of the limit for which room is made at once, since that looks at all curves of a node.
	roomParts = 128
)

// A history holds curves of CPU and memory use of the last day, a point a minute, for nodes and pods. It counts
// minutes by the monotonic clock from its begin, so that a clock that is set moves no point.
//
// It never takes more than limit bytes. When it is full, the node whose own curve and pods take most loses points:
// first those of its pods that are gone, then its oldest hour. So a node with many pods does not push out those of
// others.
type history struct {
	begun time.Time
	limit int

	mu     sync.Mutex
	minute int32 // the minute of the newest points
	bytes  int
	shares map[string]*nodeShare // by the node's name
}

// nodeShare is the part of the history that belongs to one node.
type nodeShare struct {
	bytes       int
	curves      map[curveKey]*curve
	mapCapacity int  // the curves for which the map has room: it keeps what it once had
	full        bool // no curve or chunk can be added in the present minute
}

// curveKey names a pod, or a node when the namespace is empty. A pod of the same name with another UID has another
// curve.
type curveKey struct {
	namespace, name string
	uid             types.UID
}

func (k curveKey) bytes() int { return curveBytes + len(k.namespace) + len(k.name) + len(k.uid) }

// curve is the resource use of one node or pod over a day.
type curve struct {
	chunks []*chunk // the oldest first
	// namespaceUID is the UID of a pod's namespace. A namespace of the same name may belong to other users.
	namespaceUID types.UID
	deleted      bool // the node or pod is no longer there
}

// chunk is an hour of points, each the CPU and the memory use as pack returns them, or zeros for none. hour is the
// number of the hour since the history's begin.
type chunk struct {
	hour   int32
	points [chunkPoints][2]uint16
}

func newHistory(begun time.Time, limit int) *history {
	return &history{begun: begun, limit: limit, shares: map[string]*nodeShare{}}
}

// packedZero is the packed form of the number 0. It has no mantissa.
const packedZero = 1 << 11

// pack returns a number as five bits of exponent and eleven of mantissa, which is at most 1/2048 off. It never returns
// 0.
func pack(v uint64) uint16 {
	if v == 0 {
		return packedZero
	}
	exponent := max(0, bits.Len64(v)-11)
	mantissa := v >> exponent
	if exponent > 0 && v>>(exponent-1)&1 == 1 { // round up
		if mantissa++; mantissa == 1<<11 {
			mantissa >>= 1
			exponent++
		}
	}
	if exponent > 31 {
		return 1<<16 - 1
	}
	return uint16(exponent<<11) | uint16(mantissa)
}

// unpack returns the number of a packed one that is not 0.
func unpack(p uint16) uint64 { return uint64(p&(1<<11-1)) << (p >> 11) }

// newPoint is a use at one minute. CPU is in hundredths of a thousandth of a core, memory in KiB.
func newPoint(rate, memory uint64) [2]uint16 { return [2]uint16{pack(rate / 1e4), pack(memory >> 10)} }

// living holds the nodes and pods that exist at a minute, as the API server knows them.
type living struct {
	nodes      []*corev1.Node
	pods       []*corev1.Pod
	namespaces map[string]types.UID
}

// record adds the figures of a round that began at a time. Nodes and pods without figures get no point, and a pod also
// when one of its containers has none.
func (h *history) record(at time.Time, f *figures, l living) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.minute = int32(at.Sub(h.begun) / historyPeriod)
	there := make(map[curveKey]bool, len(l.nodes)+len(l.pods))
	for _, n := range l.nodes {
		there[curveKey{name: n.Name, uid: n.UID}] = true
	}
	for _, p := range l.pods {
		there[curveKey{p.Namespace, p.Name, p.UID}] = true
	}
	h.expire(there)
	for _, n := range l.nodes { // nodes are few and come first
		if have, ok := f.nodes[n.Name]; ok && have.window > 0 {
			h.add(n.Name, curveKey{name: n.Name, uid: n.UID}, "", newPoint(have.rate, have.point.MemoryUsage))
		}
	}
	for _, p := range l.pods {
		have, ok := f.pods[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}]
		if !ok || have.uid != p.UID {
			continue
		}
		if rate, memory, ok := have.sum(); ok {
			h.add(have.node, curveKey{p.Namespace, p.Name, p.UID}, l.namespaces[p.Namespace], newPoint(rate, memory))
		}
	}
}

// sum returns a pod's use, in billionths of a core and bytes. ok is false when one of its containers has no figure.
func (p podFigures) sum() (rate, memory uint64, ok bool) {
	for _, f := range p.containers {
		if f.window == 0 {
			return 0, 0, false
		}
		rate += f.rate
		memory += f.point.MemoryUsage
	}
	return rate, memory, len(p.containers) > 0
}

// expire marks the curves of deleted nodes and pods, and drops the chunks that are older than a day.
func (h *history) expire(there map[curveKey]bool) {
	oldest := (h.minute - historyPoints + 1) / chunkPoints
	for _, s := range h.shares {
		s.full = false
		for key, c := range s.curves {
			c.deleted = !there[key]
			for len(c.chunks) > 0 && c.chunks[0].hour < oldest {
				h.dropChunk(s, key, c)
			}
		}
	}
	for node, s := range h.shares {
		switch {
		case len(s.curves) == 0:
			delete(h.shares, node)
		case len(s.curves) < s.mapCapacity/2:
			fewer := make(map[curveKey]*curve, len(s.curves))
			maps.Copy(fewer, s.curves)
			s.curves, s.mapCapacity = fewer, len(fewer)
		}
	}
}

// dropChunk drops a curve's oldest chunk, and with the last one the curve.
func (h *history) dropChunk(s *nodeShare, key curveKey, c *curve) {
	c.chunks[0] = nil
	c.chunks = c.chunks[1:]
	free := chunkBytes
	if len(c.chunks) == 0 {
		delete(s.curves, key)
		free += key.bytes()
	}
	s.bytes -= free
	h.bytes -= free
}

// add adds a point of the present minute. It adds none when the history is full and this node's share is the largest.
func (h *history) add(node string, key curveKey, in types.UID, p [2]uint16) {
	hour := h.minute / chunkPoints
	s := h.shares[node]
	if s == nil {
		s = &nodeShare{curves: map[curveKey]*curve{}}
		h.shares[node] = s
	}
	c := s.curves[key]
	for c == nil || c.chunks[len(c.chunks)-1].hour != hour {
		need := chunkBytes
		if c == nil {
			need += key.bytes()
		}
		if h.bytes+need > h.limit {
			if s.full || !h.freeSpace(s, hour) {
				s.full = true
				return
			}
			c = s.curves[key] // this curve may have been dropped
			continue
		}
		if c == nil {
			c = &curve{namespaceUID: in}
			s.curves[key] = c
			s.mapCapacity = max(s.mapCapacity, len(s.curves))
		}
		c.chunks = append(c.chunks, &chunk{hour: hour})
		s.bytes += need
		h.bytes += need
	}
	c.chunks[len(c.chunks)-1].points[h.minute%chunkPoints] = p
}

// freeSpace drops data of the node with the largest share. It first drops the curves of deleted pods, and then the
// oldest hour. Of another node than the one that needs space, it may then drop some curves. It returns false if it
// dropped nothing.
func (h *history) freeSpace(asks *nodeShare, hour int32) bool {
	largest := asks
	for _, s := range h.shares {
		if s.bytes > largest.bytes {
			largest = s
		}
	}
	before, oldest := h.bytes, hour
	for key, c := range largest.curves {
		oldest = min(oldest, c.chunks[0].hour)
		for c.deleted && len(c.chunks) > 0 {
			h.dropChunk(largest, key, c)
		}
	}
	if h.bytes < before {
		return true
	}
	for key, c := range largest.curves {
		switch {
		case oldest < hour && c.chunks[0].hour == oldest:
			h.dropChunk(largest, key, c)
		case oldest == hour && largest.bytes > asks.bytes && before-h.bytes < h.limit/roomParts:
			h.dropChunk(largest, key, c)
		}
	}
	return h.bytes < before
}

// size returns the memory that the history uses, in bytes.
func (h *history) size() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.bytes
}
