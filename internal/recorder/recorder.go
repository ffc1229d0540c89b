// SPDX-License-Identifier: Apache-2.0

// Package recorder records Events by client-go's recorder, which costs nothing before the first Event.
//
// Its goroutines: client-go's three for each recorder that has recorded an Event, until the recorder's context is done.
package recorder

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// recorder makes client-go's recorder, whose two queues of 1,000 Events take 64 KB, at the first Event.
type recorder func() record.EventRecorder

// New returns a recorder of a component's Events, which ends with ctx.
func New(ctx context.Context, client kubernetes.Interface, component string, options ...record.BroadcasterOption) record.EventRecorder {
	return recorder(sync.OnceValue(func() record.EventRecorder {
		events := record.NewBroadcaster(append(options, record.WithContext(ctx))...)
		events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
		return events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component})
	}))
}

// Event implements record.EventRecorder.
func (r recorder) Event(of runtime.Object, kind, reason, message string) {
	r().Event(of, kind, reason, message)
}

// Eventf implements record.EventRecorder.
func (r recorder) Eventf(of runtime.Object, kind, reason, format string, args ...any) {
	r().Eventf(of, kind, reason, format, args...)
}

// AnnotatedEventf implements record.EventRecorder.
func (r recorder) AnnotatedEventf(of runtime.Object, annotations map[string]string, kind, reason, format string, args ...any) {
	r().AnnotatedEventf(of, annotations, kind, reason, format, args...)
}
