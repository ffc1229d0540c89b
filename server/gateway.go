// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/coracle-k8s/coracle/controllers/definition"
	"github.com/coracle-k8s/coracle/controllers/gateway"
	"github.com/coracle-k8s/coracle/controllers/term"
	compile "github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/internal/status"
)

// gatewayPart keeps the objects of the Gateway API for a term.
func (s *Server) gatewayPart(ctx context.Context, t *term.Term) error {
	config := rest.AddUserAgent(rest.CopyConfig(t.Config), "gateway")
	client, clientErr := kubernetes.NewForConfig(config)
	api, apiErr := gatewayapi.New(config)
	definitions, definitionsErr := dynamic.NewForConfig(config)
	if err := errors.Join(clientErr, apiErr, definitionsErr); err != nil {
		return fmt.Errorf("making clients for the Gateway API: %w", err)
	}
	use := s.gatewayUse.Load()
	log := s.log.With("part", "gateway")
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	var controller *gateway.Controller
	objects := gatewayapi.NewObjects(api, func() { controller.Changed() }, log)
	o := gateway.Options{
		Client: client, Informers: t.Informers, Disabled: s.o.Cluster.GatewayDisabled(), Logger: log,
		State: func() (compile.State, bool) { return objects.State(use) },
		Status: func(ctx context.Context, resource string, o gateway.Object) error {
			return api.UpdateStatus(ctx, resource, o)
		},
		Recorder: events.NewRecorder(legacyscheme.Scheme, corev1.EventSource{Component: "gateway"}),
	}
	if s.o.Board != nil {
		o.Part = s.o.Board.Part("gateway controller")
		defer o.Part.Set(status.Waiting, "this server does not lead")
	}
	controller, err := gateway.New(o)
	if err != nil {
		return err
	}
	if !t.StartInformers(ctx) {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	beside.Go(func() {
		definition.UntilDone(ctx, log, "gateway: the kinds of the Gateway API cannot be defined yet; it is tried again", func() error {
			if o.Disabled {
				return gateway.Undefine(ctx, definitions, api, use)
			}
			return gateway.Define(ctx, definitions, api, time.Now())
		})
	})
	if !o.Disabled {
		beside.Go(func() { objects.Run(ctx, use) })
	}
	if err := controller.Run(ctx); err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errors.New("keeping the objects of the Gateway API ended by itself")
	}
	return nil
}
