// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestRefusedWritesAreTriedLessOften: a write that the API always refuses is tried 20 times in an hour and not 3,600
// times, and at once when the object has changed.
func TestRefusedWritesAreTriedLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, n := newRefusals(), 0
		refused := apierrors.NewForbidden(schema.GroupResource{Resource: "ingresses"}, "x", nil)
		write := func() error {
			n++
			return refused
		}
		tried := map[string]bool{"a/x": true}
		for end := time.Now().Add(time.Hour); time.Now().Before(end); time.Sleep(r.nextRetry(tried)) { // fake time
			_ = r.writeUnlessRefused("a/x", "1", write)
		}
		if n < 12 || n > 25 {
			t.Errorf("%d attempts within an hour", n)
		}
		before := n
		_ = r.writeUnlessRefused("a/x", "2", write)
		if n != before+1 || r.nextRetry(tried) > 2*retryDelay {
			t.Errorf("the changed object: %d attempts, the next after %s", n-before, r.nextRetry(tried))
		}
		if r.nextRetry(nil) != 0 || len(r.held) != 0 {
			t.Error("a deleted object is still held")
		}
	})
}
