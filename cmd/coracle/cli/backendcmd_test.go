// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/cluster"
)

func backendNode(name, has string, ready corev1.ConditionStatus) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
	n.Annotations = map[string]string{cluster.WireGuardAnnotation: "a key"} // nodes of an older coracle have one with wireguard, too
	if has != "" {
		n.Annotations[cluster.BackendAnnotation] = has
	}
	return n
}

// TestSetBackend: the cluster's back end is changed only where every node can follow.
func TestSetBackend(t *testing.T) {
	says := func(name string) *corev1.ConfigMap {
		return &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: cluster.BackendConfigMap, Namespace: metav1.NamespaceSystem}, Data: map[string]string{cluster.BackendData: name},
		}
	}
	a := backendNode("a", cluster.NetworkVXLAN, corev1.ConditionTrue)
	b := backendNode("b", cluster.NetworkVXLAN, corev1.ConditionUnknown)
	old := backendNode("c", "", corev1.ConditionTrue)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "games"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Ports: []corev1.ContainerPort{{Protocol: corev1.ProtocolUDP, HostPort: cluster.WireGuardPort}},
	}}}}
	for name, c := range map[string]struct {
		client  *fake.Clientset
		to, err string // err is empty for none
		want    string
	}{
		"all can":           {fake.NewClientset(says("vxlan"), a, b), "wireguard", "", "wireguard"},
		"as it is":          {fake.NewClientset(says("vxlan"), a, old), "vxlan", "", "vxlan"},
		"an older node":     {fake.NewClientset(says("vxlan"), a, old), "host-gw", "can change while they run: c.", "vxlan"},
		"older servers":     {fake.NewClientset(a), "host-gw", "there is no ConfigMap kube-system/network-backend.coracle", ""},
		"another plugin's":  {fake.NewClientset(says("none"), a), "host-gw", "another plugin's (none)", "none"},
		"a pod's port":      {fake.NewClientset(says("vxlan"), a, pod), "wireguard", "the pod games/p has the host port 51820 by UDP, which wireguard needs", "vxlan"},
		"a pod's, unneeded": {fake.NewClientset(says("vxlan"), a, pod), "host-gw", "", "host-gw"},
	} {
		t.Run(name, func(t *testing.T) {
			err := setBackend(t.Context(), c.client, c.to)
			if c.err == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v, want %q", err, c.err)
			}
			m, err := c.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(t.Context(), cluster.BackendConfigMap, metav1.GetOptions{})
			if c.want != "" && (err != nil || m.Data[cluster.BackendData] != c.want) {
				t.Errorf("the cluster has %v, %v, want %s", m.Data, err, c.want)
			}
		})
	}
}

// TestWaitForBackend: nodes that run are waited for and named; those that do not run are named, and not waited for.
func TestWaitForBackend(t *testing.T) {
	ready, away := corev1.ConditionTrue, corev1.ConditionUnknown
	client := fake.NewClientset(backendNode("a", "host-gw", ready), backendNode("b", "vxlan", away), backendNode("c", "host-gw", away), backendNode("d", "vxlan", ready))
	if off, err := waitForBackend(t.Context(), client, "host-gw", time.Millisecond); err == nil || !strings.Contains(err.Error(), "have not changed to it yet: d.") {
		t.Errorf("%v, %v", off, err)
	}
	if err := client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("nodes"), backendNode("d", "host-gw", ready), ""); err != nil {
		t.Fatal(err)
	}
	if off, err := waitForBackend(t.Context(), client, "host-gw", time.Minute); err != nil || !slices.Equal(off, []string{"b"}) {
		t.Errorf("%v, %v", off, err)
	}
}
