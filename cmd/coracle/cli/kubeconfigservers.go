// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/convert"
)

// serverURLs returns the URLs of the cluster's live servers.
func serverURLs(ctx context.Context, c kubernetes.Interface) ([]string, error) {
	found, err := c.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx,
		metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		return nil, fmt.Errorf("listing the servers: %w", err)
	}
	return convert.Slice(clusterconfig.Ready(found.Items), func(at string) string { return "https://" + at }), nil
}

// addContexts adds a context for each server to a kubeconfig that has one context. The cluster of a kubeconfig has one
// address, and kubectl tries no other. With these contexts, --context selects another server.
func addContexts(c *api.Config, urls []string) {
	name := c.CurrentContext
	for i, url := range urls {
		each := fmt.Sprintf("%s-%d", name, i+1)
		cluster, ctx := c.Clusters[c.Contexts[name].Cluster].DeepCopy(), c.Contexts[name].DeepCopy()
		cluster.Server, cluster.TLSServerName, ctx.Cluster = url, "", each
		c.Clusters[each], c.Contexts[each] = cluster, ctx
	}
}
