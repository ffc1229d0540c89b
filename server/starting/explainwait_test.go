// SPDX-License-Identifier: Apache-2.0

package starting

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
)

// TestRemovedServerIsExplained: the board says of a server that waits that it was removed, and who answers in its place
// as soon as one does.
func TestRemovedServerIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines := status.NewBoard(time.Now)
		s := New(Options{Part: lines.Part("store"), Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.ExplainWait(ctx, func() []string { return []string{"192.0.2.1:6443"} }, func() bool { return true })
		}()
		said := func(want string) {
			t.Helper()
			synctest.Wait()
			if got := lines.Components()[0].Message; !strings.Contains(got, want) || want == "" && got != "" {
				t.Errorf("%q, want %q", got, want)
			}
		}
		said("")
		time.Sleep(reachDelay) // of the bubble's clock
		said("removed from the cluster")
		s.failoverTargets.Store(&[]string{"192.0.2.1:6443"})
		s.targetsChanged <- struct{}{}
		said("removed from the cluster, which goes on without it. To let it join again, stop it, move the store's directory away, and start it with the address of another server. Meanwhile the server at 192.0.2.1:6443")
		cancel()
		<-done
	})
}
