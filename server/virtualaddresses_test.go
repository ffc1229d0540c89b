// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/server/virtualip"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// newTestVIPs returns a server that does not run and whose flag requests addresses.
func newTestVIPs(t *testing.T, requested ...netip.Addr) (*Server, Options) {
	t.Helper()
	o := options(t.TempDir())
	o.VIPs = requested
	s := testenv.Must(New(t.Context(), o))(t)
	t.Cleanup(func() { testenv.Check(t, s.Close()) })
	return s, o
}

// covered says whether the API server's certificate is valid for an address.
func covered(t *testing.T, s *Server, a netip.Addr) bool {
	t.Helper()
	c := testenv.Must(s.pki.Serving())(t)
	return c.Leaf.VerifyHostname(a.String()) == nil
}

// TestVIPsFollowTheCluster: what the ConfigMap says is taken over with certificate, kubeconfig and file, while the
// server runs, and what no address can be is not.
func TestVIPsFollowTheCluster(t *testing.T) {
	one, two := netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("fd00::100")
	s, o := newTestVIPs(t)
	v := s.vips
	var complaint atomic.Pointer[string]
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: clusterconfig.VIPConfigMap, Namespace: metav1.NamespaceSystem, ResourceVersion: "1"},
		Data: map[string]string{clusterconfig.VIPData: one.String()}}
	client := fake.NewClientset(m)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := v.Watch(ctx, client); err != nil {
				text := err.Error()
				complaint.Store(&text)
			}
		}
	}()
	defer func() { cancel(); <-done }()
	is := func(what string, want ...netip.Addr) {
		t.Helper()
		testenv.Eventually(t, 2*time.Minute, what, func() error {
			kept, known, err := clusterconfig.ReadVIPs(o.ServerDir)
			if err == nil && (!known || !slices.Equal(kept, want) || !slices.Equal(v.ClusterAddresses(), want)) {
				err = errors.New("has " + virtualip.Format(v.ClusterAddresses()) + ", keeps " + virtualip.Format(kept))
			}
			for _, a := range []netip.Addr{one, two} {
				if covered(t, s, a) != slices.Contains(want, a) {
					err = errors.Join(err, errors.New("the certificate and "+a.String()))
				}
			}
			return err
		})
	}
	is("the address of before", one)
	testenv.Until(t, 2*time.Minute, "the ConfigMap is watched", func() bool { // a fake tells a watch nothing of what was before it
		return slices.ContainsFunc(client.Actions(), func(a clienttesting.Action) bool { return a.Matches("watch", "configmaps") })
	})
	put := func(text string) {
		t.Helper()
		m.Data = map[string]string{clusterconfig.VIPData: text}
		testenv.Must(client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Update(ctx, m, metav1.UpdateOptions{}))(t)
	}
	put("fd00::100,192.0.2.100")
	is("another address", two, one)
	testenv.Eventually(t, 2*time.Minute, "the kubeconfig names the address", func() error {
		data, err := os.ReadFile(o.Kubeconfig.Path)
		if err == nil && !strings.Contains(string(data), "https://[fd00::100]:") {
			err = errors.New(string(data))
		}
		return err
	})
	put("127.0.0.1")
	testenv.Eventually(t, 2*time.Minute, "the complaint", func() error {
		text := complaint.Load()
		if text == nil || !strings.Contains(*text, "127.0.0.1") || !strings.Contains(*text, "coracle vip set") {
			return errors.New("none that names address and command")
		}
		return nil
	})
	is("what it was before", two, one)
	put("")
	is("none")
}

// TestFlagsVirtualAddressIsCertified: the certificate covers the address of a server's flag from the start.
func TestFlagsVirtualAddressIsCertified(t *testing.T) {
	own := netip.MustParseAddr("192.0.2.100")
	if s, _ := newTestVIPs(t, own); !covered(t, s, own) {
		t.Error("it does not")
	}
}
