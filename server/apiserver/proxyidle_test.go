// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// counted is a connection of which the end is counted.
type counted struct {
	net.Conn
	open *atomic.Int64
	once atomic.Bool
}

func (c *counted) Close() error {
	if !c.once.Swap(true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}

// TestIdleConnectionsOfProxiesAreBounded: a user who asks for pages of many ports of a pod, through the API, leaves few
// connections to its node open.
func TestIdleConnectionsOfProxiesAreBounded(t *testing.T) {
	page := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer page.Close()
	f := newFixture(t)
	o := f.options(t)
	var open atomic.Int64
	o.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, page.Listener.Addr().String())
		if err != nil {
			return nil, err
		}
		open.Add(1)
		return &counted{Conn: c, open: &open}, nil
	}
	s := f.start(t, o)
	c := client(t, s.admin())
	ctx := t.Context()
	ns := namespace(t, c)
	testenv.NoError(t, testenv.Err(c.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})))
	pod := testenv.Must(c.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "c", Image: "example.invalid/none"}},
	}}, metav1.CreateOptions{}))(t)
	pod.Status.PodIPs, pod.Status.PodIP = []corev1.PodIP{{IP: "10.42.0.9"}}, "10.42.0.9"
	testenv.Must(c.CoreV1().Pods(ns).UpdateStatus(ctx, pod, metav1.UpdateOptions{}))(t)
	for port := range 3 * maxIdleProxied {
		testenv.NoError(t, c.CoreV1().RESTClient().Get().Namespace(ns).Resource("pods").Name(fmt.Sprintf("web:%d", 1+port)).SubResource("proxy").Do(ctx).Error())
	}
	n := open.Load() // the last one may be in use for a moment
	testenv.True(t, n > 0 && n <= maxIdleProxied+2, "%d connections are open", n)
}
