// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// BenchmarkDesired compiles 1,000 HTTPRoutes of three rules each at one Gateway with HTTP and HTTPS. cpu-ms/op is the
// processor time, which other programs on the machine do not change.
func BenchmarkDesired(b *testing.B) {
	var objects strings.Builder
	objects.WriteString(`
kind: Gateway
metadata: {namespace: a, name: g}
spec:
  gatewayClassName: coracle
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
---
kind: Secret
metadata: {namespace: a, name: cert}
stringData: {tls.names: "*.example"}
---
kind: Service
metadata: {namespace: a, name: web}
spec: {ports: [{port: 80}]}
`)
	for i := range 1000 {
		fmt.Fprintf(&objects, `
---
kind: HTTPRoute
metadata: {namespace: a, name: r%d}
spec:
  parentRefs: [{name: g}]
  hostnames: [h%d.example]
  rules:
  - {matches: [{path: {value: /a}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /b}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /}}], backendRefs: [{name: web, port: 80}]}
`, i, i)
	}
	w := load(b, objects.String())
	w.Memory = &Memory{}
	w.settle(b)
	before := processorTime(b)
	for b.Loop() {
		testenv.Must(Desired(w.State))(b)
	}
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	testenv.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
