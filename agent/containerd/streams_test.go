// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestConnectionsToStreamsAreBounded: users of the machine can open only so many connections to the port at which
// containerd serves streams, and others are answered meanwhile.
func TestConnectionsToStreamsAreBounded(t *testing.T) {
	inOwnProcess(t, func(*Server) {
		var at netip.AddrPort
		testenv.Eventually(t, 2*time.Minute, "the port for streams", func() error {
			sockets, err := proc.Listening(os.Getpid())
			for _, a := range sockets {
				if a.Addr() == clusterconfig.Loopback {
					at = a
					return nil
				}
			}
			return fmt.Errorf("it is not among %v: %w", sockets, err)
		})
		const clients = 8 * maxStreamless
		before := descriptors(t)
		for range clients {
			c := testenv.Must(net.Dial("tcp", at.String()))(t)
			defer c.Close()
		}
		testenv.Eventually(t, 2*time.Minute, "the bound", func() error {
			if n := descriptors(t) - before - clients; n > maxStreamless+8 { // and some for what else containerd does
				return fmt.Errorf("the server has %d connections open, of at most %d", n, maxStreamless)
			}
			return nil
		})
		c := testenv.Must(net.Dial("tcp", at.String()))(t)
		defer c.Close()
		testenv.Must(fmt.Fprintf(c, "GET /exec/wrong HTTP/1.0\r\n\r\n"))(t)
		answer := make([]byte, len("HTTP/1.0 404"))
		testenv.Must(c.Read(answer))(t)
		testenv.Equal(t, string(answer), "HTTP/1.0 404", "a request beside idle connections:")
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	return len(testenv.Must(os.ReadDir("/proc/self/fd"))(t))
}
