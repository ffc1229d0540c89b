// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/server/bootstrap"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// asNetwork is a client with the identity of nodes' network parts.
func (r *running) asNetwork(t testing.TB) *kubernetes.Clientset {
	t.Helper()
	leaf := r.f.pki.Network(r.f.dir)
	testenv.NoError(t, r.f.pki.Ensure(leaf))
	return testenv.Must(kubernetes.NewForConfig(r.withLeaf(leaf)))(t)
}

// testSettings: a node's network parts hear in one stream of what stands in the ConfigMaps that the role lets them
// watch, from the store and not through the filters; others hear nothing.
func testSettings(t *testing.T, s *running) {
	admin := client(t, s.admin())
	eventually(t, "the cluster's own objects", func() error {
		return bootstrap.Apply(t.Context(), bootstrap.Options{Client: admin, ClusterDNS: net.IPv4(10, 43, 0, 10), NetworkBackend: clusterconfig.NetworkVXLAN})
	})
	network := s.asNetwork(t)
	ask := func(c *kubernetes.Clientset, names ...string) error {
		r := c.CoreV1().RESTClient().Get().AbsPath(clustersettings.Path)
		for _, name := range names {
			r = r.Param(clustersettings.Parameter, name)
		}
		body, err := r.Stream(t.Context())
		if err == nil {
			body.Close()
		}
		return err
	}
	eventually(t, "the right to ask", func() error { return ask(network, clustersettings.Names()...) })
	if err := ask(network, "extension-apiserver-authentication"); !apierrors.IsNotFound(err) {
		t.Errorf("another ConfigMap: %v", err)
	}
	if err := ask(client(t, s.withLeaf(s.f.leaf.node)), clustersettings.DNS); !apierrors.IsForbidden(err) {
		t.Errorf("the kubelet's identity: %v", err)
	}
	// Who may ask for any path still hears of no ConfigMap that he may not watch.
	role, err := admin.RbacV1().Roles(metav1.NamespaceSystem).Get(t.Context(), "system:coracle:network:holders", metav1.GetOptions{})
	testenv.NoError(t, err)
	all := role.Rules
	role.Rules = nil
	role, err = admin.RbacV1().Roles(metav1.NamespaceSystem).Update(t.Context(), role, metav1.UpdateOptions{})
	testenv.NoError(t, err)
	eventually(t, "without the Role nothing is heard", func() error {
		if err := ask(network, clustersettings.DNS); !apierrors.IsForbidden(err) {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
	role.Rules = all
	testenv.Must(admin.RbacV1().Roles(metav1.NamespaceSystem).Update(t.Context(), role, metav1.UpdateOptions{}))(t)
	eventually(t, "with it everything is", func() error { return ask(network, clustersettings.Names()...) })

	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	settings := clustersettings.NewStreamClient(clustersettings.Options{
		Client: network, Names: clustersettings.Names(), Logger: slog.New(slog.DiscardHandler),
	})
	running.Go(func() { settings.Run(ctx) })
	var heard atomic.Value
	running.Go(func() {
		settings.Follow(ctx, clustersettings.DNS, func(d clustersettings.Data) {
			heard.Store(fmt.Sprintf("%d %t", len(d["a.server"]), d == nil))
		})
	})
	hears := func(want string) {
		t.Helper()
		eventually(t, "it hears "+want, func() error {
			if now := heard.Load(); now != want {
				return fmt.Errorf("it has heard %v", now)
			}
			return nil
		})
	}
	maps := admin.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: clustersettings.DNS}, Data: map[string]string{"a.server": "x"}}
	m, err = maps.Create(ctx, m, metav1.CreateOptions{})
	testenv.NoError(t, err)
	hears("1 false")
	m.Data["a.server"] = strings.Repeat("x", 1<<20-64) // the largest that there can be
	testenv.Must(maps.Update(ctx, m, metav1.UpdateOptions{}))(t)
	hears(fmt.Sprint(1<<20-64, " false"))
	testenv.Check(t, streamsRest())
	testenv.NoError(t, maps.Delete(ctx, clustersettings.DNS, metav1.DeleteOptions{}))
	hears("0 true")
}

// streamsRest says whether streams are served, and what keeps the stacks of their filters.
func streamsRest() error {
	streams := 0
	for stack, n := range goroutines() {
		if !strings.Contains(stack, "nodestream.(*Server[") {
			continue
		}
		streams += n
		if strings.Contains(stack, "withAuthorization") {
			return fmt.Errorf("%d streams keep the stacks of the filters that they came through:\n%s", n, stack)
		}
	}
	if streams == 0 {
		return errors.New("there is no stream")
	}
	return nil
}
