// SPDX-License-Identifier: Apache-2.0

// Package controllers runs upstream's complete set of controllers as a library for one term of Raft leadership. It has
// no leader-election lease and no port, and does not exit when leadership ends.
//
// It assembles them from kube-controller-manager's exported functions (NewControllerDescriptors, BuildController,
// RunControllers) with its own ControllerContext. Upstream's Run would open a listener, register a configz name that
// makes a second term fail, and make informers that are not ended with the term. The package owns which controllers
// run, their identities and their concurrency. It takes no part in elections, and it implements no controller that
// upstream has.
//
// Its goroutines: upstream's; the discovery of kinds, twice a minute; informers of custom resources; the taint
// manager's beside. All end with the term.
package controllers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	controllersmetrics "k8s.io/component-base/metrics/prometheus/controllers"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	"k8s.io/kubernetes/pkg/volume"

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// Options configure the controllers. Paths are of PEM files that exist when Run is called.
type Options struct {
	// Term is the term of leadership in which the controllers run. Validate does not need it.
	Term *term.Term

	// ClusterCIDR is the pods' address range, or two ranges separated by a comma for dual stack. Each node gets a
	// subnet of it.
	ClusterCIDR string
	// ServiceCIDR is the Services' address range, in the same form.
	ServiceCIDR string

	// ClusterSigningCertFile and ClusterSigningKeyFile sign certificate requests for kubelets and users. If they are
	// empty, none is signed.
	ClusterSigningCertFile, ClusterSigningKeyFile string
	// RootCAFile is published to every namespace as kube-root-ca.crt.
	RootCAFile string
	// ServiceAccountPrivateKeyFile signs the tokens of Secrets of the legacy token type.
	ServiceAccountPrivateKeyFile string
	// FlexVolumePluginDir is the folder of FlexVolume drivers. Upstream makes it when it does not exist. When empty it
	// is /usr/libexec/kubernetes/kubelet-plugins/volume/exec.
	FlexVolumePluginDir string
	// VolumePlugins, when set, returns further plugins for the controllers that make, remove and expand volumes. It is
	// called before the informers run.
	VolumePlugins func() ([]volume.VolumePlugin, error)

	// Unused, when set, reports that there are no objects of a group of custom resources. Meanwhile the garbage
	// collector, the quota controller and the deletion of namespaces' content ignore the group.
	Unused func(group string) bool

	// StoreQuota is the store's quota in bytes. It bounds how many ended pods are kept. 0 stands for no quota.
	StoreQuota int64

	// Toleration is for how long pods stay on a lost node, unless they have tolerations of their own.
	Toleration time.Duration
	// Small lowers the number of workers for a machine with few cores. ExtraArgs have precedence.
	Small bool
	// ExtraArgs are further kube-controller-manager arguments, name=value. They have precedence over all other options.
	ExtraArgs []string
}

// Validate checks the options, above all ExtraArgs. It starts nothing.
func (o Options) Validate() error {
	_, err := o.upstream()
	return err
}

// Run builds the controllers and runs them until ctx is done. When it returns nil, no controller runs any more. The
// term waits for the goroutines that upstream does not wait for.
func Run(ctx context.Context, o Options) error {
	if o.Term == nil {
		return errors.New("controllers: no term given")
	}
	u, err := o.upstream()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, klog.LoggerWithName(klog.FromContext(ctx), "controllers")))
	custom := newCustomInformers(ctx, o.Term)
	defer custom.Wait()
	defer cancel()
	cc, err := newContext(ctx, o.Term, u, custom, o.Unused)
	if err != nil {
		return err
	}
	if !waitServed(ctx, o.Term) {
		return nil
	}
	controllers, buildErr := build(ctx, cc, o)
	if ctx.Err() != nil {
		buildErr = nil // leadership ended meanwhile, which is no fault of the configuration
	}
	if buildErr != nil {
		cancel()
	}
	defer countFor(o.Term)()
	// Controllers are run even if ctx is done: only Run ends the work queues that their constructors started.
	o.Term.StartInformers(ctx)
	close(cc.InformersStarted)
	klog.FromContext(ctx).Info("Running controllers", "count", len(controllers))
	if !app.RunControllers(ctx, cc, controllers, app.ControllerStartJitter, u.shutdownTimeout) {
		return fmt.Errorf("controllers still ran %s after their term of leadership ended; the log names them. "+
			"Their writes carry the old term and are rejected by the store", u.shutdownTimeout)
	}
	return buildErr
}

