// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"time"

	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// lateRetry is the pause before a constructor that failed is called again.
const lateRetry = 10 * time.Second

// lateWhen lists the controllers that are built only when they have objects to work on, with functions that wait for
// these. The outer function is called before the informers start. wait returns false when the term ends first.
var lateWhen = map[string]func(app.ControllerContext) (wait func(context.Context) bool){
	// Upstream's leaves a work queue behind when its context ends before nodes are listed.
	names.NodeIpamController: func(cc app.ControllerContext) func(context.Context) bool {
		nodes := cc.InformerFactory.Core().V1().Nodes().Informer().HasSyncedChecker()
		return func(ctx context.Context) bool { return cache.WaitFor(ctx, "", nodes) }
	},
	// The controller holds a copy of all OpenAPI definitions, 4 MB, and most clusters have no such policy.
	names.ValidatingAdmissionPolicyStatusController: func(cc app.ControllerContext) func(context.Context) bool {
		return anyOf(cc.InformerFactory.Admissionregistration().V1().ValidatingAdmissionPolicies().Informer())
	},
}

// anyOf waits until an informer has a first object.
func anyOf(informer cache.SharedIndexInformer) func(context.Context) bool {
	seen := timers.NewSignal()
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) {
		seen.Send()
	}})
	return func(ctx context.Context) bool {
		if err != nil {
			return true // too early is better than never
		}
		defer func() { _ = informer.RemoveEventHandler(registration) }()
		select {
		case <-seen:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// lazyController builds a controller when it runs. It tries a failed constructor again. One object may be the cause (a
// node whose pod range lies outside the cluster's), for which upstream would end its process again and again.
type lazyController struct {
	descriptor *app.ControllerDescriptor
	cc         app.ControllerContext
	wait       func(context.Context) bool
}

func newLazyController(d *app.ControllerDescriptor, cc app.ControllerContext) *lazyController {
	return &lazyController{descriptor: d, cc: cc, wait: lateWhen[d.Name()](cc)}
}

func (l *lazyController) Name() string { return l.descriptor.Name() }

// Run builds the controller once its wait is over, and runs it until ctx is done.
func (l *lazyController) Run(ctx context.Context) {
	if !l.wait(ctx) {
		return
	}
	for ctx.Err() == nil { // wait may return true because the informers have stopped
		controller, err := l.descriptor.BuildController(ctx, l.cc)
		if err == nil {
			if controller != nil {
				l.cc.InformerFactory.StartWithContext(ctx)
				controller.Run(ctx)
			}
			return
		}
		if ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Controller cannot start; the others run, and this one is tried again",
				"controller", l.Name(), "in", lateRetry)
		}
		timers.Sleep(ctx, lateRetry)
	}
}
