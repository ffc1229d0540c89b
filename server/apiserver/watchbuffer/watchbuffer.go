// SPDX-License-Identifier: Apache-2.0

// Package watchbuffer limits the memory for events that a watch of the store has received and its reader has not yet
// taken (ADR 0072).
//
// Upstream's etcd3.watchChan decodes each event for each watch separately. It has room for a hundred decoded events,
// and for a hundred encoded ones, however large they are: an unread watch of an object of 300 KB held 30 MB of copies.
// A Bound makes the watch's decoder wait for the reader, and makes the sender of encoded events wait for the decoder.
//
// It owns one goroutine for each watch, which ends with the context of Follow, or after the last event. It never drops
// an event, and never changes their order.
package watchbuffer

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// Limit is how many bytes of events, in encoded form, may be decoded for a watch and wait for its reader. As many bytes
// again may wait before the decoder. One object is always allowed. A hundred objects of 2.6 KB are that many bytes.
// Upstream's channels hold a hundred events, so only watches of larger objects reach the limit.
const Limit = 256 << 10

// Bound limits the memory of one watch.
type Bound struct {
	mu        sync.Mutex
	decoded   <-chan watch.Event // events not received yet; nil before the watch has begun
	handing   int                // 1 while pass holds an event
	largest   int                // size of the largest value decoded since no event was waiting
	firstByte *byte              // first byte of the value whose decoding WaitDecoded waits for; nil once it is decoded
	changes   timers.Broadcast   // sent when there may be space
}

type boundKey struct{}

// With returns a context that carries b, for all work of b's watch.
func With(ctx context.Context, b *Bound) context.Context {
	return context.WithValue(ctx, boundKey{}, b)
}

// From returns the Bound that ctx carries, or nil.
func From(ctx context.Context) *Bound {
	b, _ := ctx.Value(boundKey{}).(*Bound)
	return b
}

// Follow returns the channel from which the reader takes decoded events. The channel is closed after the last event, or
// when ctx is done. decoded must not be read elsewhere after that. Nothing is decoded for the watch before Follow is
// called, which happens once.
func (b *Bound) Follow(ctx context.Context, decoded <-chan watch.Event) <-chan watch.Event {
	out := make(chan watch.Event) // no buffer: the events in decoded are counted
	b.mu.Lock()
	b.decoded = decoded
	b.changes.Send()
	b.mu.Unlock()
	go b.passEvents(ctx, decoded, out)
	return out
}

func (b *Bound) passEvents(ctx context.Context, decoded <-chan watch.Event, out chan<- watch.Event) {
	defer close(out)
	for {
		select {
		case e, ok := <-decoded:
			if !ok || !b.deliver(ctx, e, out) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (b *Bound) deliver(ctx context.Context, e watch.Event, out chan<- watch.Event) bool {
	b.mu.Lock()
	b.handing = 1
	b.mu.Unlock()
	select {
	case out <- e:
	case <-ctx.Done():
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handing = 0
	b.changes.Send()
	return true
}

// Decode is called before a value is decoded for the watch. It returns when there is space for the value, or when ctx
// is done.
func (b *Bound) Decode(ctx context.Context, value []byte) {
	b.arrived(value)
	for {
		changed := b.awaitSpace(len(value))
		if changed == nil {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (b *Bound) arrived(value []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.firstByte != nil && len(value) > 0 && &value[0] == b.firstByte {
		b.firstByte = nil
		b.changes.Send()
	}
}

// awaitSpace returns nil if there is space for an object of size bytes, and else a channel that is closed when there
// may be space. It may not count an event that pass has just received.
//
// It does not know which objects are waiting, since a watch's selector drops some after they were decoded. It counts
// each with the size of the largest recent one.
func (b *Bound) awaitSpace(size int) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	waiting := len(b.decoded) + b.handing
	if waiting == 0 {
		b.largest = 0
	}
	largest := max(b.largest, size)
	if b.decoded != nil && (waiting == 0 || (waiting+1)*largest <= Limit) {
		b.largest = largest
		return nil
	}
	return b.changes.Next()
}

// WaitDecoded is called before events are passed on to the decoder, once per Limit bytes. last is the value of the last
// of these events, and must be the same bytes that Decode is called with. WaitDecoded returns when the last value of
// the previous call has reached Decode, or when ctx is done.
func (b *Bound) WaitDecoded(ctx context.Context, last []byte) {
	for {
		b.mu.Lock()
		if b.firstByte == nil {
			if len(last) > 0 {
				b.firstByte = &last[0]
			}
			b.mu.Unlock()
			return
		}
		changed := b.changes.Next()
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
