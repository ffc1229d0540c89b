// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/coredns/coredns/plugin/pkg/rcode"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics/legacyregistry"
)

// showMetrics adds CoreDNS' metrics of queries and answers to the process' metrics, which the kubelet serves to
// authorized clients. CoreDNS' own plugin for that opens a port without authorization. If a Server has registered them
// before, nothing changes.
func showMetrics() {
	for _, c := range []prometheus.Collector{vars.RequestCount, vars.RequestDuration, vars.RequestSize, vars.ResponseSize,
		vars.ResponseRcode} {
		_ = legacyregistry.Registerer().Register(c)
	}
}

// ServeDNS implements plugin.Handler. It counts in the same way as CoreDNS' own plugin.
func (g *gate) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	recorder, size := metrics.NewRecorder(w), r.Len()
	code, err := g.answer(ctx, recorder, r)
	said := recorder.Rcode
	if !plugin.ClientWrite(code) {
		said = code // nothing was written; the server will write this code
	}
	vars.Report(metrics.WithServer(ctx), request.Request{W: w, Req: r}, g.zone, metrics.WithView(ctx), rcode.ToString(said),
		recorder.Plugin,
		recorder.Len, recorder.Start, vars.WithOriginalReqSize(size))
	return code, err
}
