// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	k8stesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func backendNode(name, has string, ready corev1.ConditionStatus) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
	n.Annotations = map[string]string{clusterconfig.WireGuardAnnotation: "a key"} // nodes of an older coracle have one with wireguard, too
	if has != "" {
		n.Annotations[clusterconfig.BackendAnnotation] = has
	}
	return n
}

func backendSetting(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: clusterconfig.BackendConfigMap, Namespace: metav1.NamespaceSystem}, Data: map[string]string{clusterconfig.BackendData: name},
	}
}

// TestBackendChangeNeedsEveryNode: the cluster's back end is changed only where every node can follow.
func TestBackendChangeNeedsEveryNode(t *testing.T) {
	a := backendNode("a", clusterconfig.NetworkVXLAN, corev1.ConditionTrue)
	b := backendNode("b", clusterconfig.NetworkVXLAN, corev1.ConditionUnknown)
	old := backendNode("c", "", corev1.ConditionTrue)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "games"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Ports: []corev1.ContainerPort{{Protocol: corev1.ProtocolUDP, HostPort: clusterconfig.WireGuardPort}},
	}}}}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "games"}, Spec: corev1.ServiceSpec{
		Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, NodePort: clusterconfig.WireGuardPort}, {Protocol: corev1.ProtocolUDP, NodePort: clusterconfig.WireGuardPort}},
	}}
	at := func(name string, number int, address string) *corev1.Node {
		n := backendNode(name, clusterconfig.NetworkVXLAN, corev1.ConditionTrue)
		n.Spec.PodCIDRs = []string{fmt.Sprintf("10.42.%d.0/24", number)}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
		n.Annotations[loadbalancer.NetworksAnnotation] = netip.PrefixFrom(netip.MustParseAddr(address), 24).Masked().String()
		return n
	}
	conflicting := func(objects ...runtime.Object) *fake.Clientset {
		c := fake.NewClientset(objects...)
		c.PrependReactor("update", "configmaps", func(k8stesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewConflict(corev1.Resource("configmaps"), clusterconfig.BackendConfigMap, errors.New("changed"))
		})
		return c
	}
	for name, c := range map[string]struct {
		client  *fake.Clientset
		to, err string // err is empty for none
		want    string
	}{
		"all can":           {fake.NewClientset(backendSetting("vxlan"), a, b), "wireguard", "", "wireguard"},
		"as it is":          {fake.NewClientset(backendSetting("vxlan"), a, old), "vxlan", "", "vxlan"},
		"an older node":     {fake.NewClientset(backendSetting("vxlan"), a, old), "host-gw", "can change while they run: c.", "vxlan"},
		"older servers":     {fake.NewClientset(a), "host-gw", "there is no ConfigMap kube-system/network-backend.coracle", ""},
		"another plugin's":  {fake.NewClientset(backendSetting("none"), a), "host-gw", "its network back end is none, for another network plugin. If that was written by hand, restart coracle on a server", "none"},
		"a pod's port":      {fake.NewClientset(backendSetting("vxlan"), a, pod), "wireguard", "the pod games/p has the host port 51820 by UDP, which wireguard needs", "vxlan"},
		"a pod's, unneeded": {fake.NewClientset(backendSetting("vxlan"), a, pod), "host-gw", "", "host-gw"},
		"a Service's port":  {fake.NewClientset(backendSetting("vxlan"), a, service), "wireguard", "the Service games/s has the node port 51820 by UDP, which wireguard needs", "vxlan"},
		"nonsense":          {fake.NewClientset(backendSetting("pigeons"), a), "host-gw", "", "host-gw"},
		"one segment":       {fake.NewClientset(backendSetting("vxlan"), at("d", 1, "192.0.2.1"), at("e", 2, "192.0.2.2")), "host-gw", "", "host-gw"},
		"a router":          {fake.NewClientset(backendSetting("vxlan"), at("d", 1, "192.0.2.1"), at("e", 2, "198.51.100.2")), "host-gw", "with host-gw: nodes d (192.0.2.1) and e (198.51.100.2) are not in one network. Delete the Nodes", "vxlan"},
		"routers": {fake.NewClientset(backendSetting("vxlan"), at("d", 1, "192.0.2.1"), at("e", 2, "198.51.100.2"), at("f", 3, "203.0.113.3"), at("g", 4, "10.0.0.4")), "host-gw",
			"d (192.0.2.1) and g (10.0.0.4) are not in one network; and 3 more. ", "vxlan"},
		"a tunnel by routers": {fake.NewClientset(backendSetting("vxlan"), at("d", 1, "192.0.2.1"), at("e", 2, "198.51.100.2")), "wireguard", "", "wireguard"},
		"another client, too": {conflicting(backendSetting("vxlan"), a), "host-gw", "another client changed the network back end at the same moment", "vxlan"},
	} {
		t.Run(name, func(t *testing.T) {
			before, err := setBackend(t.Context(), c.client, c.to)
			testenv.False(t, c.err == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err),
				"got %v, want %q", err, c.err)
			testenv.False(t, c.err == "" && c.to != "vxlan" && before != "vxlan" && before != "pigeons", "before it was %q", before)
			m, err := c.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(t.Context(), clusterconfig.BackendConfigMap, metav1.GetOptions{})
			if c.want != "" && (err != nil || m.Data[clusterconfig.BackendData] != c.want) {
				t.Errorf("the cluster has %v, %v, want %s", m.Data, err, c.want)
			}
		})
	}
}

