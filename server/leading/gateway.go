// SPDX-License-Identifier: Apache-2.0

package leading

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/controllers/definition"
	"github.com/coracle-k8s/coracle/controllers/gateway"
	"github.com/coracle-k8s/coracle/controllers/term"
	compile "github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/recorder"
)

// gatewayPart runs the controller of the Gateway API for a term.
func (l *Leader) gatewayPart(ctx context.Context, t *term.Term) error {
	config := rest.AddUserAgent(rest.CopyConfig(t.Config), "gateway")
	client, clientErr := kubernetes.NewForConfig(config)
	api, apiErr := gatewayapi.New(config)
	definitions, definitionsErr := dynamic.NewForConfig(config)
	if err := errors.Join(clientErr, apiErr, definitionsErr); err != nil {
		return fmt.Errorf("making clients for the Gateway API: %w", err)
	}
	use, log := l.o.GatewayUse, l.log("gateway")
	var controller *gateway.Controller
	objects := gatewayapi.NewObjects(api, func() { controller.Changed() }, log)
	o := gateway.Options{
		Client: client, Informers: t.Informers, Disabled: l.o.Cluster.Disabled.Has(clusterconfig.PartGateway),
		Recorder: recorder.New(ctx, client, gateway.Component),
		State:    func() (compile.State, bool) { return objects.State(use) },
		Status: func(ctx context.Context, resource string, o gateway.Object) error {
			return api.UpdateStatus(ctx, resource, o)
		},
		Part: l.o.Board.Part("gateway controller"), Logger: log,
	}
	defer notLeading(o.Part)
	controller, err := gateway.New(o)
	if err != nil {
		return err
	}
	beside := []func(context.Context){func(ctx context.Context) {
		if !definition.AwaitTurn(ctx, t.Informers.Core().V1().Nodes().Informer(), l.gatewayWanted) {
			return
		}
		definition.UntilDone(ctx, log, "gateway: the kinds of the Gateway API cannot be defined yet; retrying", func() error {
			if o.Disabled {
				return gateway.Undefine(ctx, definitions, api, use)
			}
			return gateway.Define(ctx, definitions, api, time.Now())
		})
	}}
	if !o.Disabled {
		beside = append(beside, func(ctx context.Context) { objects.Run(ctx, use) })
	}
	return runPart(ctx, t, controller.Run, "running the gateway controller", beside...)
}
