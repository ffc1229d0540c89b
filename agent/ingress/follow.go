// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"io"
	"log/slog"
	"maps"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/nodestream"
)

// follow receives the stream of the table and sends each state of the table to tables, until ctx is done.
func follow(ctx context.Context, stream func(context.Context) (io.ReadCloser, error), tables chan<- table.Sections, log *slog.Logger) {
	nodestream.Client[table.Change]{
		Open: stream, Logger: log,
		Failure: "ingress: the routing table cannot be read from the server; the proxy uses the last one. Retrying",
		Receiver: func() func(table.Change) bool {
			now := table.Sections{}
			return func(c table.Change) bool {
				if !c.Commit {
					now.Apply(c)
					return true
				}
				select {
				case <-ctx.Done():
				case tables <- maps.Clone(now):
				}
				return true
			}
		},
	}.Run(ctx)
}
