// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"net/http"

	genericapiserver "k8s.io/apiserver/pkg/server"
)

// endLongRequests ends watches, logs and other long-running requests when, during a stop, all other requests have
// ended. Upstream leaves that to the clients and waits for a minute. A client resumes its watch where it ended, so
// the earlier it can do so, the better.
func endLongRequests(c *genericapiserver.Config) {
	drained, end := context.WithCancel(context.Background())
	go func() { // the goroutine ends with the server: upstream signals this at every orderly stop
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
