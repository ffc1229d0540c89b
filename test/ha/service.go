// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"
)

// everywhere is a Deployment with a pod on each of so many nodes and a Service before it.
var everywhere = harness.Workload("Deployment", "everywhere", "replicas: %d", `
  terminationGracePeriodSeconds: 1, `+harness.OnePerNode("everywhere")+`,
  containers: [{name: c, image: `+harness.BoxImage+`, imagePullPolicy: Never, command: [testbox, serve],
  ports: [{containerPort: 8080}]}]`) + `
apiVersion: v1
kind: Service
metadata: {name: everywhere}
spec: {clusterIP: "%s", selector: {app: everywhere}, ports: [{port: 80, targetPort: 8080}]}
`

// serviceIP is the address of the Service everywhere.
func (c *Cluster) serviceIP() string {
	if c.six {
		return "fd43::9999"
	}
	return "10.43.99.99"
}

// service is where it answers.
func (c *Cluster) service() string { return net.JoinHostPort(c.serviceIP(), "80") }

// serveEverywhere has a pod on each node serve as the Service everywhere, and waits until all are ready.
func (c *Cluster) serveEverywhere() {
	c.T.Helper()
	nodes := len(c.Nodes())
	c.Servers[0].InsistsOn(fmt.Sprintf(everywhere, nodes, c.serviceIP()))
	harness.Eventually(c.T, soon, "a pod on each node", func() error {
		d, err := c.Ask(c.Servers[0]).AppsV1().Deployments(metav1.NamespaceDefault).Get(c.T.Context(), "everywhere", metav1.GetOptions{})
		if err == nil && int(d.Status.ReadyReplicas) != nodes {
			err = fmt.Errorf("%d are ready", d.Status.ReadyReplicas)
		}
		return err
	})
}

// visit asks for a page by HTTP, on a connection of its own.
func visit(from *harness.Machine, address string) func(context.Context) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, network, to string) (net.Conn, error) { return from.Dial(ctx, network, to) },
	}}
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		_, err = io.Copy(io.Discard, answer.Body)
		return err
	}
}
