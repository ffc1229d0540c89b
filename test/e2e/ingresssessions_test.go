//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const sessionIngress = `---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: web
  annotations: {nginx.ingress.kubernetes.io/affinity: cookie, nginx.ingress.kubernetes.io/affinity-mode: persistent}
spec:
  rules: [{host: web.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]
`

// TestIngressSessionsStayWithTheirPods scales a Service from two pods to four while clients have sessions there, and
// from four to three. It also sends a request with two lengths.
func TestIngressSessionsStayWithTheirPods(t *testing.T) {
	s := harness.NewMachine(t).NewServer()
	s.AddBoxImage()
	s.StartNode()
	k := s.Namespace(t, "shop")
	start := func(names ...string) {
		for _, name := range names {
			k.Apply(strings.Replace(pod(name, "[testbox, serve]", "ports: [{containerPort: 8080}]", ""), "app: "+name, "app: web", 1))
		}
		for _, name := range names {
			k.Kubectl("wait", "--for=condition=Ready", "pod/"+name, "--timeout=180s")
		}
	}
	start("w0", "w1")
	k.Apply(sessionIngress)
	site := []string{"-H", "Host: web.example", "http://" + harness.NodeIP + "/"}
	jars := t.TempDir()
	ask := func(client string) (string, error) {
		jar := filepath.Join(jars, client)
		out, err := curl(k, append([]string{"-b", jar, "-c", jar}, site...)...)
		name, status, _ := strings.Cut(out, "\n")
		if err == nil && status != "200" {
			err = fmt.Errorf("it answers %q", out)
		}
		return name, err
	}
	reached := func(pod string) func() error { // by a new client
		client := 0
		return func() error {
			client++
			if name, err := ask(fmt.Sprintf("%s-%d", pod, client)); err != nil || name != pod {
				return fmt.Errorf("%s answers, %w", name, err)
			}
			return nil
		}
	}
	harness.Eventually(t, soon, "the Ingress leads to the one pod", reached("w0"))
	harness.Eventually(t, soon, "the Ingress leads to the other pod", reached("w1"))
	const clients = 20
	var first [clients]string
	for i := range clients {
		first[i] = testenv.Must(ask(fmt.Sprint(i)))(t)
	}

	start("w2", "w3")
	harness.Eventually(t, soon, "the Ingress leads to a new pod", reached("w2"))
	for i := range clients {
		testenv.Equal(t, testenv.Must(ask(fmt.Sprint(i)))(t), first[i], "after two pods came, client %d is served by", i)
	}
	k.Kubectl("delete", "pod", "w1")
	var later [clients]string
	for i := range clients {
		later[i] = testenv.Must(ask(fmt.Sprint(i)))(t)
		testenv.True(t, later[i] == first[i] && later[i] != "w1" || first[i] == "w1" && later[i] != "w1",
			"after w1 went, client %d of %s is served by %s", i, first[i], later[i])
	}
	start("w1")
	harness.Eventually(t, soon, "the Ingress leads to the pod that is back", reached("w1"))
	for i := range clients {
		testenv.Equal(t, testenv.Must(ask(fmt.Sprint(i)))(t), later[i], "after w1 came back, client %d is served by", i)
	}

	out := testenv.Must(curl(k, append([]string{"-o", "/dev/null", "-d", "abc", "-H", "Transfer-Encoding: chunked", "-H", "Content-Length: 3"}, site...)...))(t)
	testenv.Equal(t, out, "400", "a request with two lengths is answered with")
}
