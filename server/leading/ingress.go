// SPDX-License-Identifier: Apache-2.0

package leading

import (
	"context"
	"net/netip"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/controllers/acme"
	"github.com/coracle-k8s/coracle/controllers/ingress"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/recorder"
)

// ingressCertificates is the status line of the part that orders certificates.
const ingressCertificates = "ingress certificates"

func (l *Leader) ingressPart(ctx context.Context, t *term.Term) error {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(t.Config), "ingress"))
	if err != nil {
		return err
	}
	o := l.o.Ingress
	o.Client, o.Informers, o.Logger, o.Part = client, t.Informers, l.log("ingress"), l.o.Board.Part("ingress controller")
	o.PodCIDRs, o.ServiceCIDRs = l.o.Cluster.PodCIDRs, l.o.Cluster.ServiceCIDRs
	o.ReservedNodePorts = append(table.GatewayPorts(), uint16(l.o.Port), kubeletPort, table.NodeHTTPPort, table.NodeHTTPSPort)
	o.Recorder = recorder.New(ctx, client, ingress.Component, record.WithCorrelatorOptions(ingress.Correlation))
	defer notLeading(o.Part)
	certificates := l.newCertificates(&o, t)
	c, err := ingress.New(o)
	if err != nil {
		return err
	}
	var beside []func(context.Context)
	if certificates != nil {
		beside = append(beside, func(ctx context.Context) {
			certificates.Run(ctx)
			notLeading(l.o.Board.Part(ingressCertificates))
		})
	}
	return runPart(ctx, t, c.Run, "running the ingress controller", beside...)
}

// newCertificates returns the Manager that orders certificates for a term, and sets it in o. It returns nil if none are
// ordered.
func (l *Leader) newCertificates(o *ingress.Options, t *term.Term) *acme.Manager {
	if l.o.ACME.Email == "" || o.Disabled {
		return nil
	}
	nodes := t.Informers.Core().V1().Nodes().Lister()
	a := l.o.ACME
	a.Client, a.Recorder, a.Logger, a.Part = o.Client, o.Recorder, o.Logger, l.o.Board.Part(ingressCertificates)
	a.Secrets, a.Slices = t.Informers.Core().V1().Secrets().Lister(), t.Informers.Discovery().V1().EndpointSlices().Lister()
	a.Refuse = func(a netip.Addr) bool { return l.o.OwnsAddress(nodes, a) }
	m := acme.New(a)
	o.Certificates = m.Want
	return m
}
