// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
)

// maxRetryDelay is the longest time between two attempts at a write that the API refuses.
const maxRetryDelay = 5 * time.Minute

// refusals makes writes that the API refuses, for example by an admission policy, be tried less and less often. Other
// failures, such as those of the network, are not counted as refusals.
type refusals struct {
	limiter workqueue.TypedRateLimiter[string]
	held    map[string]refusal
}

// refusal is a refused write. It is not tried before next, unless the version of what is written changes.
type refusal struct {
	version string
	next    time.Time
}

func newRefusals() *refusals {
	return &refusals{workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryDelay, maxRetryDelay), map[string]refusal{}}
}

// isRefused reports whether the same write would be refused again.
func isRefused(err error) bool {
	return slices.Contains([]metav1.StatusReason{
		metav1.StatusReasonInvalid, metav1.StatusReasonForbidden, metav1.StatusReasonBadRequest,
		metav1.StatusReasonRequestEntityTooLarge,
	}, apierrors.ReasonForError(err))
}

// writeUnlessRefused writes, unless this version of the object was refused a short time ago.
func (r *refusals) writeUnlessRefused(key, version string, write func() error) error {
	last, refused := r.held[key]
	if refused && last.version == version && time.Now().Before(last.next) {
		return nil
	}
	if refused && last.version != version {
		r.limiter.Forget(key)
	}
	err := write()
	if isRefused(err) {
		r.held[key] = refusal{version, time.Now().Add(r.limiter.When(key))}
		return err
	}
	r.limiter.Forget(key)
	delete(r.held, key)
	return err
}

// nextRetry returns the time after which the next refused write is due; 0 where there is none. It evicts those of
// objects that no longer exist.
func (r *refusals) nextRetry(tried map[string]bool) (again time.Duration) {
	for key, of := range r.held {
		if !tried[key] {
			r.limiter.Forget(key)
			delete(r.held, key)
			continue
		}
		if rest := max(time.Until(of.next), time.Millisecond); again == 0 || rest < again {
			again = rest
		}
	}
	return again
}
