// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/coracle-k8s/coracle/internal/status"
)

// addressCheck is how long syncNode waits after a successful write until it compares the Node again.
const addressCheck = 5 * time.Minute

// syncAddresses keeps the Node's addresses correct on a node with external addresses. The kubelet does not know those,
// and leaves the Node's addresses alone then (kubelet.Options.OwnAddresses).
func syncAddresses(ctx context.Context, o Options) error {
	if len(o.ExternalIPs) == 0 {
		return nil
	}
	want := o.addresses()
	return syncNode(ctx, o, "addresses", nil, func(nodes corev1client.NodeInterface) error {
		return setAddresses(ctx, nodes, o.Name, want)
	})
}

// syncNode calls write for this node's Node at once, then periodically, and whenever news receives, until ctx ends. A
// failed write is shown in the status line called name. There is no such line where name is empty.
func syncNode(ctx context.Context, o Options, name string, news <-chan struct{}, write func(corev1client.NodeInterface) error) error {
	setPart := func(status.State, string) {}
	if name != "" {
		setPart = o.statusPart(name).Set
	}
	nodes, err := nodeClient(o.KubeletKubeconfig)
	if err != nil {
		return err
	}
	last := ""
	for {
		pause := addressCheck
		if err := write(nodes); err == nil {
			last = ""
			setPart(status.Running, "")
		} else {
			pause = nodePoll
			if text := err.Error(); text != last && ctx.Err() == nil {
				last = text
				setPart(status.Degraded, text) // at a first start only until the kubelet has registered the node
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-news:
		case <-time.After(pause):
		}
	}
}

// addresses returns the Node's addresses, in the order that upstream's kubelet and cloud providers use.
func (o Options) addresses() []corev1.NodeAddress {
	var out []corev1.NodeAddress
	for _, ip := range o.IPs {
		out = append(out, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	for _, ip := range o.ExternalIPs {
		out = append(out, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: ip.String()})
	}
	return append(out, corev1.NodeAddress{Type: corev1.NodeHostName, Address: o.Name})
}

// setAddresses writes the addresses if the Node has other ones.
func setAddresses(ctx context.Context, nodes corev1client.NodeInterface, name string, want []corev1.NodeAddress) error {
	node, err := nodes.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading the node's addresses: %w", err)
	}
	if slices.Equal(node.Status.Addresses, want) {
		return nil
	}
	// A merge patch replaces the list. A strategic one would merge it by type, and two addresses may have one type.
	if err := patchNode(ctx, nodes, name, map[string]any{"status": map[string]any{"addresses": want}}, "status"); err != nil {
		return fmt.Errorf("setting the node's addresses: %w", err)
	}
	return nil
}
