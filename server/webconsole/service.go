// SPDX-License-Identifier: Apache-2.0

package webconsole

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	discoveryv1ac "k8s.io/client-go/applyconfigurations/discovery/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// consoleServiceName is the name of the Service in kube-system by which an Ingress names the console.
	consoleServiceName = "console"
	consoleServicePort = 443
	// consoleSlices marks the endpoint slices of servers' consoles. consoleManager marks the Service.
	consoleSlices  = "console.coracle"
	consoleManager = "coracle"
	managedByLabel = "app.kubernetes.io/managed-by"
	// consoleServiceRetry is the pause after a failed attempt.
	consoleServiceRetry = 5 * time.Second
)

// errForeignService says that another owner has a Service of this name. It is not tried again until the next start.
var errForeignService = errors.New("there is a Service kube-system/console that coracle did not create, and does not change: " +
	"delete it and start the server again")

// consoleService maintains the Service kube-system/console. It has no selector. Each server whose console serves
// browsers has an endpoint slice of its own. The last server that stops serving browsers deletes the Service. All this
// is written at a server's start, if it differs, and not later: the Service proxy and the ingress derive from a
// server's node whether it can be reached.
type consoleService struct {
	client   kubernetes.Interface
	server   string         // the name of the server's node, used for its slice
	hasNode  bool           // the server has a node
	endpoint netip.AddrPort // where this server's console serves browsers; zero if it does not
}

// SyncService writes the server's part of the Service and returns when it is right.
func (w *Console) SyncService(ctx context.Context, config *rest.Config) {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(config), "console-service"))
	if err != nil {
		w.o.Logger.Error("the Service kube-system/console is not synced", "error", err)
		return
	}
	c := &consoleService{client: client, server: w.o.Server, hasNode: w.o.Node}
	if w.port != nil {
		c.endpoint = w.o.endpoint(w.port.Addr())
	}
	for last, level := "", slog.LevelDebug; ; level = slog.LevelWarn { // at first the Node registers a moment later
		err := c.apply(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
			return
		case errors.Is(err, errForeignService):
			w.o.Logger.Warn("an Ingress cannot refer to the console", "error", err)
			return
		}
		if text := level.String() + err.Error(); text != last {
			last = text
			w.o.Logger.Log(ctx, level, "the Service kube-system/console could not be updated; retrying", "error", err)
		}
		if !timers.Sleep(ctx, consoleServiceRetry) {
			return
		}
	}
}

// apply writes this server's part of the Service.
func (c *consoleService) apply(ctx context.Context) error {
	if !c.endpoint.IsValid() {
		return c.remove(ctx)
	}
	err := c.applyService(ctx)
	if errors.Is(err, errForeignService) {
		return errors.Join(err, c.removeSlice(ctx)) // a Service of another owner gets no endpoint of ours
	}
	if err != nil {
		return err
	}
	return c.applySlice(ctx)
}

func (c *consoleService) sliceName() string {
	return consoleServiceName + "-" + strings.ToLower(c.server)
}

func (c *consoleService) applySlice(ctx context.Context) error {
	slices := c.client.DiscoveryV1().EndpointSlices(metav1.NamespaceSystem)
	family := discoveryv1.AddressTypeIPv4
	if c.endpoint.Addr().Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	endpoint := discoveryv1ac.Endpoint().WithAddresses(c.endpoint.Addr().String()).
		WithConditions(discoveryv1ac.EndpointConditions().WithReady(true))
	slice := discoveryv1ac.EndpointSlice(c.sliceName(), metav1.NamespaceSystem).
		WithLabels(map[string]string{discoveryv1.LabelServiceName: consoleServiceName, discoveryv1.LabelManagedBy: consoleSlices}).
		WithAddressType(family).
		WithPorts(discoveryv1ac.EndpointPort().WithName("https").WithProtocol(corev1.ProtocolTCP).
			WithPort(int32(c.endpoint.Port())).WithAppProtocol("https"))
	if c.hasNode {
		node, err := c.client.CoreV1().Nodes().Get(ctx, c.server, metav1.GetOptions{})
		if err != nil { // at the first start it registers a moment later
			return fmt.Errorf("reading this server's Node: %w", err)
		}
		endpoint.WithNodeName(c.server)
		// The slice is deleted with the Node when a server leaves the cluster.
		slice.WithOwnerReferences(metav1ac.OwnerReference().WithAPIVersion("v1").WithKind("Node").WithName(node.Name).WithUID(node.UID))
	}
	have, err := slices.Get(ctx, c.sliceName(), metav1.GetOptions{})
	switch {
	case err != nil && !apierrors.IsNotFound(err):
		return fmt.Errorf("reading the EndpointSlice %s: %w", c.sliceName(), err)
	case err == nil && have.AddressType != family: // immutable
		if err := c.deleteSlice(ctx, have); err != nil {
			return err
		}
	}
	_, err = slices.Apply(ctx, slice.WithEndpoints(endpoint), metav1.ApplyOptions{FieldManager: consoleManager, Force: true})
	if err != nil {
		return fmt.Errorf("writing the EndpointSlice %s: %w", c.sliceName(), err)
	}
	return nil
}

