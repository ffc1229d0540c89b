//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestPortForwardsLeaveTheNodeToOthers: a user of one namespace opens 1,030 port-forwards to a pod on a node that no
// server can connect to. Most are refused with 429; other users' exec and a new local volume of that node work.
func TestPortForwardsLeaveTheNodeToOthers(t *testing.T) {
	site := harness.NewSite(t)
	s := site.NewMachine().NewServer("--disable-agent")
	s.StartAPI()
	a := site.NewMachine().NewAgent(s)
	site.NoConnecting(s.Machine, a.Machine)
	a.AddBoxImage()
	a.Start()
	harness.Eventually(t, longer, "the node is ready", func() error { return s.NodeReady(a) })
	s.Creates("namespace", "tb")
	s.Creates("rolebinding", "bob", "--namespace=tb", "--clusterrole=edit", "--user=bob")
	s.In(t).Kubectl("run", "web", "--namespace=tb", "--image="+harness.BoxImage, "--image-pull-policy=Never", "--command", "--", "testbox", "serve")
	s.InsistsOn(onNode(a, "guest", "[testbox, serve]"))
	s.Insists("wait", "--for=condition=Ready", "pod/guest", "--timeout=180s")
	s.Insists("wait", "--for=condition=Ready", "pod/web", "--namespace=tb", "--timeout=180s")

	codes := map[int]int{}
	answers := make(chan int)
	for range 10 {
		go func() {
			for range 103 {
				answers <- forwarding(t, s, "tb", "web")
			}
		}()
	}
	for range 1030 {
		codes[<-answers]++
	}
	t.Logf("answers: %v", codes)
	s.In(t).Prints([]string{"hi"}, "exec", "guest", "--request-timeout=20s", "--", "echo", "hi")
	s.InsistsOn(fmt.Sprintf(`apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: keeper}, spec: {nodeSelector: {kubernetes.io/hostname: %s}, terminationGracePeriodSeconds: 1,
 containers: [%s, command: [testbox, serve], volumeMounts: [{name: data, mountPath: /data}]}],
 volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]}}
`, a.NodeName(), harness.BoxYAML))
	s.Insists("wait", "--for=condition=Ready", "pod/keeper", "--timeout=120s")
	testenv.True(t, codes[http.StatusSwitchingProtocols] == 100 && codes[http.StatusTooManyRequests] == 930, "the answers are %v", codes)
}

// forwarding opens a port-forward as bob, which stays open until the end of the test, and returns the answer's code, or
// 0 if there is none.
func forwarding(t *testing.T, s *harness.Server, namespace, pod string) int {
	t.Helper()
	fails := func(err error) bool {
		testenv.True(t, err == nil, "a port-forward: %v", err)
		return err != nil
	}
	file := filepath.Join(s.DataDir, "server", "tls", "client-admin.pem")
	pair, err := tls.LoadX509KeyPair(file, file)
	if fails(err) {
		return 0
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	raw, err := s.Dial(ctx, "tcp", s.IP+":6443")
	if fails(err) {
		return 0
	}
	t.Cleanup(func() { _ = raw.Close() })
	// The certificate is checked by other tests.
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}})
	_, err = fmt.Fprintf(c, "POST /api/v1/namespaces/%s/pods/%s/portforward?ports=8080 HTTP/1.1\r\nHost: api\r\nImpersonate-User: bob\r\n"+
		"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\nContent-Length: 0\r\n\r\n", namespace, pod)
	if fails(err) {
		return 0
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if fails(err) {
		return 0
	}
	return answer.StatusCode
}
