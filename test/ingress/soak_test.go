//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// report is that of test/ingress/load.
type report struct {
	Name                  string
	Seconds               float64
	Done, Failed, Renewed map[string]int
	P50ms, P99ms          float64
	LongestMs             float64
	FirstBad              float64 `json:"firstFailureAfterSeconds"`
	LastBad               float64 `json:"lastFailureAfterSeconds"`
	Examples              []string
}

// soak is a load that runs while things happen to the cluster.
type soak struct {
	*testing.T
	in   io.WriteCloser
	out  *bufio.Reader
	rows []string
}

func startSoak(t *testing.T, s *harness.Server, load string, ips ...string) *soak {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := s.Outside(ctx, load, append([]string{"clients"}, ips...)...)
	in := testenv.Must(c.StdinPipe())(t)
	out := testenv.Must(c.StdoutPipe())(t)
	c.Stderr = os.Stderr
	testenv.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = in.Close()
		cancel()
		_ = c.Wait()
	})
	return &soak{T: t, in: in, out: bufio.NewReader(out)}
}

// since ends a phase.
func (s *soak) since(name string) report {
	s.Helper()
	testenv.Must(fmt.Fprintln(s.in, name))(s)
	line, err := s.out.ReadBytes('\n')
	testenv.NoError(s, err, "the load ended")
	var r report
	testenv.NoError(s, json.Unmarshal(line, &r))
	s.Logf("%s", line)
	sum := func(of map[string]int) (n int) {
		for _, v := range of {
			n += v
		}
		return n
	}
	s.rows = append(s.rows, fmt.Sprintf("| %s | %.0f | %d | %d | %d | %.1f | %.0f | %.0f |",
		name, r.Seconds, sum(r.Done), sum(r.Failed), sum(r.Renewed), r.P50ms, r.P99ms, r.LongestMs))
	return r
}

// calm ends a phase in which nothing may have failed.
func (s *soak) calm(name string) {
	s.Helper()
	if r := s.since(name); len(r.Failed) > 0 {
		s.Errorf("%s: failed %v, such as\n%s", name, r.Failed, strings.Join(r.Examples, "\n"))
	}
}

const changing = `---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: changing}
spec:
  rules: [{host: h%[1]d.example, http: {paths: [{path: /p%[1]d, pathType: Prefix, backend: {service: {name: site, port: {number: 80}}}}]}},
    {host: load.example, http: {paths: [{path: /unused/%[1]d, pathType: Prefix, backend: {service: {name: site, port: {number: 80}}}}]}}]
`

// TestSoak: 500 requests a second, 100 websockets and 20 streams of gRPC at two of three nodes, while routes change,
// pods are replaced, coracle starts again and is upgraded on each node, the certificate is another one, and the power
// of the third node is cut.
func TestSoak(t *testing.T) {
	older := os.Getenv("CORACLE_OLDER_BIN")
	if older == "" {
		t.Skip("CORACLE_OLDER_BIN names no other build: make ingress-soak makes one")
	}
	load := program(t)
	network := harness.NewSite(t)
	first := network.NewMachine().NewServer()
	nodes := []*harness.Server{first}
	for i := range 3 {
		if i > 0 {
			nodes = append(nodes, network.NewMachine().NewAgent(first))
		}
		nodes[i].Bin = older
		nodes[i].AddBoxImage()
		nodes[i].Start()
		if i == 0 {
			first.WaitAPI()
		}
	}
	ready := func(n *harness.Server) {
		t.Helper()
		harness.Eventually(t, patient, n.NodeName()+" is ready", func() error { return first.NodeReady(n) })
	}
	for _, n := range nodes {
		ready(n)
	}
	files := certificate(t, first)
	first.Apply(fmt.Sprintf(site, 3, filepath.Dir(load)))
	first.Kubectl("rollout", "status", "deployment/site", "--timeout=300s")
	for _, n := range nodes[:2] {
		serves(t, first, n.IP, files)
	}
	s := startSoak(t, first, load, nodes[0].IP, nodes[1].IP)
	quiet := func(d time.Duration) { time.Sleep(d) } // the load goes on: its length is what is measured
	quiet(5 * time.Second)
	s.since("start")
	quiet(20 * time.Second)
	s.calm("nothing")

	var changes strings.Builder
	for i := range 200 {
		fmt.Fprintf(&changes, changing, i)
	}
	first.Apply(changes.String())
	harness.Eventually(t, patient, "the last change is served", func() error {
		return harness.Exactly("200")(outside(first, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: h199.example", "http://"+nodes[1].IP+"/p199"))
	})
	s.calm("200 changes of routes")

	first.Kubectl("set", "env", "deployment/site", "ROUND=1")
	first.Kubectl("rollout", "status", "deployment/site", "--timeout=300s")
	quiet(30 * time.Second) // pods end after 10 s, and what they have open then
	s.calm("a rolling update")

	again := func(what, bin string) {
		for i, n := range nodes {
			testenv.NoError(t, n.Stop())
			n.Bin = bin
			before := n.InLog("the proxy of the previous run keeps running")
			n.Start()
			if i == 0 {
				first.WaitAPI()
			}
			harness.Eventually(t, patient, "the proxy goes on", func() error {
				if n.InLog("the proxy of the previous run keeps running") == before {
					return fmt.Errorf("%s does not say so", n.NodeName())
				}
				return nil
			})
			ready(n)
			if what == "an upgrade" {
				harness.Eventually(t, patient, "another proxy takes over", func() error { return n.LogSays("another proxy has taken over") })
			}
			s.calm(fmt.Sprintf("%s of node %d", what, i))
		}
	}
	again("a restart", older)
	again("an upgrade", "")
	quiet(10 * time.Second)
	s.calm("after the upgrades")

	files = certificate(t, first)
	for _, n := range nodes[:2] {
		serves(t, first, n.IP, files)
	}
	s.calm("another certificate")

	nodes[2].PowerOff()
	quiet(40 * time.Second)
	r := s.since("the third node's power is cut")
	t.Logf("failures began %.2f to %.2f s after the cut", r.FirstBad, r.LastBad)
	testenv.False(t, r.LastBad > 3, "requests that began %.2f s after the power's end failed", r.LastBad)
	quiet(20 * time.Second)
	s.calm("after it")
	t.Logf("| while | s | answered | failed | renewed | p50 ms | p99 ms | longest ms |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n%s", strings.Join(s.rows, "\n"))
}