func (c *consoleService) applyService(ctx context.Context) error {
	services := c.client.CoreV1().Services(metav1.NamespaceSystem)
	have, err := services.Get(ctx, consoleServiceName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("reading the Service console: %w", err)
	}
	if err == nil && have.Labels[managedByLabel] != consoleManager {
		return errForeignService
	}
	family := corev1.IPv4Protocol
	if c.endpoint.Addr().Is6() {
		family = corev1.IPv6Protocol
	}
	_, err = services.Apply(ctx, corev1ac.Service(consoleServiceName, metav1.NamespaceSystem).
		WithLabels(map[string]string{managedByLabel: consoleManager}).
		WithSpec(corev1ac.ServiceSpec().WithType(corev1.ServiceTypeClusterIP).
			WithIPFamilyPolicy(corev1.IPFamilyPolicySingleStack).WithIPFamilies(family).
			WithPorts(corev1ac.ServicePort().WithName("https").WithProtocol(corev1.ProtocolTCP).WithPort(consoleServicePort).
				WithTargetPort(intstr.FromInt32(int32(c.endpoint.Port()))).WithAppProtocol("https"))),
		metav1.ApplyOptions{FieldManager: consoleManager, Force: true})
	if err != nil {
		return fmt.Errorf("writing the Service console: %w", err)
	}
	return nil
}

// remove deletes this server's slice. If no other server has one, it deletes the Service, too.
func (c *consoleService) remove(ctx context.Context) error {
	if err := c.removeSlice(ctx); err != nil {
		return err
	}
	service, err := c.client.CoreV1().Services(metav1.NamespaceSystem).Get(ctx, consoleServiceName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("reading the Service console: %w", err)
	case service.Labels[managedByLabel] != consoleManager:
		return nil
	}
	if served, err := c.isServed(ctx); err != nil || served {
		return err
	}
	same := metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(service.UID))}
	err = c.client.CoreV1().Services(metav1.NamespaceSystem).Delete(ctx, consoleServiceName, same)
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("deleting the Service console: %w", err)
	}
	return nil
}

// removeSlice deletes this server's slice.
func (c *consoleService) removeSlice(ctx context.Context) error {
	have, err := c.client.DiscoveryV1().EndpointSlices(metav1.NamespaceSystem).Get(ctx, c.sliceName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("reading the EndpointSlice %s: %w", c.sliceName(), err)
	case have.Labels[discoveryv1.LabelManagedBy] != consoleSlices:
		return nil
	}
	return c.deleteSlice(ctx, have)
}

// isServed says whether any server has a slice.
func (c *consoleService) isServed(ctx context.Context) (bool, error) {
	ofConsoles := metav1.ListOptions{LabelSelector: discoveryv1.LabelManagedBy + "=" + consoleSlices}
	list, err := c.client.DiscoveryV1().EndpointSlices(metav1.NamespaceSystem).List(ctx, ofConsoles)
	if err != nil {
		return false, fmt.Errorf("listing the endpoint slices of consoles: %w", err)
	}
	return len(list.Items) > 0, nil
}

func (c *consoleService) deleteSlice(ctx context.Context, s *discoveryv1.EndpointSlice) error {
	same := metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(s.UID))}
	err := c.client.DiscoveryV1().EndpointSlices(s.Namespace).Delete(ctx, s.Name, same)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting the EndpointSlice %s: %w", s.Name, err)
	}
	return nil
}
