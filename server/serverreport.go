// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"net/http"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/server/storeusage"
)

// serverReport returns this server's report about the cluster and itself, for users of the API. It contains only what
// this server has in memory, and the names and headers of its snapshots.
func (s *Server) serverReport(ctx context.Context) (out status.ServerReport, _ error) {
	servers, err := s.roster.Report(ctx)
	if err != nil {
		return out, err
	}
	out = status.ServerReport{Servers: *servers, Components: []status.Component{}, NetworkBackend: s.backend.Last()}
	if s.o.Board != nil {
		out.Components = s.o.Board.Components()
	}
	for _, a := range s.vips.ClusterAddresses() {
		out.VirtualIPs = append(out.VirtualIPs, a.String())
	}
	if store := s.store.Ready(); store != nil {
		stats := store.View().Stats()
		out.Store = &status.StoreSize{Live: stats.LiveBytes, Total: stats.TotalBytes, Quota: store.Health().Quota()}
		for _, c := range servers.Servers {
			out.Store.Quota = cmp.Or(c.ClusterQuota, out.Store.Quota)
		}
	}
	if kept, err := s.snapshots.Summary(); err != nil {
		s.log.Debug("the snapshots are not in the report of this server", "error", err)
	} else if kept.Scheduled || kept.Count > 0 {
		out.Snapshots = &kept
	}
	return out, nil
}

// StoreUsageHandler serves status.UsagePath on a server's admin socket. It works without a majority and without the API
// server.
func StoreUsageHandler(s *Server) http.Handler { return storeusage.Handler(s.store.Opened) }
