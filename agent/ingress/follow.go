// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// shortestPause is the pause between two streams. It doubles after each, up to longestPause.
	shortestPause, longestPause = 200 * time.Millisecond, 5 * time.Second
)

// follow reads the stream of the table again and again, and sends each state of it to tables, until ctx is done.
func follow(ctx context.Context, stream func(context.Context) (io.ReadCloser, error), tables chan<- table.Sections, log *slog.Logger) {
	complaint := ""
	for pause := shortestPause; ctx.Err() == nil; {
		began := time.Now()
		err := listen(ctx, stream, tables)
		if time.Since(began) > longestPause {
			pause = shortestPause
		}
		if text := fmt.Sprint(err); ctx.Err() == nil && !errors.Is(err, io.EOF) && text != complaint {
			complaint = text
			log.Info("ingress: the routing table cannot be read from the server; the proxy uses the last one. Retrying", "error",
				err)
		}
		timers.Sleep(ctx, pause)
		pause = min(2*pause, longestPause)
	}
}

// listen reads one stream to its end.
func listen(ctx context.Context, stream func(context.Context) (io.ReadCloser, error), tables chan<- table.Sections) error {
	body, err := stream(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	defer context.AfterFunc(ctx, func() { _ = body.Close() })()
	now := table.Sections{}
	for in := json.NewDecoder(body); ; {
		var c table.Change
		if err := in.Decode(&c); err != nil {
			return err
		}
		if !c.Commit {
			now.Apply(c)
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case tables <- maps.Clone(now):
		}
	}
}
