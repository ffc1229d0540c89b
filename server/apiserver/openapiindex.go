// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/cache"
)

// indexPause is the time between two requests for the index of OpenAPI documents while no policy needs it.
const indexPause = time.Minute

// indexForPolicies is the transport of the loopback client. Through it upstream's plugin for MutatingAdmissionPolicies
// requests the index of OpenAPI documents every five seconds, which is most of the requests on an idle server. The
// first request is answered at once, each further one after indexPause. Once there has been a policy, all are answered
// at once.
type indexForPolicies struct {
	http.RoundTripper
	policy    <-chan struct{} // closed once there has been a policy
	requested atomic.Bool
}

func newIndexForPolicies(way http.RoundTripper, policies cache.SharedIndexInformer) (*indexForPolicies, error) {
	seen := make(chan struct{})
	closed := sync.OnceFunc(func() { close(seen) })
	_, err := policies.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { closed() }})
	return &indexForPolicies{RoundTripper: way, policy: seen}, err
}

// RoundTrip implements http.RoundTripper.
func (i *indexForPolicies) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path == "/openapi/v3" && i.requested.Swap(true) {
		select {
		case <-i.policy:
		case <-time.After(indexPause):
		case <-r.Context().Done():
		}
	}
	return i.RoundTripper.RoundTrip(r)
}
