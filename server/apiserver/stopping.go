// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"net/http"

	genericapiserver "k8s.io/apiserver/pkg/server"
)

// endLongRequests makes watches, logs and other requests without an end of their
// own end when everything else in flight has ended during a stop. Upstream
// leaves them to the clients and waits for a minute; a client takes its watch
// up again where it was, so the sooner it may the better.
func endLongRequests(c *genericapiserver.Config) {
	drained, end := context.WithCancel(context.Background())
	go func() { // ends with the server: upstream signals this at every orderly stop
		<-c.DrainedNotify()
		end()
	}()
	build := c.BuildHandlerChainFunc
	c.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		next := build(api, c)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(drained, cancel)()
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	}
}
