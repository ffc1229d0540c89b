// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestKernelWithoutNFTables: the log says it once and the board all the time, for the parts that need them, and the
// node goes on when the kernel has them.
func TestKernelWithoutNFTables(t *testing.T) {
	for name, c := range map[string]struct {
		o     Options
		parts string // that have failed
	}{
		"all":                        {Options{}, "pod network,network policies,service proxy"},
		"without policies":           {Options{Cluster: clusterconfig.Settings{Disabled: clusterconfig.Disabled{clusterconfig.PartNetworkPolicy}}}, "pod network,service proxy"},
		"another pod network":        {Options{Cluster: clusterconfig.Settings{NetworkBackend: clusterconfig.NetworkNone}}, "service proxy"},
		"another proxy":              {Options{Cluster: clusterconfig.Settings{NoServiceProxy: true}}, "pod network,network policies"},
		"neither proxy nor policies": {Options{Cluster: clusterconfig.Settings{NoServiceProxy: true, Disabled: clusterconfig.Disabled{clusterconfig.PartNetworkPolicy}}}, "pod network"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				o := c.o
				o.Board, o.Logger = status.NewBoard(time.Now), slog.New(slog.NewTextHandler(&log, nil))
				done := make(chan bool)
				var loaded atomic.Bool
				go func() {
					done <- o.awaitNFTables(t.Context(), func() error {
						if loaded.Load() {
							return nil
						}
						return unix.EPROTONOSUPPORT
					})
				}()
				time.Sleep(time.Hour) // of fake time
				synctest.Wait()
				var failed []string
				for _, part := range o.Board.Components() {
					if part.State == status.Failed && strings.Contains(part.Message, "protocol not supported") && strings.Contains(part.Message, "modprobe") {
						failed = append(failed, part.Name)
					}
				}
				testenv.Equal(t, strings.Join(failed, ","), c.parts, "failed are")
				if n := strings.Count(log.String(), "level=ERROR"); n != 1 || !strings.Contains(log.String(), "modprobe") {
					t.Errorf("the log has %d errors:\n%s", n, log.String())
				}
				loaded.Store(true)
				testenv.True(t, <-done, "the node does not go on")
				for _, part := range o.Board.Components() {
					testenv.False(t, part.State == status.Failed, "%s has failed still", part.Name)
				}
			})
		})
	}
}

// TestOtherReasonThanNFTables: a network that could not be set up for another reason ends the node, and so does the end
// of the wait.
func TestOtherReasonThanNFTables(t *testing.T) {
	o := Options{Board: status.NewBoard(time.Now), Logger: slog.New(slog.DiscardHandler)}
	testenv.False(t, o.awaitNFTables(t.Context(), func() error { return nil }), "it is tried again, though the kernel has nftables")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	testenv.False(t, o.awaitNFTables(ctx, func() error { return unix.EPROTONOSUPPORT }), "it is tried again at the end")
}
