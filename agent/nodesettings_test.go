// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"log/slog"
	"maps"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestChangedNodeSettings: a restart applies labels that are new in the configuration. It leaves alone what was changed
// in the cluster. What a node may not change is named once a start, with a line for kubectl, until it has been done.
func TestChangedNodeSettings(t *testing.T) {
	var log bytes.Buffer
	o := Options{Node: config.Node{Name: "n"}, DataDir: t.TempDir(), RunDir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&log, nil))}
	testenv.NoError(t, os.MkdirAll(o.paths().AgentDir, 0o755))
	nodes := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"disk": "ssd", "own": "1"}},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "lab", Value: "a", Effect: corev1.TaintEffectNoSchedule}}}}).CoreV1().Nodes()
	taint := func(key, value string) corev1.Taint {
		return corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffectNoSchedule}
	}
	for _, c := range []struct {
		what       string
		labels     map[string]string
		taints     []corev1.Taint
		change     func(*corev1.Node)
		wantLabels map[string]string
		wantLines  []string
	}{
		{what: "as registered", labels: map[string]string{"disk": "ssd"}, taints: []corev1.Taint{taint("lab", "a")},
			wantLabels: map[string]string{"disk": "ssd", "own": "1"}},
		{what: "a label is changed and one is new", labels: map[string]string{"disk": "hdd", "rack": "2"}, taints: []corev1.Taint{taint("lab", "a")},
			wantLabels: map[string]string{"disk": "hdd", "rack": "2", "own": "1"}},
		{what: "changed in the cluster", labels: map[string]string{"disk": "hdd", "rack": "2"}, taints: []corev1.Taint{taint("lab", "a")},
			change:     func(n *corev1.Node) { n.Labels["disk"], n.Spec.Taints = "nvme", nil },
			wantLabels: map[string]string{"disk": "nvme", "rack": "2", "own": "1"}},
		{what: "a label is taken out", labels: map[string]string{"rack": "2"}, taints: []corev1.Taint{taint("lab", "a")},
			wantLabels: map[string]string{"disk": "nvme", "rack": "2", "own": "1"}, wantLines: []string{"coracle kubectl label node n disk-"}},
		{what: "the next start", labels: map[string]string{"rack": "2"}, taints: []corev1.Taint{taint("lab", "a")},
			wantLabels: map[string]string{"disk": "nvme", "rack": "2", "own": "1"}, wantLines: []string{"coracle kubectl label node n disk-"}},
		{what: "the label is removed, a taint is changed and another new", labels: map[string]string{"rack": "2"}, taints: []corev1.Taint{taint("lab", "b"), taint("gpu", "")},
			change: func(n *corev1.Node) {
				delete(n.Labels, "disk")
				n.Spec.Taints = []corev1.Taint{taint("lab", "a"), taint("others", "")}
			},
			wantLabels: map[string]string{"rack": "2", "own": "1"},
			wantLines:  []string{"coracle kubectl taint node n lab=b:NoSchedule --overwrite", "coracle kubectl taint node n gpu:NoSchedule --overwrite"}},
		{what: "that was done, and a taint is taken out", labels: map[string]string{"rack": "2"}, taints: []corev1.Taint{taint("lab", "b")},
			change:     func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{taint("lab", "b"), taint("gpu", "")} },
			wantLabels: map[string]string{"rack": "2", "own": "1"}},
		{what: "a taint is taken out", labels: map[string]string{"rack": "2"},
			wantLabels: map[string]string{"rack": "2", "own": "1"}, wantLines: []string{"coracle kubectl taint node n lab:NoSchedule-"}},
		{what: "that was done", labels: map[string]string{"rack": "2"}, change: func(n *corev1.Node) { n.Spec.Taints = nil },
			wantLabels: map[string]string{"rack": "2", "own": "1"}},
	} {
		node := testenv.Must(nodes.Get(t.Context(), "n", metav1.GetOptions{}))(t)
		if c.change != nil {
			c.change(node)
			node = testenv.Must(nodes.Update(t.Context(), node, metav1.UpdateOptions{}))(t)
		}
		log.Reset()
		o.Labels, o.Taints = c.labels, c.taints
		testenv.NoError(t, o.applyNodeSettings(t.Context(), nodes, node))
		got := testenv.Must(nodes.Get(t.Context(), "n", metav1.GetOptions{}))(t)
		testenv.True(t, maps.Equal(got.Labels, c.wantLabels), "%s: the labels are %v", c.what, got.Labels)
		testenv.Equal(t, strings.Count(log.String(), "coracle kubectl"), len(c.wantLines), "%s: lines in\n%s", c.what, log.String())
		testenv.Equal(t, strings.Count(log.String(), "level=WARN"), min(1, len(c.wantLines)), "%s: warnings:", c.what)
		for _, line := range c.wantLines {
			testenv.Contains(t, log.String(), line, "%s", c.what)
		}
	}
}
