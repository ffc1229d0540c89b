// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestNodeReportsExternalAddresses(t *testing.T) {
	o := Options{Node: config.Node{Name: "n", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")},
		ExternalIPs: []netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8::2")}}}
	want := o.addresses()
	client := fake.NewClientset()
	nodes := client.CoreV1().Nodes()
	testenv.WantError(t, setAddresses(t.Context(), nodes, "n", want), "not found")
	registered := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: "10.0.0.9"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.9"}}}}
	testenv.Must(nodes.Create(t.Context(), registered, metav1.CreateOptions{}))(t)
	for range 2 {
		testenv.NoError(t, setAddresses(t.Context(), nodes, "n", want))
	}
	got := testenv.Must(nodes.Get(t.Context(), "n", metav1.GetOptions{}))(t)
	if expect := []corev1.NodeAddress{{Type: "InternalIP", Address: "10.0.0.2"}, {Type: "InternalIP", Address: "fd00::2"}, {Type: "ExternalIP", Address: "203.0.113.2"},
		{Type: "ExternalIP", Address: "2001:db8::2"}, {Type: "Hostname", Address: "n"}}; !slices.Equal(got.Status.Addresses, expect) {
		t.Errorf("%v", got.Status.Addresses)
	}
	patches := 0
	for _, a := range client.Actions() {
		if a.GetVerb() == "patch" {
			patches++
		}
	}
	testenv.Equal(t, patches, 1, "patches:")
}

// TestExternalAddressesAndCloudProvider: both would set the node's addresses, whichever way the kubelet's flag is
// written.
func TestExternalAddressesAndCloudProvider(t *testing.T) {
	for arg, want := range map[string]bool{
		"cloud-provider=external": true, "--cloud-provider=external": true, "cloud_provider=external": true, "--cloud_provider=external": true,
		"max-pods=3": false, "node-labels=cloud-provider=external": false,
	} {
		o := Options{Node: config.Node{ExternalIPs: []netip.Addr{netip.MustParseAddr("203.0.113.2")}, Kubelet: config.Kubelet{KubeletArgs: []string{arg}}}}
		if _, err := o.complete(); strings.Contains(err.Error(), "exclude one another") != want { // others are missing
			t.Errorf("%s: %v", arg, err)
		}
	}
}
