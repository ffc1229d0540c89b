// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/http"
	"strings"
)

// request is a client's request, with what routing and policies need to know of it.
type request struct {
	listener  *listener
	proxy     *Proxy
	routing   *routing // the same during the whole request
	in        *http.Request
	body      requestBody
	timeouts  timeouts
	trailers  http.Header // as the client announced them
	path      cleanPath
	peer      string // the address of the client or of the last proxy before this one
	fromProxy bool   // peer is a trusted proxy
	hops      int    // the number of proxies that the request has passed
	scheme    string
	grpc      bool
	steps     steps // those that comparing the request with expressions may still take
	expanded  int   // bytes of the request that texts of the route have repeated
}

// init reads what does not depend on the route.
func (r *request) init(h *listener, in *http.Request) {
	r.listener, r.proxy, r.routing, r.in = h, h.proxy, h.proxy.current.Load(), in
	delete(in.Header, headerProxy)
	r.steps = r.newSteps()
	r.peer, r.fromProxy = peer(in.RemoteAddr, r.routing.trusted)
	r.scheme = r.clientScheme()
	r.grpc = strings.HasPrefix(in.Header.Get("Content-Type"), "application/grpc")
	r.body.request, r.body.inner = r, in.Body
	r.body.done.Store(in.ContentLength == 0)
}
