// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/status"
)

// nodePoll is how often the Node is polled until it is ready; it is not polled afterwards.
const nodePoll = 250 * time.Millisecond

// watchNode reports the registration and readiness of the Node, as the API server has them, until it is ready.
func watchNode(ctx context.Context, o Options) {
	part := o.statusPart("node")
	part.Set(status.Starting, "not registered yet")
	nodes, err := nodeClient(o.KubeletKubeconfig)
	if err != nil {
		part.Set(status.Degraded, err.Error()) // the kubelet reports the same and fails
		return
	}
	began := time.Now()
	ticker := time.NewTicker(nodePoll)
	defer ticker.Stop()
	for {
		node, err := nodes.Get(ctx, o.Name, metav1.GetOptions{})
		now := time.Now()
		switch ready, why := readyCondition(node, earliestStart(began, now, now.Sub(began))); {
		case err != nil:
			part.Set(status.Starting, "not registered yet: "+err.Error())
		case ready:
			if err := labelRuntimes(ctx, nodes, node, o.runtimes); err != nil {
				part.Set(status.Degraded, "ready, but the labels of its container runtimes could not be written; retrying: "+err.Error())
				break
			}
			part.Set(status.Running, "")
			if err := o.applyNodeSettings(ctx, nodes, node); err != nil && ctx.Err() == nil {
				o.Logger.Warn("agent: changes of the node's labels in the configuration are not applied; the next start tries again", "error", err)
			}
			if o.PodSubnets != nil {
				o.PodSubnets(clusterconfig.PodCIDRs(node)) // a node that is ready has them, and they never change
			}
			return
		default:
			part.Set(status.Starting, "registered, not ready yet: "+why)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// nodeIsThere returns a function that reports in a status line whether the cluster has this node's Node object. The
// kubelet registers only once, when it starts, and on this machine nothing else shows the loss.
func (o Options) nodeIsThere() func(bool) {
	missing := false
	return func(there bool) {
		switch {
		case !there:
			o.statusPart("node").Set(status.Degraded, fmt.Sprintf("the cluster has no node %s any more: it was deleted, or a snapshot was "+
				"restored that is older than the node. "+
				"Restart coracle here to join again, or stop it to leave the cluster", o.Name))
		case missing:
			o.statusPart("node").Set(status.Running, "")
		}
		missing = !there
	}
}

// earliestStart returns when something began: by the clock of that moment, or the clock of now less the time since,
// whichever is earlier. A board's clock is often set soon after its start. A report that seems to come from an earlier
// run would delay readiness for half an hour, until the kubelet's next. The API keeps whole seconds.
func earliestStart(began, now time.Time, ago time.Duration) time.Time {
	began, now = began.Round(0), now.Round(0).Add(-ago) // without the monotonic clock
	if now.Before(began) {
		began = now
	}
	return began.Truncate(time.Second)
}

// readyCondition returns the Ready condition if the kubelet has reported it since started. An earlier run's report does
// not count.
func readyCondition(node *corev1.Node, started time.Time) (ready bool, why string) {
	if node == nil {
		return false, ""
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && !c.LastHeartbeatTime.Time.Before(started) {
			return c.Status == corev1.ConditionTrue, c.Message
		}
	}
	return false, "the kubelet has not reported yet"
}

// nodeClient returns a client for Node objects with the credentials of a kubeconfig.
func nodeClient(kubeconfig string) (corev1client.NodeInterface, error) {
	client, err := coreClient(kubeconfig)
	if err != nil {
		return nil, err
	}
	return client.Nodes(), nil
}

// patchNode merges a change into a Node (RFC 7386), or into its status where that is named as the subresource.
func patchNode(ctx context.Context, nodes corev1client.NodeInterface, name string, change map[string]any, subresources ...string) error {
	patch, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = nodes.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}, subresources...)
	return err
}

// coreClient returns a client of the core group alone: the whole clientset costs memory for groups that are not used.
func coreClient(kubeconfig string) (corev1client.CoreV1Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("agent: read the node's credentials: %w", err)
	}
	client, err := corev1client.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("agent: make the node's client: %w", err)
	}
	return client, nil
}
