// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"fmt"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// listEvery is how often the cluster's list of servers is read. listRetry is the pause after that failed.
	listEvery, listRetry = 30 * time.Second, 2 * time.Second
	listTimeout          = 10 * time.Second
)

// Follow keeps the list equal to the endpoints of the cluster's Service kubernetes until ctx is done. It connects
// through the Balancer itself, with the credentials of a kubeconfig.
func (b *Balancer) Follow(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("following the cluster's servers: %w", err)
	}
	config.Timeout = listTimeout
	client, err := discoveryclient.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("following the cluster's servers: %w", err)
	}
	for {
		pause := listEvery
		// There is more than one slice if the servers have different ports, or addresses of both families.
		found, err := client.EndpointSlices(metav1.NamespaceDefault).List(ctx,
			metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
		if err == nil {
			if err := b.Set(clusterconfig.Ready(found.Items)); err != nil {
				b.o.Logger.Warn("the list of servers could not be saved; retrying", "error", err)
			}
		} else {
			pause = listRetry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		case <-b.localEnded: // all of this machine's parts have lost the API, or are changing to another server
			timers.Sleep(ctx, listRetry)
		}
	}
}
