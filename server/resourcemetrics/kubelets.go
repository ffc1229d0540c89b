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
	// kubeletTimeout limits one request to a kubelet. doubtfulTimeout limits one to a node that is not ready.
	kubeletTimeout  = 5 * time.Second
	doubtfulTimeout = 2 * time.Second
	// minBodyLimit and bytesPerContainer limit a response in bytes, by the number of the node's containers. A container
	// takes less than a kibibyte of the counters, and less than three of the summary. Containers that the API does not
	// know, such as those of deleted pods, fit into minBodyLimit.
	minBodyLimit      = 1 << 20
	bytesPerContainer = 8 << 10
)

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

// read returns the counters of a node and its containers. Upstream's decoder panics on some malformed responses, which
// read returns as an error.
func (k *kubelets) read(ctx context.Context, node *corev1.Node) (b *storage.MetricsBatch, err error) {
	timeout := kubeletTimeout
	if !nodeutil.IsNodeReady(node) {
		timeout = doubtfulTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			b, err = nil, fmt.Errorf("the kubelet's response is malformed: %v", r)
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

// rates are the CPU rates that a kubelet has computed itself, in billionths of a core.
type rates struct {
	node       *uint64
	containers map[types.NamespacedName]map[string]*uint64
}

func (r *rates) ofNode() (uint64, bool) {
	if r == nil || r.node == nil {
		return 0, false
	}
	return *r.node, *r.node > 0 // 0 means that it has not measured twice
}

func (r *rates) rateOf(pod types.NamespacedName, container string) (uint64, bool) {
	if r == nil {
		return 0, false
	}
	rate := r.containers[pod][container]
	if rate == nil {
		return 0, false
	}
	return *rate, true
}

// summary has the fields of the kubelet's /stats/summary that are used.
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

// rates requests a kubelet's own rates. Without them there are figures only after its next measurement.
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
		return nil, fmt.Errorf("decoding the kubelet's response: %w", err)
	}
	r := &rates{node: s.Node.CPU.UsageNanoCores, containers: map[types.NamespacedName]map[string]*uint64{}}
	for _, p := range s.Pods {
		ref := types.NamespacedName{Namespace: p.PodRef.Namespace, Name: p.PodRef.Name}
		if r.containers[ref] == nil { // a terminating pod and its successor have the same name
			r.containers[ref] = map[string]*uint64{}
		}
		for _, c := range p.Containers {
			r.containers[ref][c.Name] = c.CPU.UsageNanoCores
		}
	}
	return r, nil
}

// withMetricsPath returns the node, without its annotations if the annotation for the metrics path leads elsewhere than
// to metrics. A kubelet can write its Node's annotation. It must not choose a path that the API server requests with
// its own rights.
func withMetricsPath(node *corev1.Node) *corev1.Node {
	at, ok := node.Annotations[resource.AnnotationResourceMetricsPath]
	if !ok || path.Clean(at) == at && strings.HasPrefix(at, "/metrics/") {
		return node
	}
	out := *node
	out.Annotations = nil
	return &out
}

// maxBodyKey is the context key of the largest allowed response, in bytes.
type maxBodyKey struct{}

// boundedTransport requests uncompressed responses, since compression costs more than a local network. It limits the
// bytes that are read, and follows no redirects.
type boundedTransport struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (c boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	limit, ok := r.Context().Value(maxBodyKey{}).(int)
	if !ok {
		limit = minBodyLimit
	}
	r = r.Clone(r.Context())
	r.Header.Set("Accept-Encoding", "identity")
	resp, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Header.Del("Location") // so that the client does not follow it
	resp.Body = &bounded{resp.Body, limit, limit}
	return resp, nil
}

type bounded struct {
	io.ReadCloser
	remaining, limit int
}

// Read returns an error when the response is longer than allowed, and not io.EOF.
func (b *bounded) Read(p []byte) (int, error) {
	if b.remaining <= 0 {
		return 0, fmt.Errorf("the answer is longer than %d KiB", b.limit>>10)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.remaining)])
	b.remaining -= n
	return n, err
}
