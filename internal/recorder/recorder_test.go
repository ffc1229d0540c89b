// SPDX-License-Identifier: Apache-2.0

package recorder_test

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/recorder"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRecorderBeginsWithFirstEvent: a recorder has no goroutine before its first Event, and then writes what it gets.
func TestRecorderBeginsWithFirstEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		client := fake.NewClientset()
		before := runtime.NumGoroutine()
		r := recorder.New(ctx, client, "test")
		testenv.Equal(t, runtime.NumGoroutine(), before, "goroutines before an Event:")
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "m"}}
		r.Eventf(m, corev1.EventTypeWarning, "Reason", "the key %s", "a")
		synctest.Wait()
		events := testenv.Must(client.CoreV1().Events("kube-system").List(ctx, metav1.ListOptions{}))(t).Items
		testenv.Require(t, len(events) == 1, "%v", events)
		e := events[0]
		testenv.Equal(t, e.Source.Component+" "+e.InvolvedObject.Kind+" "+e.InvolvedObject.Name+" "+e.Message, "test ConfigMap m the key a", "")
	})
}
