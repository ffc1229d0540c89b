// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// BenchmarkNodes says what one more node costs that follows a table of 150 sections: both ends of its stream counted,
// on the connection of HTTP/2 that it has anyway.
func BenchmarkNodes(b *testing.B) {
	const nodes = 200
	tables := New(Options{Client: fake.NewClientset()})
	tables.Duration = time.Hour
	now := table.Sections{}
	for i := range 150 {
		now[fmt.Sprintf("host/ingress/h%d.example", i)] = json.RawMessage(fmt.Sprintf(`{"routes":[{"path":"/p%d"}]}`, i))
	}
	tables.setState(now)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := request.WithUser(request.WithRequestInfo(r.Context(), &request.RequestInfo{Path: table.Path}), node)
		tables.ServeHTTP(w, r.WithContext(ctx))
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	memory := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	for b.Loop() {
		before := memory()
		var end []func() error
		for range nodes {
			res := testenv.Must(server.Client().Get(server.URL + table.Path))(b)
			end = append(end, res.Body.Close)
			for in := json.NewDecoder(res.Body); ; {
				var c table.Change
				testenv.NoError(b, in.Decode(&c))
				if c.Commit {
					break
				}
			}
		}
		b.ReportMetric(float64(memory()-before)/nodes/1024, "KB/node")
		for _, e := range end {
			_ = e()
		}
	}
	b.ReportMetric(0, "ns/op")
}