// waitServed returns true once the API server answers which resources it serves. It returns false when ctx is done
// before. Upstream's namespace controller ends the process when its constructor gets no answer
// (deletion/namespaced_resources_deleter.go, initOpCache).
func waitServed(ctx context.Context, t *term.Term) bool {
	server := discovery.ToServerResourcesInterfaceWithContext(t.Client.Discovery())
	err := wait.PollUntilContextCancel(ctx, 200*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		lists, err := server.ServerPreferredNamespacedResourcesWithContext(ctx)
		if len(lists) == 0 && ctx.Err() == nil {
			klog.FromContext(ctx).Info("The API server does not answer yet; the controllers wait for it", "error", err)
		}
		return len(lists) > 0, nil
	})
	return err == nil
}

// newContext makes the input of upstream's constructors.
func newContext(ctx context.Context, t *term.Term, u upstream, custom *customInformers,
	unused func(group string) bool) (app.ControllerContext, error) {
	mapper, answers, err := newDiscovery(ctx, t, unused)
	if err != nil {
		return app.ControllerContext{}, err
	}
	cc := app.ControllerContext{
		ClientBuilder:                   clients{base: u.limit(t.Config), discovery: answers},
		InformerFactory:                 t.Informers,
		ObjectOrMetadataInformerFactory: custom,
		ComponentConfig:                 u.config,
		RESTMapper:                      mapper,
		InformersStarted:                make(chan struct{}),
		ResyncPeriod:                    func() time.Duration { return u.config.Generic.MinResyncPeriod.Duration },
		ControllerManagerMetrics:        controllersmetrics.NewControllerManagerMetrics("kube-controller-manager"),
	}
	controllersmetrics.Register()
	cc.GraphBuilder = newGraphBuilder(ctx, cc, t)
	return cc, nil
}

// ownConstructors returns the constructors that replace upstream's.
func ownConstructors(ctx context.Context, cc app.ControllerContext, o Options) (map[string]func() (app.Controller, error), error) {
	own := map[string]func() (app.Controller, error){
		names.NamespaceController:     func() (app.Controller, error) { return newNamespaceController(ctx, cc, o.Unused) },
		names.NodeLifecycleController: func() (app.Controller, error) { return newNodeLifecycleController(ctx, cc) },
		names.TaintEvictionController: func() (app.Controller, error) { return newTaintEvictionController(ctx, cc, o.Toleration) },
	}
	if o.VolumePlugins == nil {
		return own, nil
	}
	plugins, err := o.VolumePlugins()
	if err != nil {
		return nil, fmt.Errorf("make the plugins for volumes: %w", err)
	}
	own[names.PersistentVolumeBinderController] = func() (app.Controller, error) { return newVolumeController(ctx, cc, plugins) }
	own[names.PersistentVolumeExpanderController] = func() (app.Controller, error) { return newExpandController(ctx, cc, plugins) }
	return own, nil
}

// build constructs each enabled controller, first the one that mints service account tokens. When one fails, it returns
// those already built beside the error, so that their goroutines can be ended. Upstream's BuildControllers would lose
// them.
func build(ctx context.Context, cc app.ControllerContext, o Options) (built []app.Controller, err error) {
	own, err := ownConstructors(ctx, cc, o)
	if err != nil {
		return nil, err
	}
	add := func(c app.Controller, err error) error {
		if c != nil {
			built = append(built, c)
		}
		return err
	}
	if err := add(newTokenController(ctx, cc, o.Term)); err != nil {
		return built, err
	}
	descriptors := app.NewControllerDescriptors()
	for _, name := range slices.Sorted(maps.Keys(descriptors)) {
		d := descriptors[name]
		switch {
		case d.RequiresSpecialHandling(): // the token controller, above
		case !cc.IsControllerEnabled(d):
			klog.FromContext(ctx).V(1).Info("Controller is off", "controller", name)
		case own[name] != nil:
			var err error
			kubecompat.RestoreAfter(func() { err = add(own[name]()) })
			if err != nil {
				return built, err
			}
		case lateWhen[name] != nil:
			built = append(built, newLazyController(d, cc))
		default:
			var err error
			kubecompat.RestoreAfter(func() { err = add(d.BuildController(ctx, cc)) })
			if err != nil {
				return built, fmt.Errorf("build %s: %w", name, err)
			}
		}
	}
	return built, nil
}
