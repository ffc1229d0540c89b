// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/util/retry"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// bootIDFile has the kernel's id of this boot, see random(4). The kubelet reports it in the Node's status.
	bootIDFile = "/proc/sys/kernel/random/boot_id"
	// markTime bounds all requests for the mark of a node that stopped its pods.
	markTime = 5 * time.Second
	// minUnmarkPause is the pause after the first attempt to remove it, maxUnmarkPause the longest one.
	minUnmarkPause = 20 * time.Millisecond
	maxUnmarkPause = time.Second
)

// markStopped writes on the Node that none of its pods is left on this machine. Other nodes may then start pods that
// wait for the place or the volumes of these. It does so only if there are such pods, and never on a node with
// autonomy.
func (s *Shutdown) markStopped(ctx context.Context, pods map[string]*corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, markTime)
	defer cancel()
	client, err := coreClient(s.options.KubeletKubeconfig)
	if err != nil {
		return err
	}
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return fmt.Errorf("read the id of this boot: %w", err)
	}
	return markNode(ctx, client, s.options.Name, strings.TrimSpace(string(boot)), pods)
}

func markNode(ctx context.Context, client corev1client.CoreV1Interface, name, boot string, pods map[string]*corev1.Pod) error {
	awaited := anyAwaited(ctx, client, pods)
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		node, err := client.Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("read the Node: %w", err)
		}
		if node.Annotations[clusterconfig.AutonomyAnnotation] != "" || !awaited {
			return nil
		}
		// Only this version: a request that reaches the store late would mark a node whose kubelet has started again.
		return annotateStopped(ctx, client, name, node.ResourceVersion, boot)
	})
}

// annotateStopped writes the annotation with the id of a boot. nil removes it. version is the version of the Node that
// it is for, "" means any.
func annotateStopped(ctx context.Context, client corev1client.CoreV1Interface, node, version string, boot any) error {
	metadata := map[string]any{"annotations": map[string]any{clusterconfig.StoppedAnnotation: boot}}
	if version != "" {
		metadata["resourceVersion"] = version
	}
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return fmt.Errorf("encode the mark: %w", err)
	}
	_, err = client.Nodes().Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "coracle"})
	return err
}

// anyAwaited reports whether another node waits for one of these pods to be gone: a StatefulSet's, or one with a claim
// that another node may mount.
func anyAwaited(ctx context.Context, client corev1client.CoreV1Interface, pods map[string]*corev1.Pod) bool {
	for _, p := range pods {
		owner := metav1.GetControllerOf(p)
		if owner == nil || owner.Kind == "DaemonSet" || owner.Kind == "Node" {
			continue // no other node gets it
		}
		claims, local := 0, false
		for _, v := range p.Spec.Volumes {
			if name := claimOf(p, v); name != "" {
				claims++
				local = local || isLocal(ctx, client, p.Namespace, name)
			}
		}
		if !local && (claims > 0 || owner.Kind == "StatefulSet") {
			return true
		}
	}
	return false
}

// claimOf returns the name of a volume's claim, or "".
func claimOf(p *corev1.Pod, v corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return p.Name + "-" + v.Name
	}
	return ""
}

// isLocal reports whether a claim's volume is on one node's disk. It returns true if it cannot be found out: without
// the mark pods only wait longer.
func isLocal(ctx context.Context, client corev1client.CoreV1Interface, namespace, claim string) bool {
	c, err := client.PersistentVolumeClaims(namespace).Get(ctx, claim, metav1.GetOptions{})
	if err != nil {
		return true
	}
	v, err := client.PersistentVolumes().Get(ctx, c.Spec.VolumeName, metav1.GetOptions{})
	if err != nil || v.Spec.Local != nil || v.Spec.HostPath != nil {
		return true
	}
	if v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return false
	}
	for _, term := range v.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, r := range append(term.MatchExpressions, term.MatchFields...) {
			if r.Key == corev1.LabelHostname || r.Key == metav1.ObjectNameField {
				return true
			}
		}
	}
	return false
}

// removeStopMark removes the mark of this node's last stop, as unmarkNode does. A node without pods yet may have a
// mark, of one whose data was removed.
func (o Options) removeStopMark(ctx context.Context) error {
	client, err := coreClient(o.KubeletKubeconfig)
	if err != nil {
		return err
	}
	return unmarkNode(ctx, client, o.Name, o.Logger)
}

// unmarkNode removes the mark of the last stop. The kubelet has to wait for it: until then the leader lets other nodes
// have the pods that it would start. It waits for the leader's taint to be removed too, by which pods are removed from
// a node. It tries until it succeeds or ctx is done, which is no error.
func unmarkNode(ctx context.Context, client corev1client.CoreV1Interface, name string, log *slog.Logger) error {
	for pause := minUnmarkPause; ; pause = min(2*pause, maxUnmarkPause) {
		node, err := client.Nodes().Get(ctx, name, metav1.GetOptions{})
		marked := err == nil && node.Annotations[clusterconfig.StoppedAnnotation] != ""
		tainted := err == nil && slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool {
			return t.Key == corev1.TaintNodeOutOfService && t.Value == clusterconfig.StoppedTaint
		})
		switch {
		case apierrors.IsNotFound(err), err == nil && !marked && !tainted:
			return nil
		case marked:
			if err = annotateStopped(ctx, client, name, "", nil); err == nil {
				continue // read again
			}
		}
		if pause == maxUnmarkPause {
			log.Info("agent: the kubelet waits until the Node's annotation "+clusterconfig.StoppedAnnotation+" and the taint "+
				corev1.TaintNodeOutOfService+"="+clusterconfig.StoppedTaint+" are removed", "error", err)
		}
		if !timers.Sleep(ctx, pause) {
			return nil
		}
	}
}
