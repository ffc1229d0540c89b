// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/coracle-k8s/coracle/agent/ingress"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/netinformers"
)

// partIngress is the name of the ingress' status line.
const partIngress = "ingress"

// keptFromIngress returns the ports of nodes to which the ingress proxy does not connect: those that no Service may
// take, except the console's, which an Ingress may name by its Service.
func (o Options) keptFromIngress() []uint16 {
	o.ConsolePort = 0
	return o.reserved().Ports
}

// clusterMark returns text that differs between clusters: a hash of the servers' authority. It is empty where there is
// none.
func (o Options) clusterMark() string {
	text, err := os.ReadFile(o.ServerCAFile)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// newIngress prepares the node's ingress. It returns nil when the ingress is disabled or the node watches no Services.
func newIngress(o Options, informers *netinformers.Informers) (*ingress.Node, error) {
	dir := filepath.Join(o.RunDir, "ingress")
	if o.Cluster.Disabled.Has(clusterconfig.PartIngress) && o.Cluster.Disabled.Has(clusterconfig.PartGateway) {
		if err := ingress.Remove(dir); err != nil {
			return nil, fmt.Errorf("agent: leave Ingresses to another controller: %w", err)
		}
		return nil, nil
	}
	i := ingress.Options{
		Program: filepath.Join(o.BinDir, "coracle-ingress"), Dir: dir, Cluster: o.clusterMark(), NodeIPs: o.IPs, NodeName: o.Name,
		Unreachable: o.unreachable(),
		PodCIDRs:    o.Cluster.PodCIDRs, ServiceCIDRs: o.Cluster.ServiceCIDRs, Reserved: o.keptFromIngress(), Nodes: informers.Nodes(),
		Memory: o.Ingress.Memory, MaxConnections: o.Ingress.MaxConnections,
		Part: o.statusPart(partIngress), Logger: o.Logger,
	}
	if names, err := informers.Names(); err == nil {
		i.Services, i.EndpointSlices = names.Services, names.EndpointSlices
	} else if services, err := informers.Services(); err == nil {
		i.Services, i.EndpointSlices = services.Services, services.EndpointSlices
	} else {
		return nil, nil
	}
	if o.Cluster.NetworkBackend != clusterconfig.NetworkNone {
		i.PodNetworkOf = o.Name
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.KubeletKubeconfig) // the node may read certificates, the network's identity may not
	if err != nil {
		return nil, fmt.Errorf("agent: reading the kubelet's kubeconfig: %w", err)
	}
	config.UserAgent = "coracle-ingress"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("agent: using the kubelet's kubeconfig: %w", err)
	}
	i.Stream = func(ctx context.Context) (io.ReadCloser, error) {
		return client.CoreV1().RESTClient().Get().AbsPath(table.Path).Stream(ctx)
	}
	i.Annotation = func(ctx context.Context) (string, error) {
		node, err := client.CoreV1().Nodes().Get(ctx, o.Name, metav1.GetOptions{})
		if err != nil {
			return "", fmt.Errorf("reading the node's annotation %s: %w", table.NodeAnnotation, err)
		}
		return node.Annotations[table.NodeAnnotation], nil
	}
	i.Annotate = func(ctx context.Context, value string) error {
		return annotate(ctx, client.CoreV1().Nodes(), o.Name, table.NodeAnnotation, value)
	}
	i.Event = func(ctx context.Context, of table.Charge, message string) error {
		return recordLeftOut(ctx, client.CoreV1(), o.Name, of, message)
	}
	n, err := ingress.New(i)
	if err == nil {
		_ = legacyregistry.Registerer().Register(n.Metrics()) // the kubelet serves them; fails for a second node of a process, in tests
	}
	return n, err
}

// recordLeftOut records that the ingress leaves out a namespace. The name of the event follows from what it says, so
// that all nodes and all restarts write it once.
func recordLeftOut(ctx context.Context, client corev1client.EventsGetter, node string, of table.Charge, message string) error {
	sum, now := sha256.Sum256([]byte(of.Object.UID+message)), metav1.Now()
	_, err := client.Events(of.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: of.Namespace, Name: "coracle-ingress." + hex.EncodeToString(sum[:8])},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: of.Object.APIVersion, Kind: of.Object.Kind, Namespace: of.Namespace, Name: of.Object.Name,
			UID: types.UID(of.Object.UID),
		},
		Type: corev1.EventTypeWarning, Reason: "TooLarge", Message: message, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: "coracle-ingress", Host: node},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}
