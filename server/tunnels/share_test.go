// SPDX-License-Identifier: Apache-2.0

package tunnels

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/coracle-k8s/coracle/localvolume"
	"github.com/coracle-k8s/coracle/nodetunnel"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUsersLeaveStreamsToTheCluster: however many port-forwards users keep open to a node, its volumes are asked, and
// its webhooks and kubelet are called. A user who has to wait receives the reason, and is not sent to the node by
// another way.
func TestUsersLeaveStreamsToTheCluster(t *testing.T) {
	f := newFixture(t)
	f.silent = true
	f.node("n1", "10.0.0.1", localvolume.Target.Addr().String())
	f.table.Follow(func(netip.Addr) string { return "n1" })
	const users = 1030
	var all sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	refused := 0
	limit := make(chan struct{}, 50)
	for range users {
		all.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			c, err := f.table.DialContext(ForUser(t.Context()), "tcp", "10.0.0.1:10250")
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				testenv.ErrorIs(t, err, nodetunnel.ErrTooMany)
				refused++
				return
			}
			open = append(open, c)
		})
	}
	all.Wait()
	testenv.True(t, refused > 0 && len(open) > 700, "%d are open, %d were refused", len(open), refused)
	for range 100 { // as many webhooks and more
		testenv.Must(f.table.DialContext(t.Context(), "tcp", "10.0.0.1:10250"))(t)
	}
	testenv.Must(f.table.Open(t.Context(), "n1", localvolume.Target))(t)
}
