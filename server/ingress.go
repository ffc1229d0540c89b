// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/coracle-k8s/coracle/controllers/ingress"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/status"
)

// ingressPart keeps the objects of the ingress for a term.
func (s *Server) ingressPart(ctx context.Context, t *term.Term) error {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(t.Config), "ingress"))
	if err != nil {
		return err
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	o := ingress.Options{
		Client: client, Informers: t.Informers, Disabled: s.o.Cluster.IngressDisabled(), Rules: s.o.IngressRules,
		Recorder: events.NewRecorder(legacyscheme.Scheme, corev1.EventSource{Component: "ingress"}), Logger: s.log.With("part", "ingress"),
	}
	if s.o.Board != nil {
		o.Part = s.o.Board.Part("ingress controller")
		defer o.Part.Set(status.Waiting, "this server does not lead")
	}
	c, err := ingress.New(o)
	if err != nil {
		return err
	}
	if !t.StartInformers(ctx) {
		return nil
	}
	if err := c.Run(ctx); err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errors.New("keeping the objects of the ingress ended by itself")
	}
	return nil
}
