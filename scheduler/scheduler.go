// SPDX-License-Identifier: Apache-2.0

// Package scheduler runs upstream's scheduler as a library for one term of Raft leadership. It has no leader-election
// lease and no port, and does not exit when leadership ends.
//
// It owns the assembly (configuration, informers, event recording). Of the scheduling itself it owns one preference:
// after a node refused a pod's volume, another node is preferred. It shares the term's informers with the controllers.
package scheduler

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	upstream "k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/coracle-k8s/coracle/controllers/term"
)

// identity is the user that upstream's RBAC roles for the scheduler are bound to.
const identity = "system:kube-scheduler"

// Options configure the scheduler.
type Options struct {
	// Term is the term of leadership in which it runs. Validate does not need it.
	Term *term.Term
	// ExtraArgs are kube-scheduler arguments, name=value. The argument config names a KubeSchedulerConfiguration, for
	// profiles, plugins and extenders. Its leader election and client connection are not used.
	ExtraArgs []string
	// Refusals, when set, makes a pod whose claim a node refused prefer another node.
	Refusals Refusals
}

// Validate checks the arguments and the configuration file that they name. It starts nothing.
func (o Options) Validate() error {
	_, err := o.settings()
	return err
}

// Run schedules pods until ctx is done. It then aborts binding cycles under way. The term waits for their goroutines.
func Run(ctx context.Context, o Options) error {
	if o.Term == nil {
		return errors.New("scheduler: no term given")
	}
	s, err := o.settings()
	if err != nil {
		return err
	}
	ctx = klog.NewContext(ctx, klog.LoggerWithName(klog.FromContext(ctx), "scheduler"))

	cfg := rest.AddUserAgent(rest.CopyConfig(o.Term.Config), "scheduler")
	cfg.Impersonate = rest.ImpersonationConfig{UserName: identity}
	cfg.QPS, cfg.Burst = s.qps, s.burst
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("scheduler: make a client: %w", err)
	}
	dynamicClient, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("scheduler: make a dynamic client: %w", err)
	}
	factory := newInformers(o.Term.Informers)
	// For resources of other types that a profile's plugins may wait for.
	dynamicFactory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(dynamicClient, 0, corev1.NamespaceAll, nil)
	broadcaster := events.NewEventBroadcasterAdapterWithContext(ctx, client)
	broadcaster.StartRecordingToSink(ctx.Done())
	defer broadcaster.Shutdown()

	recorders := profile.RecorderFactory(func(name string) events.EventRecorderLogger { return broadcaster.NewRecorder(name) })
	options := append(s.options(), upstream.WithKubeConfig(cfg))
	if o.Refusals != nil {
		options = append(options, upstream.WithFrameworkOutOfTreeRegistry(addRefusedVolumes(s.config.Profiles, o.Refusals)))
	}
	sched, err := upstream.New(ctx, client, factory, dynamicFactory, recorders, options...)
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}

	if o.Term.StartInformers(ctx) {
		dynamicFactory.Start(ctx.Done())
		defer dynamicFactory.Shutdown()
		dynamicFactory.WaitForCacheSync(ctx.Done())
		if factory.waitSynced(ctx) && sched.WaitForHandlersSync(ctx) == nil {
			klog.FromContext(ctx).Info("Scheduling pods")
		}
	}
	sched.Run(ctx) // even if ctx is done: it ends what the constructor started
	return nil
}
