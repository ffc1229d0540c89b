// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/coracle-k8s/coracle/controllers/helmcharts"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/status"
)

// helmPart keeps charts installed that are objects of the API, for a term. Switched off, it lets go of those that there
// are.
func (s *Server) helmPart(ctx context.Context, t *term.Term) error {
	config := rest.AddUserAgent(rest.CopyConfig(t.Config), "helm-controller")
	log := s.log.With("part", "helm")
	o := helmcharts.Options{
		Informers: t.Informers, Folders: s.o.ChartFolders, Server: s.o.NodeName, Disabled: s.o.DisableHelm, Wanted: s.helmWanted, Logger: log,
		Engine: helmcharts.Children{Config: config, Program: s.o.HelmProgram, Dir: s.o.RunDir, Logger: log}.Do,
	}
	var errs [3]error
	o.Client, errs[0] = kubernetes.NewForConfig(config)
	o.Dynamic, errs[1] = dynamic.NewForConfig(config)
	o.Metadata, errs[2] = metadata.NewForConfig(config)
	if err := errors.Join(errs[:]...); err != nil {
		return fmt.Errorf("making clients for Helm charts: %w", err)
	}
	var events record.EventBroadcaster
	o.Recorder = func(ctx context.Context) record.EventRecorder {
		events = record.NewBroadcaster(record.WithContext(ctx))
		events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: o.Client.CoreV1().Events("")})
		return events.NewRecorder(legacyscheme.Scheme, corev1.EventSource{Component: "helm-controller"})
	}
	defer func() {
		if events != nil {
			events.Shutdown()
		}
	}()
	if s.o.Board != nil {
		o.Part = s.o.Board.Part("helm charts")
		defer o.Part.Set(status.Waiting, "this server does not lead")
	}
	c, err := helmcharts.New(o)
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
		return errors.New("keeping Helm charts installed ended by itself")
	}
	return nil
}

// wantKind has the kinds of Helm charts defined at once, for somebody who has an object of them.
func (s *Server) wantKind(of schema.GroupKind) bool {
	if of.Group != kinds.Group || s.o.DisableHelm {
		return false
	}
	select {
	case s.helmWanted <- struct{}{}:
	default:
	}
	return true
}
