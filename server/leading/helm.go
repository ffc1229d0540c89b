// SPDX-License-Identifier: Apache-2.0

package leading

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/controllers/helmcharts"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/recorder"
)

// helmPart installs the charts of HelmChart objects, for a term. If it is disabled, it releases existing objects.
func (l *Leader) helmPart(ctx context.Context, t *term.Term) error {
	config := rest.AddUserAgent(rest.CopyConfig(t.Config), "helm-controller")
	o, children := l.o.Helm, l.o.HelmEngine
	o.Informers, o.Wanted, o.Logger = t.Informers, l.helmWanted, l.log("helm")
	children.Config, children.Logger = config, o.Logger
	o.Engine = children.Do
	var errs [3]error
	o.Client, errs[0] = kubernetes.NewForConfig(config)
	o.Dynamic, errs[1] = dynamic.NewForConfig(config)
	o.Metadata, errs[2] = metadata.NewForConfig(config)
	if err := errors.Join(errs[:]...); err != nil {
		return fmt.Errorf("making clients for Helm charts: %w", err)
	}
	o.Recorder = recorder.New(ctx, o.Client, "helm-controller")
	o.Part = l.o.Board.Part("helm charts")
	defer notLeading(o.Part)
	c, err := helmcharts.New(o)
	if err != nil {
		return err
	}
	return runPart(ctx, t, c.Run, "running the Helm controller")
}
