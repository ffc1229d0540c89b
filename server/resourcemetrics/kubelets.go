// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/cluster/ports"
	nodeutil "k8s.io/kubernetes/pkg/util/node"
	"sigs.k8s.io/metrics-server/pkg/scraper/client"
	"sigs.k8s.io/metrics-server/pkg/scraper/client/resource"
	"sigs.k8s.io/metrics-server/pkg/storage"
	"sigs.k8s.io/metrics-server/pkg/utils"
)

const (
	// kubeletTimeout is how long one kubelet may take for one question, doubtfulTimeout how long one of a node that is
	// not ready.
	kubeletTimeout  = 5 * time.Second
	doubtfulTimeout = 2 * time.Second
	// smallest and each bound an answer, by the number of the node's containers: a container takes less than a kibibyte
	// of the counters, and less than three of the summary. What the API does not know of, such as pods that have just
	// gone, has its place in the smallest.
	smallest = 1 << 20
	each     = 8 << 10
)

// kubelets asks them for figures.
type kubelets struct {
	http      *http.Client
	addresses utils.NodeAddressResolver
	counters  client.KubeletMetricsGetter
}

func newKubelets(transport http.RoundTripper, addresses []corev1.NodeAddressType) (*kubelets, error) {
	transport = boundedTransport{transport}
	counters, err := resource.NewForConfig(&client.KubeletClientConfig{
		Client: rest.Config{Transport: transport}, AddressTypePriority: addresses,
		Scheme: "https", DefaultPort: ports.KubeletPort, UseNodeStatusPort: true,
	})
	if err != nil {
		return nil, fmt.Errorf("making the kubelets' client: %w", err)
	}
	return &kubelets{
		http:      &http.Client{Transport: transport},
		addresses: utils.NewPriorityNodeAddressResolver(addresses),
		counters:  counters,
	}, nil
}

var errNothing = errors.New("the kubelet answered without any figures")

// read returns the counters of a node and its containers. Upstream's decoder panics on some answers that make no sense.
func (k *kubelets) read(ctx context.Context, node *corev1.Node) (b *storage.MetricsBatch, err error) {
	timeout := kubeletTimeout
	if !nodeutil.IsNodeReady(node) {
		timeout = doubtfulTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			b, err = nil, fmt.Errorf("what the kubelet answered makes no sense: %v", r)
		}
	}()
	b, err = k.counters.GetMetrics(ctx, withMetricsPath(node))
	if err != nil {
		return nil, err
	}
	if len(b.Nodes) == 0 && len(b.Pods) == 0 {
		return nil, errNothing
	}
	return b, nil
}

// rates are those that a kubelet knows by itself, in billionths of a core.
type rates struct {
	node       *uint64
	containers map[types.NamespacedName]map[string]*uint64
}

func (r *rates) ofNode() (uint64, bool) {
	if r == nil || r.node == nil {
		return 0, false
	}
	return *r.node, *r.node > 0 // no node uses nothing: it has not measured twice
}

func (r *rates) of(pod types.NamespacedName, container string) (uint64, bool) {
	if r == nil {
		return 0, false
	}
	rate := r.containers[pod][container]
	if rate == nil {
		return 0, false
	}
	return *rate, true
}

// summary is the part of the kubelet's /stats/summary that is wanted.
type summary struct {
	Node struct{ CPU cpu }
	Pods []struct {
		PodRef     struct{ Namespace, Name string }
		Containers []struct {
			Name string
			CPU  cpu
		}
	}
}

type cpu struct{ UsageNanoCores *uint64 }

// rates asks a kubelet for its own rates. Without them there are figures only after its next measurement.
func (k *kubelets) rates(ctx context.Context, node *corev1.Node) (*rates, error) {
	ctx, cancel := context.WithTimeout(ctx, kubeletTimeout)
	defer cancel()
	address, err := k.addresses.NodeAddress(node)
	if err != nil {
		return nil, err
	}
	port := ports.KubeletPort
	if p := int(node.Status.DaemonEndpoints.KubeletEndpoint.Port); p > 0 {
		port = p
	}
	url := "https://" + net.JoinHostPort(address, strconv.Itoa(port)) + "/stats/summary?only_cpu_and_memory=true"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	resp, err := k.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the kubelet answered %s", resp.Status)
	}
	var s summary
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return nil, fmt.Errorf("understanding the kubelet's answer: %w", err)
	}
	r := &rates{node: s.Node.CPU.UsageNanoCores, containers: map[types.NamespacedName]map[string]*uint64{}}
	for _, p := range s.Pods {
		ref := types.NamespacedName{Namespace: p.PodRef.Namespace, Name: p.PodRef.Name}
		if r.containers[ref] == nil { // a pod that goes and its successor have one name
			r.containers[ref] = map[string]*uint64{}
		}
		for _, c := range p.Containers {
			r.containers[ref][c.Name] = c.CPU.UsageNanoCores
		}
	}
	return r, nil
}

// withMetricsPath is a node whose annotation, which its own kubelet may write, leads nowhere but to metrics: what
// the API server asks with its own rights is not the kubelet's to choose.
func withMetricsPath(node *corev1.Node) *corev1.Node {
	at, ok := node.Annotations[resource.AnnotationResourceMetricsPath]
	if !ok || path.Clean(at) == at && strings.HasPrefix(at, "/metrics/") {
		return node
	}
	out := *node
	out.Annotations = nil
	return &out
}

// maxBodyKey is the key of the number of bytes that an answer may have, in a question's context.
type maxBodyKey struct{}

// boundedTransport asks for answers as they are (packing and unpacking them costs more than a local network), reads so
// much of them and no more, and goes nowhere else because an answer says so.
type boundedTransport struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (c boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	limit, ok := r.Context().Value(maxBodyKey{}).(int)
	if !ok {
		limit = smallest
	}
	r = r.Clone(r.Context())
	r.Header.Set("Accept-Encoding", "identity")
	resp, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Header.Del("Location") // or the client would follow it
	resp.Body = &bounded{resp.Body, limit, limit}
	return resp, nil
}

type bounded struct {
	io.ReadCloser
	left, limit int
}

// Read fails, and does not pretend an end, when the answer is longer than allowed.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the answer is longer than %d KiB", b.limit>>10)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
