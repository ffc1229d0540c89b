// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"sync"
	"time"

	csitranslation "k8s.io/csi-translation-lib"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	"k8s.io/kubernetes/pkg/controller/volume/attachdetach"
	"k8s.io/kubernetes/pkg/controller/volume/expand"
	"k8s.io/kubernetes/pkg/controller/volume/persistentvolume"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/csimigration"
)

// attachPeriod is the interval at which the controller that attaches volumes compares attached with desired volumes.
// Upstream does so ten times a second, a seventh of all wake-ups of an idle server (docs/adr/0040). A volume whose
// driver attaches it is attached at most that much later.
const attachPeriod = 500 * time.Millisecond

// setAttachPeriod has to be called before a term begins, when upstream's controller copies the configuration. It writes
// once, since terms may overlap.
var setAttachPeriod = sync.OnceFunc(func() { attachdetach.DefaultTimerConfig.ReconcilerLoopPeriod = attachPeriod })

// upstreamLoop is an upstream controller that a constructor of this package makes.
type upstreamLoop struct {
	name string
	run  func(context.Context)
}

func (l upstreamLoop) Name() string { return l.name }

func (l upstreamLoop) Run(ctx context.Context) { l.run(ctx) }

// newVolumeController replaces upstream's constructor (cmd/kube-controller-manager/app/core.go) of the controller that
// binds claims to volumes, makes volumes and removes them.
func newVolumeController(ctx context.Context, cc app.ControllerContext, more []volume.VolumePlugin) (app.Controller, error) {
	o := cc.ComponentConfig.PersistentVolumeBinderController
	plugins, err := app.ProbeProvisionableRecyclableVolumePlugins(klog.FromContext(ctx), o.VolumeConfiguration)
	if err != nil {
		return nil, fmt.Errorf("make upstream's plugins for volumes: %w", err)
	}
	client, err := cc.ClientBuilder.Client("persistent-volume-binder")
	if err != nil {
		return nil, err
	}
	core := cc.InformerFactory.Core().V1()
	c, err := persistentvolume.NewController(ctx, persistentvolume.ControllerParameters{
		KubeClient: client, SyncPeriod: o.PVClaimBinderSyncPeriod.Duration, VolumePlugins: append(plugins, more...),
		VolumeInformer: core.PersistentVolumes(), ClaimInformer: core.PersistentVolumeClaims(),
		ClassInformer: cc.InformerFactory.Storage().V1().StorageClasses(),
		PodInformer:   core.Pods(), NodeInformer: core.Nodes(), EnableDynamicProvisioning: o.VolumeConfiguration.EnableDynamicProvisioning,
	})
	if err != nil {
		return nil, fmt.Errorf("make the controller of volumes: %w", err)
	}
	return upstreamLoop{names.PersistentVolumeBinderController, c.Run}, nil
}

// newExpandController does the same for the controller that expands volumes.
func newExpandController(ctx context.Context, cc app.ControllerContext, more []volume.VolumePlugin) (app.Controller, error) {
	plugins, err := app.ProbeExpandableVolumePlugins(klog.FromContext(ctx),
		cc.ComponentConfig.PersistentVolumeBinderController.VolumeConfiguration)
	if err != nil {
		return nil, fmt.Errorf("make upstream's plugins for volumes: %w", err)
	}
	client, err := cc.ClientBuilder.Client("expand-controller")
	if err != nil {
		return nil, err
	}
	translator := csitranslation.New()
	c, err := expand.NewExpandController(ctx, client, cc.InformerFactory.Core().V1().PersistentVolumeClaims(), append(plugins, more...),
		translator,
		csimigration.NewPluginManager(translator))
	if err != nil {
		return nil, fmt.Errorf("make the controller that lets volumes grow: %w", err)
	}
	return upstreamLoop{names.PersistentVolumeExpanderController, c.Run}, nil
}
