// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// nodeSettings are labels and taints that the Node got from the configuration. A file of the node keeps them: with it a
// changed configuration can be distinguished from a Node that was changed in the cluster, which stays as it is.
type nodeSettings struct {
	Labels map[string]string `json:"labels"`
	Taints []string          `json:"taints"` // KEY=VALUE:EFFECT
}

// applyNodeSettings gives a registered Node the labels that are new in the configuration. The kubelet does so only when
// it registers a Node. What a node may not do itself is logged with the lines for kubectl: NodeRestriction keeps it
// from changing its taints, and a label that the configuration no longer has may be in use.
func (o Options) applyNodeSettings(ctx context.Context, nodes corev1client.NodeInterface, node *corev1.Node) error {
	var last nodeSettings
	if _, err := atomicfile.ReadJSON(o.paths().nodeSettings, &last); err != nil {
		o.Logger.Warn("agent: the record of the node's labels and taints cannot be read, and is written again", "error", err)
	}
	labels, next, lines := o.labelChanges(last, node)
	if len(labels) > 0 {
		if err := patchNode(ctx, nodes, o.Name, map[string]any{"metadata": map[string]any{"labels": labels}}); err != nil {
			return fmt.Errorf("setting the node's labels: %w", err)
		}
		o.Logger.Info("agent: the node has the labels that are new in the configuration", "labels", labels)
	}
	taints, more := o.taintChanges(last, node)
	if lines = append(lines, more...); len(lines) > 0 {
		o.Logger.Warn("agent: the node's labels and taints differ from the configuration, and a node does not change these itself. To "+
			"change them, run these lines where you administrate the cluster", "lines", strings.Join(lines, "; "))
	}
	return atomicfile.WriteJSON(o.paths().nodeSettings, nodeSettings{next, taints}, 0o600)
}

// labelChanges returns the labels to set, those to keep in the record afterwards, and lines for those to remove.
func (o Options) labelChanges(last nodeSettings, node *corev1.Node) (set, next map[string]string, lines []string) {
	set, next = map[string]string{}, map[string]string{}
	for key, value := range o.Labels {
		if have, ok := node.Labels[key]; (!ok || have != value) && last.Labels[key] != value {
			set[key] = value
		}
		next[key] = value
	}
	for _, key := range slices.Sorted(maps.Keys(last.Labels)) {
		_, there := node.Labels[key]
		if _, wanted := o.Labels[key]; there && !wanted {
			lines = append(lines, fmt.Sprintf("coracle kubectl label node %s %s-", o.Name, key))
			next[key] = last.Labels[key]
		}
	}
	return set, next, lines
}

// taintChanges returns the taints to keep in the record, and lines for those to add and to remove.
func (o Options) taintChanges(last nodeSettings, node *corev1.Node) (next, lines []string) {
	has := func(text string) bool {
		return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.ToString() == text })
	}
	for _, t := range o.Taints {
		switch text := t.ToString(); {
		case has(text), slices.Contains(last.Taints, text): // or an administrator removed it
			next = append(next, text)
		default:
			lines = append(lines, fmt.Sprintf("coracle kubectl taint node %s %s --overwrite", o.Name, text))
		}
	}
	for _, text := range last.Taints {
		key, effect, _ := strings.Cut(text, ":")
		key, _, _ = strings.Cut(key, "=")
		if !has(text) || slices.Contains(next, text) {
			continue
		}
		next = append(next, text)
		if !slices.ContainsFunc(o.Taints, func(t corev1.Taint) bool { return t.Key == key && string(t.Effect) == effect }) {
			lines = append(lines, fmt.Sprintf("coracle kubectl taint node %s %s:%s-", o.Name, key, effect))
		}
	}
	return next, lines
}
