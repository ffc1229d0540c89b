// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/cache"
)

// indexPause is how often the index of OpenAPI documents is asked for while there is no policy that needs it.
const indexPause = time.Minute

// indexForPolicies is the way of the loopback client, by which upstream's plugin for MutatingAdmissionPolicies asks for
// the index of OpenAPI documents every five seconds, most of what a server at rest is asked for. The first answer comes
// at once, each further one after indexPause, and all of them at once as soon as there was a policy.
type indexForPolicies struct {
	http.RoundTripper
	policy <-chan struct{} // closed then
	asked  atomic.Bool
}

func newIndexForPolicies(way http.RoundTripper, policies cache.SharedIndexInformer) (*indexForPolicies, error) {
	seen := make(chan struct{})
	closed := sync.OnceFunc(func() { close(seen) })
	_, err := policies.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { closed() }})
	return &indexForPolicies{RoundTripper: way, policy: seen}, err
}

// RoundTrip implements http.RoundTripper.
func (i *indexForPolicies) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path == "/openapi/v3" && i.asked.Swap(true) {
		select {
		case <-i.policy:
		case <-time.After(indexPause):
		case <-r.Context().Done():
		}
	}
	return i.RoundTripper.RoundTrip(r)
}
