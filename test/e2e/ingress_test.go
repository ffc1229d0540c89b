//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const webIngress = `---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  tls: [{hosts: [web.example], secretName: web}]
  rules:
  - host: web.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]}
`

// forgedSlice is a tenant's Ingress that leads to the kubelet of a node.
const forgedSlice = `---
{apiVersion: v1, kind: Service, metadata: {name: kubelet}, spec: {ports: [{name: http, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: kubelet, labels: {kubernetes.io/service-name: kubelet}}, addressType: IPv4,
  ports: [{name: http, port: 10250}], endpoints: [{addresses: [%s], conditions: {ready: true}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: kubelet}
spec: {rules: [{host: kubelet.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: kubelet, port: {number: 80}}}}]}}]}
`

// TestIngressServesThroughKillsAndRestarts serves a pod by an Ingress, over HTTP and over TLS with its Secret's
// certificate, while coracle itself is killed and starts again.
func TestIngressServesThroughKillsAndRestarts(t *testing.T) {
	m := harness.NewMachine(t)
	s := m.NewServer("--ingress-host-owner", "namespace")
	s.AddBoxImage()
	s.StartNode()
	k := s.Namespace(t, "shop")
	program := startProgram(m)
	if out, err := m.Run("pgrep", "-x", "coracle-ingress"); err == nil {
		t.Fatalf("the proxy runs though there is no Ingress: %s", out)
	}
	k.Prints([]string{"coracle.dev/ingress true"}, "get", "ingressclass", "coracle", "-o",
		`jsonpath={.spec.controller} {.metadata.annotations.ingressclass\.kubernetes\.io/is-default-class}`)

	k.Apply(pod("web", "[testbox, serve]", "ports: [{containerPort: 8080}]", "") + webIngress)
	k.Kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=180s")
	program.keepsPort(k)
	k.Await(soon, "ingress/web", ingressPath, harness.NodeIP)
	asks := func(want string, args ...string) func() error {
		return func() error {
			return harness.Exactly(want)(curl(k, args...))
		}
	}
	site := []string{"-H", "Host: web.example", "http://" + harness.NodeIP + "/"}
	harness.Eventually(t, soon, "the Ingress answers", asks("web\n200", site...))
	harness.Eventually(t, soon, "another host is not found", asks("404", "-o", "/dev/null", "http://"+harness.NodeIP+"/"))
	k.Prints([]string{"the Secret web does not exist"}, "get", "events", "--field-selector", "involvedObject.name=web,reason=BadCertificate")

	// Another namespace has no part of the host, and a ConfigMap holds for all Ingresses.
	s.Namespace(t, "other").Apply(strings.ReplaceAll(webIngress, "path: /,", "path: /theirs,"))
	s.In(t).Prints([]string{"belongs to the namespace shop"}, "get", "events", "-n", "other", "--field-selector",
		"involvedObject.name=web,reason=HostTaken")
	if out, err := curl(k, "-H", "Host: web.example", "http://"+harness.NodeIP+"/theirs"); err != nil || out != "web\n200" {
		t.Errorf("another namespace's path of the host answers %q, %v", out, err)
	}
	s.Kubectl("create", "configmap", "-n", "kube-system", "ingress", "--from-literal=denylist-source-range=0.0.0.0/0")
	harness.Eventually(t, soon, "the ConfigMap denies all clients", asks("403", append([]string{"-o", "/dev/null"}, site...)...))
	s.Kubectl("delete", "configmap", "-n", "kube-system", "ingress")
	harness.Eventually(t, soon, "without it they get in", asks("web\n200", site...))

	if out, err := curl(k, "--max-time", "2", "http://"+harness.NodeIP+":10054/"); err == nil {
		t.Errorf("the proxy's own port answers from outside, past the Service's source ranges: %s", out)
	}
	// A user who writes EndpointSlices names what the proxy must not reach: here the kubelet, its own node's.
	k.Apply(fmt.Sprintf(forgedSlice, harness.NodeIP))
	harness.Eventually(t, soon, "no way to the kubelet", asks("502", "-o", "/dev/null", "-H", "Host: kubelet.example", "http://"+harness.NodeIP+"/"))
	k.Prints([]string{"the Service kubelet has endpoints at " + harness.NodeIP + ":10250, to which proxies open no connection"}, "get", "events",
		"--field-selector", "involvedObject.name=kubelet,reason=Unreachable")

	ca := testenv.Must(testca.New(t.TempDir()))(t)
	files := testenv.Must(ca.Issue("web", "web.example"))(t)
	k.Kubectl("create", "secret", "tls", "web", "--cert", files.Cert, "--key", files.Key)
	secure := []string{"--cacert", files.CA, "--resolve", "web.example:443:" + harness.NodeIP, "https://web.example/"}
	harness.Eventually(t, soon, "the Secret's certificate is served", asks("web\n200", secure...))

	proxy := proxyPid(t, s)
	stop := make(chan struct{})
	failed := make(chan error, 1) // one: the requests' only result
	go func() { failed <- keepAsking(k, stop, site...) }()
	s.Kill()
	s.StartNode()
	harness.Eventually(t, soon, "the node has its proxy again", func() error {
		return s.LogSays("the proxy of the previous run keeps running")
	})
	close(stop)
	testenv.Check(t, <-failed, "while coracle was killed and started again")
	testenv.Equal(t, proxyPid(t, s), proxy, "the proxy was process %s and is", proxy)
	// Another Service wants port 80: it waits while there are Ingresses, and gets it when they have gone.
	k.Apply(`{apiVersion: v1, kind: Service, metadata: {name: other}, spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}`)
	harness.Eventually(t, soon, "an event says why the other Service waits", func() error {
		out, err := k.Try("get", "events", "--field-selector", "involvedObject.name=other,reason=PortInUse")
		if err == nil && !strings.Contains(out, "while there are Ingresses of its classes, such as shop/") {
			err = fmt.Errorf("the events are %s", out)
		}
		return err
	})
	testenv.Check(t, asks("web\n200", site...)(), "while another Service waits")
	k.Kubectl("delete", "ingress", "web", "kubelet")
	k.Kubectl("delete", "ingress", "-n", "other", "web")
	harness.Eventually(t, soon, "nothing is left of the Ingress", asks("404", append([]string{"-o", "/dev/null"}, site...)...))
	k.Await(longer, "service/other", ingressPath, harness.NodeIP)
	harness.Eventually(t, soon, "the other Service answers", asks("web\n200", "http://"+harness.NodeIP+"/"))
}

// program is one of the machine's own that listens at port 443 before there is an Ingress.
type program struct {
	net.Listener
	t testing.TB
}

func startProgram(m *harness.Machine) program {
	l := testenv.Must(m.Listen("0.0.0.0:443"))(m.T)
	m.T.Cleanup(func() { l.Close() })
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "program") }))
	}()
	return program{l, m.T}
}

// keepsPort: while the program listens, what comes from elsewhere reaches it, the only node is no address of the
// Ingress, and an event says why; then it ends.
func (p program) keepsPort(k *harness.Kube) {
	p.t.Helper()
	k.Server.In(p.t).Prints([]string{"listens at TCP 443"}, "get", "events", "-n", "kube-system", "--field-selector",
		"involvedObject.name=ingress,reason=PortInUse")
	testenv.Equal(p.t, testenv.Must(curl(k, "http://"+harness.NodeIP+":443/"))(p.t), "program200", "the program that has port 443 answers")
	if out, err := k.Try("get", "ingress", "web", "-o", "jsonpath="+ingressPath); err != nil || strings.TrimSpace(out) != "" {
		p.t.Errorf("the Ingress has the address %q, %v", out, err)
	}
	harness.Eventually(p.t, soon, "the status says so", func() error {
		if out, err := k.Run(k.Coracle(), "status", "--data-dir", k.DataDir); !strings.Contains(out, "another program listens at TCP 443") {
			return fmt.Errorf("it is %s, %w", out, err)
		}
		return nil
	})
	testenv.Check(p.t, p.Close())
}

// curl asks from outside the machine; what it returns ends with the answer's status.
func curl(k *harness.Kube, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), longer)
	defer cancel()
	return harness.Output(k.Outside(ctx, "curl", append([]string{"-sS", "--max-time", "20", "-w", "%{http_code}"}, args...)...))
}

// keepAsking asks one time after the other until stop is closed, and returns the first failure.
func keepAsking(k *harness.Kube, stop <-chan struct{}, args ...string) error {
	for asked := 0; ; asked++ {
		select {
		case <-stop:
			if asked == 0 {
				return fmt.Errorf("nothing was asked")
			}
			return nil
		case <-time.After(50 * time.Millisecond):
		}
		if out, err := curl(k, args...); err != nil || !strings.HasSuffix(out, "200") {
			return fmt.Errorf("request %d: %s %w", asked+1, out, err)
		}
	}
}

func proxyPid(t *testing.T, s *harness.Server) string {
	out := testenv.Must(s.Run("pgrep", "-x", "coracle-ingress"))(t)
	return strings.TrimSpace(out)
}