// TestWaitForBackend: nodes that run are waited for and named; those that do not run are named, and not waited for.
func TestWaitForBackend(t *testing.T) {
	ready, away := corev1.ConditionTrue, corev1.ConditionUnknown
	client := fake.NewClientset(backendSetting("host-gw"), backendNode("a", "host-gw", ready), backendNode("b", "vxlan", away), backendNode("c", "host-gw", away), backendNode("d", "vxlan", ready))
	if off, err := waitForBackend(t.Context(), client, "host-gw", time.Millisecond); err == nil || !strings.Contains(err.Error(), "have not changed to it yet: d.") {
		t.Errorf("%v, %v", off, err)
	}
	testenv.NoError(t, client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("nodes"), backendNode("d", "host-gw", ready), ""))
	testenv.EqualSlices(t, testenv.Must(waitForBackend(t.Context(), client, "host-gw", time.Minute))(t), []string{"b"}, "")
}

// TestWaitEndsWhenBackendIsReplaced: who waits for nodes does not wait for what another client has changed meanwhile,
// and says so; also when nodes are late for another reason.
func TestWaitEndsWhenBackendIsReplaced(t *testing.T) {
	client := fake.NewClientset(backendSetting("vxlan"), backendNode("a", "host-gw", corev1.ConditionTrue))
	off, err := waitForBackend(t.Context(), client, "host-gw", time.Minute)
	if want := `meanwhile another client changed the cluster's network back end to "vxlan", which is now in effect`; err == nil || err.Error() != want || errors.Is(err, errLate) {
		t.Errorf("%v, %v, want %s", off, err, want)
	}
}

// TestBackendOfSilentServer: a server that takes connections and does not answer keeps no user waiting for longer than
// nodes may take.
func TestBackendOfSilentServer(t *testing.T) {
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer silent.Close()
	client := testenv.Must(kubernetes.NewForConfig(&rest.Config{Host: silent.URL}))(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	off, err := waitForBackend(ctx, client, "host-gw", 100*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "which nodes have changed to it is unknown") || ctx.Err() != nil {
		t.Errorf("%v, %v; %v", off, err, ctx.Err())
	}
}

// TestUnusedBackendIsNotShown: what no node goes by is not shown as the cluster's.
func TestUnusedBackendIsNotShown(t *testing.T) {
	for given, want := range map[string]string{"vxlan": "vxlan", "none": "none", "pigeons": `says "pigeons", which is no network back end`, "": `says "", which is no network back end`} {
		got, err := shownBackend(t.Context(), fake.NewClientset(backendSetting(given)))
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) || (err == nil) != slices.Contains(clusterconfig.NetworkBackends, given) {
			t.Errorf("%q: %q, want %q", given, got, want)
		}
	}
}
