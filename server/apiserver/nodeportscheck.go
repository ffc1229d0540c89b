// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"net/http"
	"time"
)

// servicesPause is how long the loopback client waits before it lists the Services again.
const servicesPause = 200 * time.Millisecond

// retriedServices makes the loopback client list the Services again while that fails and the server is not ready: the
// store may lose its leader at any time. Upstream's check of the node ports in use lists Services only once. It repeats
// a failed check after three minutes, and ends the process after one minute (portallocator/controller/repair.go).
type retriedServices struct {
	http.RoundTripper
	ready <-chan struct{}
}

// RoundTrip implements http.RoundTripper.
func (s retriedServices) RoundTrip(r *http.Request) (*http.Response, error) {
	for {
		resp, err := s.RoundTripper.RoundTrip(r)
		if err != nil || resp.StatusCode < http.StatusInternalServerError || r.URL.Path != "/api/v1/services" {
			return resp, err
		}
		select {
		case <-s.ready:
			return resp, nil
		case <-r.Context().Done():
			return resp, nil
		case <-time.After(servicesPause):
			_ = resp.Body.Close() // the body is only an error message
		}
	}
}
