// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"sync"

	"k8s.io/apimachinery/pkg/watch"
)

// mapWatch returns a watch that passes on the events of in, each changed by f. Unlike watch.Filter it also ends, when
// stopped, while an event waits for a reader.
func mapWatch(in watch.Interface, f func(watch.Event) watch.Event) watch.Interface {
	w := &mappedWatch{Interface: in, events: make(chan watch.Event), stopped: make(chan struct{})}
	go w.run(f)
	return w
}

type mappedWatch struct {
	watch.Interface
	events  chan watch.Event
	stopped chan struct{}
	stop    sync.Once
}

// ResultChan implements watch.Interface.
func (w *mappedWatch) ResultChan() <-chan watch.Event { return w.events }

// Stop implements watch.Interface.
func (w *mappedWatch) Stop() {
	w.stop.Do(func() { close(w.stopped) })
	w.Interface.Stop()
}

func (w *mappedWatch) run(f func(watch.Event) watch.Event) {
	defer close(w.events)
	for e := range w.Interface.ResultChan() {
		select {
		case w.events <- f(e):
		case <-w.stopped:
			return
		}
	}
}
