// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/controllers/gateway/definitions"
	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// Define defines the kinds and the class in the cluster, and writes the status of the class. That status stays correct
// while there are no other objects.
func Define(ctx context.Context, c dynamic.Interface, api *gatewayapi.Client, now time.Time) error {
	if err := definitions.Define(ctx, c); err != nil {
		return err
	}
	class, err := makeClass(ctx, api)
	if err != nil {
		return err
	}
	version, err := api.CRDVersion(ctx)
	if err != nil {
		return err
	}
	s := gateway.State{Classes: []*gatewayv1.GatewayClass{class}, CRDVersion: version, Now: now}
	r, err := gateway.Desired(s)
	if err != nil {
		return fmt.Errorf("compiling the GatewayClass: %w", err)
	}
	w := &writer{update: func(ctx context.Context, resource string, o Object) error { return api.UpdateStatus(ctx, resource, o) }}
	w.classes(ctx, s, r)
	return errors.Join(w.errs...)
}

const (
	// servedTimeout is the time for which Define waits until the API server serves a newly defined kind. servedPoll is
	// the interval of the requests.
	servedTimeout, servedPoll = time.Minute, 200 * time.Millisecond
)

// makeClass returns the class. It makes the class if there is none.
func makeClass(ctx context.Context, api *gatewayapi.Client) (*gatewayv1.GatewayClass, error) {
	ctx, cancel := context.WithTimeout(ctx, servedTimeout)
	defer cancel()
	for {
		class, err := api.Class(ctx, gateway.ClassName)
		if err != nil || class != nil {
			return class, err
		}
		err = api.CreateClass(ctx, &gatewayv1.GatewayClass{
			TypeMeta:   metav1.TypeMeta{APIVersion: gatewayv1.GroupVersion.String(), Kind: "GatewayClass"},
			ObjectMeta: metav1.ObjectMeta{Name: gateway.ClassName, Labels: map[string]string{managedBy: managerName}},
			Spec:       gatewayv1.GatewayClassSpec{ControllerName: gateway.ControllerName},
		})
		switch {
		case err == nil || apierrors.IsAlreadyExists(err):
			continue
		case !apierrors.IsNotFound(err):
			return nil, fmt.Errorf("making the GatewayClass %s: %w", gateway.ClassName, err)
		}
		if !timers.Sleep(ctx, servedPoll) {
			return nil, fmt.Errorf("waiting until GatewayClasses are served: %w", err)
		}
	}
}

// Undefine removes the class and the kinds, unless there are objects of them.
func Undefine(ctx context.Context, c dynamic.Interface, api *gatewayapi.Client, use gatewayapi.Use) error {
	if use.Used() {
		return nil
	}
	class, err := api.Class(ctx, gateway.ClassName)
	if err != nil {
		return err
	}
	if class != nil {
		if class.Labels[managedBy] != managerName {
			return nil
		}
		if err := api.DeleteClass(ctx, class); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting the GatewayClass %s: %w", gateway.ClassName, err)
		}
	}
	return definitions.Remove(ctx, c)
}

func (w *writer) classes(ctx context.Context, s gateway.State, r gateway.Result) {
	want := map[types.NamespacedName]gatewayv1.GatewayClassStatus{}
	for name, status := range r.ClassStatus {
		want[types.NamespacedName{Name: name}] = status
	}
	write(ctx, w, gatewayapi.Classes, s.Classes, want, func(o *gatewayv1.GatewayClass) *gatewayv1.GatewayClassStatus { return &o.Status })
}
