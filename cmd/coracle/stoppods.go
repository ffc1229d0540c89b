// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/coracle-k8s/coracle/agent"
	"github.com/coracle-k8s/coracle/agent/kubelet"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
)

// serveStopPods lets root stop the node's pods over the admin socket. shutdown is nil for a server without a node. The
// time for the pods is the machine's setting unless a request names another one.
func serveStopPods(p *cli.Process, shutdown *agent.Shutdown, machine config.Node) {
	grace := machine.ShutdownGrace
	if kubelet.StopsPods(machine.KubeletArgs) {
		grace = 0
	}
	respond := func(w http.ResponseWriter, r status.StopPodsResult) {
		data, err := json.Marshal(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data))) // the response is whole before the process ends
		_, _ = w.Write(data)                                    // an error means that the client has disconnected
		_ = http.NewResponseController(w).Flush()
	}
	p.Admin.Handle("GET "+status.StopPodsPath, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		respond(w, status.StopPodsResult{Within: grace.String()})
	}))
	p.Admin.Handle("POST "+status.StopPodsPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		within := grace
		if text := r.URL.Query().Get("within"); text != "" {
			var err error
			if within, err = time.ParseDuration(text); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		if within > config.MaxShutdownGrace {
			http.Error(w, "within is longer than "+config.MaxShutdownGrace.String(), http.StatusBadRequest)
			return
		}
		result := status.StopPodsResult{Within: within.String()}
		switch {
		case shutdown == nil:
			result.Message = "this machine has no node, so it has no pods to stop"
		case within <= 0:
			result.Message = "pods are not stopped: the time for it is 0 (--shutdown-grace-period), or the kubelet's configuration has a shutdownGracePeriod"
		default:
			goOn := p.EndWithin(within + agent.StopRest)
			message, err := shutdown.StopPods(r.Context(), within)
			if result.Message = message; err != nil {
				result.Error = err.Error()
			}
			if result.Ends = shutdown.Stopping(); !result.Ends {
				goOn()
			}
		}
		respond(w, result)
		if result.Ends {
			p.End()
		}
	}))
}
