// SPDX-License-Identifier: Apache-2.0

package healthports

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestHealthCheckPortsAreBounded: a machine that holds connections to a Service's health check node port takes bounded
// memory and descriptors, and the port answers.
func TestHealthCheckPortsAreBounded(t *testing.T) {
	port := testenv.Port(t)
	addresses := proxyutil.NewNodePortAddresses(corev1.IPv4Protocol, []string{"127.0.0.0/8"})
	s := healthcheck.NewServiceHealthServer("node", nil, addresses, healthcheck.NewProxyHealthServer("", time.Minute, nil), corev1.IPv4Protocol)
	testenv.NoError(t, Bound(s))
	web := types.NamespacedName{Namespace: "default", Name: "web"}
	testenv.NoError(t, s.SyncServices(map[types.NamespacedName]uint16{web: uint16(port)}))
	defer func() { testenv.Check(t, s.SyncServices(nil)) }()
	at := fmt.Sprintf("127.0.0.1:%d", port)
	const clients = 4 * maxPerSource
	before := descriptors(t)
	for range clients {
		c := testenv.Must(net.Dial("tcp", at))(t)
		defer c.Close()
	}
	testenv.Eventually(t, 2*time.Minute, "the bound", func() error {
		if n := descriptors(t) - before - clients; n > maxPerSource+2 {
			return fmt.Errorf("the server has %d connections open, of at most %d", n, maxPerSource)
		}
		return nil
	})
	answer := testenv.Must(http.Get("http://" + at))(t)
	defer answer.Body.Close()
	testenv.Equal(t, answer.StatusCode, http.StatusServiceUnavailable, "a Service without endpoints:")
}

func descriptors(t *testing.T) int {
	t.Helper()
	return len(testenv.Must(os.ReadDir("/proc/self/fd"))(t))
}
