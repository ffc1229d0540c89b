// SPDX-License-Identifier: Apache-2.0

package leading

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/volume"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/controllers"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
	"github.com/coracle-k8s/coracle/controllers/localpath"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/recorder"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/scheduler"
	"github.com/coracle-k8s/coracle/server/admission"
	"github.com/coracle-k8s/coracle/server/bootstrap"
	"github.com/coracle-k8s/coracle/server/departures"
	"github.com/coracle-k8s/coracle/server/liveness"
	"github.com/coracle-k8s/coracle/server/manifests"
	"github.com/coracle-k8s/coracle/server/nodemembers"
)

// LocalStorageLine is the status line of local storage.
const LocalStorageLine = "local storage"

// parts returns everything that runs on only one server of the cluster.
func (l *Leader) parts() []term.Part {
	logged := func(run func(context.Context, *term.Term, *slog.Logger) error, part string) term.Part {
		return func(ctx context.Context, t *term.Term) error { return run(ctx, t, l.log(part)) }
	}
	parts := []term.Part{l.controllersPart, l.schedulerPart, l.dnsPart, l.livenessPart,
		func(ctx context.Context, t *term.Term) error {
			return nodemembers.Run(ctx, t, l.o.Members, l.log("servers' nodes"))
		},
		logged(departures.Run, "nodes that leave"), logged(admission.RunGC, "joining"),
		l.serviceLBPart, l.ingressPart, l.gatewayPart, l.helmPart}
	if !l.o.Cluster.Disabled.Has(clusterconfig.PartRuntimes) {
		parts = append(parts, l.runtimesPart)
	}
	if l.o.MetricsHistory != nil {
		parts = append(parts, l.metricsHistoryPart)
	}
	if l.o.Manifests.Dir != "" {
		parts = append(parts, l.manifestsPart)
	}
	return parts
}

func (l *Leader) log(part string) *slog.Logger { return l.o.Logger.With("part", part) }

// notLeading sets a status line at the end of a term.
func notLeading(line *status.Part) { line.Set(status.Waiting, "this server does not lead") }

// runPart starts the term's informers, for which the other parts wait, and calls run. If run returns before ctx is
// done, it returns an error that names the part by what. The functions beside it run until run has returned.
func runPart(ctx context.Context, t *term.Term, run func(context.Context) error, what string, beside ...func(context.Context)) error {
	if !t.StartInformers(ctx) {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for _, f := range beside {
		running.Go(func() { f(ctx) })
	}
	if err := run(ctx); err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errors.New(what + " exited unexpectedly")
	}
	return nil
}

func (l *Leader) controllersPart(ctx context.Context, t *term.Term) error {
	o := l.o.Controllers
	o.Term = t
	o.Unused = func(group string) bool { return group == gatewayv1.GroupName && l.o.GatewayUse.UnusedNow(ctx) }
	if l.o.Cluster.Disabled.Has(clusterconfig.PartLocalStorage) {
		return controllers.Run(ctx, o)
	}
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	o.VolumePlugins = func() ([]volume.VolumePlugin, error) {
		v, err := l.newLocalStorage(ctx, t)
		if err != nil {
			return nil, err
		}
		beside.Go(func() { v.Run(ctx) })
		return []volume.VolumePlugin{v}, nil
	}
	return controllers.Run(ctx, o)
}

// newLocalStorage returns the plugin that provides volumes as directories on nodes, for a term.
func (l *Leader) newLocalStorage(ctx context.Context, t *term.Term) (*localpath.Volumes, error) {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(t.Config), "local-storage"))
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	core := t.Informers.Core().V1()
	return localpath.New(localpath.Options{
		Client: client, NodeInformer: core.Nodes(), VolumeInformer: core.PersistentVolumes(), ClaimInformer: core.PersistentVolumeClaims(),
		PodInformer: core.Pods(), ClassInformer: t.Informers.Storage().V1().StorageClasses(),
		Nodes: l.o.Volumes, Refusals: l.refusals, Context: ctx, Part: l.o.Board.Part(LocalStorageLine), Logger: l.log(LocalStorageLine),
	})
}

func (l *Leader) schedulerPart(ctx context.Context, t *term.Term) error {
	o := l.o.Scheduler
	o.Term = t
	if !l.o.Cluster.Disabled.Has(clusterconfig.PartLocalStorage) {
		o.Refusals = l.refusals
	}
	return scheduler.Run(ctx, o)
}

func (l *Leader) dnsPart(ctx context.Context, t *term.Term) error {
	d := bootstrap.NewDNSEndpoints(t.Client, t.Informers, l.o.Cluster.DNS.AsSlice(), l.log("cluster DNS"))
	return runPart(ctx, t, d.Run, "writing the endpoints of the cluster DNS")
}

// runtimesPart makes RuntimeClasses of the container runtimes that nodes have found, for a term.
func (l *Leader) runtimesPart(ctx context.Context, t *term.Term) error {
	r := bootstrap.NewRuntimeClasses(t.Client, t.Informers, l.log("container runtimes"))
	return runPart(ctx, t, r.Run, "making RuntimeClasses")
}

func (l *Leader) manifestsPart(ctx context.Context, t *term.Term) error {
	o := l.o.Manifests
	o.Config, o.Want, o.Board, o.Logger = t.Config, l.wantKind, l.o.Board, l.log("manifests")
	m, err := manifests.New(o)
	if err != nil {
		return err
	}
	return runPart(ctx, t, m.Run, "applying manifests")
}

func (l *Leader) metricsHistoryPart(ctx context.Context, t *term.Term) error {
	return runPart(ctx, t, func(ctx context.Context) error { l.o.MetricsHistory(ctx); return nil }, "keeping the history of metrics")
}

// wantKind says whether a kind is one that parts of this package define. If it is, the part defines it at once, since a
// user has an object of it.
func (l *Leader) wantKind(of schema.GroupKind) bool {
	switch {
	case of.Group == kinds.Group && !l.o.Helm.Disabled:
		l.helmWanted.Send()
	case of.Group == gatewayv1.GroupName && gatewayapi.IsServed(of.Kind) && !l.o.Cluster.Disabled.Has(clusterconfig.PartGateway):
		l.gatewayWanted.Send()
	default:
		return false
	}
	return true
}

// livenessPart decides which nodes are dead, for a term.
func (l *Leader) livenessPart(ctx context.Context, t *term.Term) error {
	nodes := t.Informers.Core().V1().Nodes()
	synced := nodes.Informer().HasSynced
	return runPart(ctx, t, func(ctx context.Context) error {
		if !cache.WaitForCacheSync(ctx.Done(), synced) {
			return nil
		}
		o := l.o.Liveness
		o.Client, o.Nodes, o.Logger = t.Client, nodes.Lister(), l.log("liveness")
		o.Recorder = recorder.New(ctx, t.Client, "node-liveness")
		j := liveness.New(o)
		l.o.Judge.Store(j)
		defer l.o.Judge.CompareAndSwap(j, nil)
		j.Run(ctx)
		return nil
	}, "judging nodes")
}
