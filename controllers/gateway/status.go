// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
)

// Object is an object of the Gateway API.
type Object interface {
	metav1.Object
	runtime.Object
}

// copied is a Gateway API object whose DeepCopy returns the object's own type.
type copied[T any] interface {
	Object
	DeepCopy() T
}

func objectKey(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// writer writes statuses that differ from the desired ones.
type writer struct {
	update func(ctx context.Context, resource string, o Object) error
	errs   []error
}

func write[T copied[T], S any](ctx context.Context, w *writer, resource string, objects []T, want map[types.NamespacedName]S,
	status func(T) *S) {
	for _, o := range objects {
		s, ok := want[objectKey(o)]
		if !ok || equality.Semantic.DeepEqual(*status(o), s) {
			continue
		}
		changed := o.DeepCopy()
		*status(changed) = s
		err := w.update(ctx, resource, changed)
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) { // for these two the cache receives the newer object
			w.errs = append(w.errs, fmt.Errorf("writing the status of %s %s: %w", resource, objectKey(o), err))
		}
	}
}

// syncStatus writes the status of all objects.
func (c *Controller) syncStatus(ctx context.Context, s gateway.State, r gateway.Result) error {
	w := &writer{update: c.o.Status}
	w.classes(ctx, s, r)
	write(ctx, w, gatewayapi.Gateways, s.Gateways, r.GatewayStatus,
		func(o *gatewayv1.Gateway) *gatewayv1.GatewayStatus { return &o.Status })
	write(ctx, w, gatewayapi.ListenerSets, s.ListenerSets, r.ListenerSetStatus,
		func(o *gatewayv1.ListenerSet) *gatewayv1.ListenerSetStatus { return &o.Status })
	write(ctx, w, gatewayapi.HTTPRoutes, s.HTTPRoutes, r.HTTPRouteStatus,
		func(o *gatewayv1.HTTPRoute) *gatewayv1.HTTPRouteStatus { return &o.Status })
	write(ctx, w, gatewayapi.GRPCRoutes, s.GRPCRoutes, r.GRPCRouteStatus,
		func(o *gatewayv1.GRPCRoute) *gatewayv1.GRPCRouteStatus { return &o.Status })
	write(ctx, w, gatewayapi.TLSRoutes, s.TLSRoutes, r.TLSRouteStatus,
		func(o *gatewayv1.TLSRoute) *gatewayv1.TLSRouteStatus { return &o.Status })
	write(ctx, w, gatewayapi.Policies, s.Policies, r.PolicyStatus,
		func(o *gatewayv1.BackendTLSPolicy) *gatewayv1.PolicyStatus { return &o.Status })
	return errors.Join(w.errs...)
}
