// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// testOptions are those of a node with one family.
func testOptions(record string) Options {
	return Options{
		NodeIPs:      []netip.Addr{netip.MustParseAddr(netns.NodeIP)},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		RecordFile:   record,
	}
}

// newTestProxy makes the informers and the proxy; the caller runs both.
func newTestProxy(t *testing.T, ctx context.Context, client kubernetes.Interface, o Options) (*netinformers.Informers, *Proxy) {
	t.Helper()
	shared, err := netinformers.New(netinformers.Options{Client: client, NodeName: "n1", AllNodes: true, Services: true, Names: true}) // as a node has them
	testenv.NoError(t, err)
	o.Informers = shared
	o.Logger = ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	p := testenv.Must(New(ctx, o))(t)
	return shared, p
}

// startTestProxy runs both until stop, with the API at url. Its tables are polled often.
func startTestProxy(t *testing.T, url string, o Options) (p *Proxy, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	client := testenv.Must(
		kubernetes.NewForConfig(&rest.Config{Host: url, ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeProtobuf}}))(t)
	shared, p := newTestProxy(t, ctx, client, o)
	p.guard = 100 * time.Millisecond
	done := make(chan error, 2) // one result each
	go func() { done <- shared.Run(ctx) }()
	go func() { done <- p.Run(ctx) }()
	return p, func() {
		cancel()
		for range 2 {
			testenv.Check(t, <-done)
		}
	}
}
