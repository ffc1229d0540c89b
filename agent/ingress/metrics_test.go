// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMetricsAreThoseOfTheProxy: what a proxy has counted is shown, and nothing once there is no proxy.
func TestMetricsAreThoseOfTheProxy(t *testing.T) {
	netns.RequireNFT(t)
	n := newTestNode(t)
	n.o.NodeIPs = []netip.Addr{netip.MustParseAddr(machineIP)}
	n.table = table.Sections{}
	testenv.NoError(t,
		n.table.Put(table.HostKey(table.SiteIngress, "a.example"), table.Host{Routes: []table.Route{{Path: "/", Kind: table.PathPrefix}}}))
	a := startAgent(n)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(a.node.Metrics())
	eventually(t, "the node says where it serves", func() bool { return a.annotation() != "" })
	for _, host := range []string{"a.example", "a.example", "other.example"} {
		req := testenv.Must(http.NewRequest(http.MethodGet, fmt.Sprintf("http://%s:%d/", machineIP, table.NodeHTTPPort), nil))(t)
		req.Host = host
		res := testenv.Must(fresh().Do(req))(t)
		_ = res.Body.Close()
	}
	want := `# HELP coracle_ingress_requests_total Requests that the node's ingress proxy has answered.
# TYPE coracle_ingress_requests_total counter
coracle_ingress_requests_total{host="a.example",site="ingress",status="5xx"} 2
coracle_ingress_requests_total{host="other",site="",status="4xx"} 1
`
	eventually(t, "the requests are counted", func() bool {
		return testutil.GatherAndCompare(registry, strings.NewReader(want), "coracle_ingress_requests_total") == nil
	})
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("the metrics have problems: %v, %v", problems, err)
	}
	eventually(t, "there is a histogram of each host", func() bool { // a proxy that does not answer soon has none
		count, err := testutil.GatherAndCount(registry, "coracle_ingress_request_duration_seconds")
		return err == nil && count == 2
	})
	testenv.NoError(t, a.client.CoreV1().Services(metav1.NamespaceSystem).Delete(t.Context(), table.Service, metav1.DeleteOptions{}))
	eventually(t, "no process is left", func() bool { return len(n.processes()) == 0 })
	if count, err := testutil.GatherAndCount(registry); err != nil || count != 0 {
		t.Errorf("%d series without a proxy, %v", count, err)
	}
}
