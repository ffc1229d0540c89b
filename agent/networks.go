// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/coracle-k8s/coracle/internal/lbholders"
	"github.com/coracle-k8s/coracle/internal/vip"
)

// networksCheck is how often the machine's networks are looked at once the Node says which they are.
const networksCheck = time.Minute

// keepNetworks says on the Node in which networks this machine can announce addresses.
func keepNetworks(ctx context.Context, o Options) error {
	nodes, err := nodeClient(o.KubeletKubeconfig)
	if err != nil {
		return err
	}
	said := "nothing yet"
	for {
		pause := time.Second // until the kubelet has registered the node
		if now, err := networks(); err != nil {
			o.Logger.Warn("agent: the machine's networks cannot be listed", "error", err)
		} else if now == said || sayNetworks(ctx, nodes, o.NodeName, now, o.Logger) {
			said, pause = now, networksCheck
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func networks() (string, error) {
	links, err := vip.Links()
	if err != nil {
		return "", err
	}
	var out []string
	for _, l := range links {
		if l.Flags&net.FlagLoopback != 0 || l.Flags&net.FlagUp == 0 || len(l.HardwareAddr) != 6 {
			continue
		}
		for _, p := range l.Addresses {
			if p.Addr().IsGlobalUnicast() && !p.IsSingleIP() {
				out = append(out, p.Masked().String())
			}
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ","), nil
}

func sayNetworks(ctx context.Context, nodes corev1client.NodeInterface, name, text string, log *slog.Logger) bool {
	node, err := nodes.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false
	}
	if node.Annotations[lbholders.NetworksAnnotation] == text {
		return true
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{lbholders.NetworksAnnotation: text}}})
	if err == nil {
		_, err = nodes.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil && ctx.Err() == nil {
		log.Debug("agent: the machine's networks are not on its Node yet", "error", err)
	}
	return err == nil
}
