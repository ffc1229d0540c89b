// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRemovedUnderlayAnnotationIsRestored: what a node says of where it is found comes back when a client has removed
// it from its Node, or the Node was made again; one that has nothing to say looks once.
func TestRemovedUnderlayAnnotationIsRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := fake.NewClientset().CoreV1().Nodes()
		o := Options{Node: config.Node{Name: "n", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.5")}, ExternalIPs: []netip.Addr{netip.MustParseAddr("203.0.113.5")}, NetworkExternal: true},
			Logger: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1) // no receiver waits for it before the end
		go func() { done <- o.publishUnderlay(ctx, nodes) }()
		expect := func(within time.Duration, what, want string) {
			t.Helper()
			time.Sleep(within) // of the bubble's clock
			synctest.Wait()
			n, err := nodes.Get(ctx, "n", metav1.GetOptions{})
			if err != nil || n.Annotations[clusterconfig.UnderlayAnnotation] != want {
				t.Errorf("%s: the Node says %v, %v; want %q", what, n.Annotations, err, want)
			}
		}
		for _, what := range []string{"registered", "made again"} {
			testenv.Must(nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{}))(t)
			expect(addressCheck, what, "203.0.113.5")
			testenv.NoError(t, nodes.Delete(ctx, "n", metav1.DeleteOptions{}))
		}
		testenv.NoError(t, testenv.Err(nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{clusterconfig.UnderlayAnnotation: "10.0.0.9"}}}, metav1.CreateOptions{})))
		expect(addressCheck, "changed", "203.0.113.5")
		cancel()
		testenv.Check(t, <-done)
		o.NetworkExternal = false
		testenv.Check(t, o.publishUnderlay(t.Context(), nodes))
		ctx = t.Context()
		expect(0, "switched off", "")
	})
}

// TestNodePublishesItsUnderlayAddress: a node tells others where they find its pods, unless that is its own address.
func TestNodePublishesItsUnderlayAddress(t *testing.T) {
	addrs := func(texts string) (out []netip.Addr) {
		for text := range strings.FieldsSeq(texts) {
			out = append(out, netip.MustParseAddr(text))
		}
		return out
	}
	for _, c := range []struct {
		own, external string
		on            bool
		want          string
	}{
		{"10.0.0.5", "203.0.113.5", false, ""},
		{"10.0.0.5", "203.0.113.5", true, "203.0.113.5"},
		{"10.0.0.5 fd00::5", "203.0.113.5", true, "203.0.113.5,fd00::5"},
		{"10.0.0.5 fd00::5", "2001:db8::5 203.0.113.5", true, "203.0.113.5,2001:db8::5"},
		{"10.0.0.5", "203.0.113.5 2001:db8::5", true, "203.0.113.5"},
		{"10.0.0.5", "10.0.0.5", true, ""},
	} {
		o := Options{Node: config.Node{IPs: addrs(c.own), ExternalIPs: addrs(c.external), NetworkExternal: c.on}}
		testenv.Equal(t, testenv.Must(o.underlay())(t), c.want, "%+v:", c)
	}
}
