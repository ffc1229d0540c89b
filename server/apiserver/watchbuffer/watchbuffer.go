// SPDX-License-Identifier: Apache-2.0

// Package watchbuffer bounds what a watch of the store has in memory ahead of its
// reader (ADR 0072).
//
// Upstream's etcd3.watchChan decodes each event for each watch by itself. It has
// room for a hundred decoded ones, and for a hundred that are still the store's
// bytes, however large they are: so an unread watch of an object of 300 KB held
// 30 MB of copies. A Bound has what decodes for the watch wait for the reader,
// and what passes on the store's bytes wait for what decodes.
//
// It owns one goroutine for each watch, which ends with the context that Follow
// is given, or behind the last event. It never drops an event, and never changes
// their order.
package watchbuffer

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/watch"
)

// Limit is how many bytes, as the store has them, are decoded for a watch before
// its reader has taken what was decoded earlier, and as many again may lie before
// what decodes; one object in any case. A hundred objects of 2.6 KB, which is what
// upstream's channels take, so that only watches of larger ones come up against it.
const Limit = 256 << 10

// Bound is that of one watch.
type Bound struct {
	mu      sync.Mutex
	decoded <-chan watch.Event // what was not received yet; nil before the watch has begun
	handing int                // 1 while pass has an event in its hands
	largest int                // size of the largest that was decoded since none was waiting
	mark    *byte              // of the value that WaitDecoded waits to see decoded, the first; nil when it is
	changed chan struct{}      // closed when there may be room; nil while no goroutine waits for that
}

type boundKey struct{}

// With returns a context for what is done for b's watch.
func With(ctx context.Context, b *Bound) context.Context {
	return context.WithValue(ctx, boundKey{}, b)
}

// From is the bound that ctx belongs to, or nil.
func From(ctx context.Context) *Bound {
	b, _ := ctx.Value(boundKey{}).(*Bound)
	return b
}

// Follow returns the channel by which the reader is given what is decoded. It is
// closed behind the last event, or when ctx is done; it must not be read after
// that. Nothing is decoded for the watch before Follow is called, which happens
// once.
func (b *Bound) Follow(ctx context.Context, decoded <-chan watch.Event) <-chan watch.Event {
	out := make(chan watch.Event) // no room: what waits in decoded is counted
	b.mu.Lock()
	b.decoded = decoded
	b.wake()
	b.mu.Unlock()
	go b.pass(ctx, decoded, out)
	return out
}

func (b *Bound) pass(ctx context.Context, decoded <-chan watch.Event, out chan<- watch.Event) {
	defer close(out)
	for {
		select {
		case e, ok := <-decoded:
			if !ok || !b.hand(ctx, e, out) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (b *Bound) hand(ctx context.Context, e watch.Event, out chan<- watch.Event) bool {
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
	b.wake()
	return true
}

// wake lets those look again who wait; mu is held.
func (b *Bound) wake() {
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

// wait is what is closed when there may be room; mu is held.
func (b *Bound) wait() <-chan struct{} {
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return b.changed
}

// Decode is called before a value is decoded for the watch. It returns when there
// is room for that, or when ctx is done.
func (b *Bound) Decode(ctx context.Context, value []byte) {
	b.arrived(value)
	for {
		changed := b.full(len(value))
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
	if b.mark != nil && len(value) > 0 && &value[0] == b.mark {
		b.mark = nil
		b.wake()
	}
}

// full is nil if there is room for an object of so many bytes; else it is closed
// when there may be. One that pass has just received it may not know of.
//
// Which objects are waiting is not known, since a watch's selector drops some
// after they were decoded: all are taken to be as large as the largest of late.
func (b *Bound) full(size int) <-chan struct{} {
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
	return b.wait()
}

// WaitDecoded is called before events are passed on to what decodes them, each time that
// they are Limit bytes, with the value of the last one, which must be the very bytes
// that Decode is called with. It returns when the last value of the time before has
// come there, or when ctx is done.
func (b *Bound) WaitDecoded(ctx context.Context, last []byte) {
	for {
		b.mu.Lock()
		if b.mark == nil {
			if len(last) > 0 {
				b.mark = &last[0]
			}
			b.mu.Unlock()
			return
		}
		changed := b.wait()
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
