// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"net"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd/api"
)

// serverURLs asks the cluster for its live servers.
func serverURLs(ctx context.Context, c kubernetes.Interface) ([]string, error) {
	found, err := c.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		return nil, fmt.Errorf("asking for the servers: %w", err)
	}
	var out []string
	for _, slice := range found.Items {
		for _, p := range slice.Ports {
			if p.Port == nil {
				continue
			}
			for _, e := range slice.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				for _, a := range e.Addresses {
					out = append(out, "https://"+net.JoinHostPort(a, strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	return out, nil
}

// addContexts gives a kubeconfig of one context a further one for each server. A kubeconfig's cluster has one address, and
// kubectl tries no other: whoever wants another server says so with --context.
func addContexts(c *api.Config, urls []string) {
	name := c.CurrentContext
	for i, url := range urls {
		each := fmt.Sprintf("%s-%d", name, i+1)
		cluster, ctx := c.Clusters[c.Contexts[name].Cluster].DeepCopy(), c.Contexts[name].DeepCopy()
		cluster.Server, ctx.Cluster = url, each
		c.Clusters[each], c.Contexts[each] = cluster, ctx
	}
}
