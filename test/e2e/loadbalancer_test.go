//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"

	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// ingressPath is a Service's first address, conditionPath the reason of what is said about it.
const (
	ingressPath   = "{.status.loadBalancer.ingress[*].ip}"
	conditionPath = `{.status.conditions[?(@.type=="coracle.dev/LoadBalancer")].reason}`
)

func balancer(name, app string, port int, more string) string {
	return fmt.Sprintf(`---
{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {type: LoadBalancer, allocateLoadBalancerNodePorts: false, selector: {app: %s}, ports: [{port: %d, targetPort: 8080}]%s}}
`, name, app, port, more)
}

// loadBalancer: a Service of type LoadBalancer answers at the node's address, and the older of two that want the same
// port has it.
func loadBalancer(k *harness.Kube) {
	const port = 18443
	k.Apply(pod("front", "[testbox, serve]", "ports: [{containerPort: 8080}]", "") + balancer("front", "front", port, "") +
		balancer("foreign", "front", port+1, ", loadBalancerClass: example.com/other") + balancer("reserved", "front", 10250, ""))
	k.Kubectl("wait", "--for=condition=Ready", "pod/front", "--timeout=180s")
	k.Await(soon, "service/front", ingressPath, harness.NodeIP)
	answers(k, port, "front")
	k.Await(soon, "service/reserved", conditionPath, "PortInUse")

	k.Apply(balancer("second", "front", port, ", externalTrafficPolicy: Local"))
	k.Await(soon, "service/second", conditionPath, "PortInUse")
	k.Prints([]string{k.NS + "/front has it"}, "get", "events", "--field-selector", "involvedObject.name=second,reason=PortInUse")
	k.Kubectl("delete", "service", "front")
	k.Await(soon, "service/second", ingressPath, harness.NodeIP)
	answers(k, port, "front")

	k.Kubectl("patch", "service", "second", "-p", `{"spec":{"loadBalancerSourceRanges":["192.0.2.0/24"]}}`)
	harness.Eventually(k.T, soon, "other clients are kept out", func() error {
		if out, err := fromOutside(k, port); err == nil {
			return fmt.Errorf("it answers %s", out)
		}
		return nil
	})
	k.Kubectl("patch", "service", "second", "-p", `{"spec":{"loadBalancerSourceRanges":["`+harness.OutsideIP+`/32"]}}`)
	answers(k, port, "front")
	for _, path := range []string{ingressPath, conditionPath} {
		testenv.Equal(k.T, k.Kubectl("get", "service", "foreign", "-o", "jsonpath="+path), "", "a Service of another class has")
	}
}

// fromOutside asks at a port of the node.
func fromOutside(k *harness.Kube, port int) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), longer)
	defer cancel()
	return harness.Output(k.Outside(ctx, harness.Box(k.T), "get", fmt.Sprintf("http://%s:%d/", harness.NodeIP, port), "1"))
}

// answers waits until a port of the node answers from outside.
func answers(k *harness.Kube, port int, want string) {
	k.T.Helper()
	harness.Eventually(k.T, soon, fmt.Sprintf("port %d answers", port), func() error {
		out, err := fromOutside(k, port)
		if err == nil && strings.TrimSpace(out) != want {
			err = fmt.Errorf("got %q", out)
		}
		return err
	})
}
