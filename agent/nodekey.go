// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// publishKeyAndBackend keeps on the Node what other nodes have to know to reach this one: its public key, and the back
// end that it uses. It writes with the kubelet's identity, which may change no other node.
func publishKeyAndBackend(ctx context.Context, o Options, pods *cni.Server, changed <-chan struct{}) error {
	name := "wireguard key"
	if o.Cluster.NetworkBackend != clusterconfig.NetworkWireGuard {
		name = "" // the key is only for a later change of the back end: no status line
	}
	return syncNode(ctx, o, name, changed, func(nodes corev1client.NodeInterface) error {
		if err := annotate(ctx, nodes, o.Name, clusterconfig.WireGuardAnnotation, pods.WireGuardKey()); err != nil ||
			pods.Backend() == "" {
			return err
		}
		return annotate(ctx, nodes, o.Name, clusterconfig.BackendAnnotation, pods.Backend())
	})
}

// annotate writes the annotation if the Node has another value.
func annotate(ctx context.Context, nodes corev1client.NodeInterface, node, name, value string) error {
	n, err := nodes.Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading the node's annotation %s: %w", name, err)
	}
	if n.Annotations[name] == value {
		return nil
	}
	change := map[string]any{"metadata": map[string]any{"annotations": map[string]string{name: value}}}
	if err := patchNode(ctx, nodes, node, change); err != nil {
		return fmt.Errorf("writing the node's annotation %s: %w", name, err)
	}
	return nil
}
