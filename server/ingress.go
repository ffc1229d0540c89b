// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/coracle-k8s/coracle/controllers/acme"
	"github.com/coracle-k8s/coracle/controllers/ingress"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/status"
)

// ingressCertificates is the line in the status of what orders certificates.
const ingressCertificates = "ingress certificates"

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
		Built:    s.o.BuildTime,
		Recorder: events.NewRecorder(legacyscheme.Scheme, corev1.EventSource{Component: "ingress"}), Logger: s.log.With("part", "ingress"),
	}
	if s.o.Board != nil {
		o.Part = s.o.Board.Part("ingress controller")
		defer o.Part.Set(status.Waiting, "this server does not lead")
	}
	certificates := s.newCertificates(&o, t)
	c, err := ingress.New(o)
	if err != nil {
		return err
	}
	if !t.StartInformers(ctx) {
		return nil
	}
	if certificates != nil {
		ctx, cancel := context.WithCancel(ctx)
		var beside sync.WaitGroup
		defer beside.Wait()
		defer cancel()
		beside.Go(func() {
			certificates.Run(ctx)
			if s.o.Board != nil {
				s.o.Board.Part(ingressCertificates).Set(status.Waiting, "this server does not lead")
			}
		})
	}
	if err := c.Run(ctx); err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errors.New("keeping the objects of the ingress ended by itself")
	}
	return nil
}

// newCertificates returns what orders certificates for a term, and has the controller tell it which; nil where none are
// ordered.
func (s *Server) newCertificates(o *ingress.Options, t *term.Term) *acme.Manager {
	if s.o.ACME.Email == "" || o.Disabled {
		return nil
	}
	nodes := t.Informers.Core().V1().Nodes().Lister()
	a := acme.Options{
		Client: o.Client, Secrets: t.Informers.Core().V1().Secrets().Lister(), Slices: t.Informers.Discovery().V1().EndpointSlices().Lister(), Recorder: o.Recorder,
		Email: s.o.ACME.Email, Directory: s.o.ACME.Directory, Roots: s.o.ACME.Roots,
		Dial: s.tunnels.DialContext, Built: s.o.BuildTime, UserAgent: "coracle/" + s.o.Version, Logger: o.Logger,
		Refuse: func(a netip.Addr) bool { return s.roster.OfCluster(nodes, a) },
	}
	if s.o.Board != nil {
		a.Part = s.o.Board.Part(ingressCertificates)
	}
	m := acme.New(a)
	o.Certificates = m.Want
	return m
}
