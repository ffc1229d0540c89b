// SPDX-License-Identifier: Apache-2.0

// Command attacher is upstream's external-attacher with what the tests' driver needs of it: its packages have the
// driver attach the volumes to nodes, and write into VolumeAttachments what came of it. It is never part of a release.
// Upstream's own command wraps the same in election of leaders and metrics.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/connection"
	"github.com/kubernetes-csi/csi-lib-utils/metrics"
	"github.com/kubernetes-csi/csi-lib-utils/rpc"
	"github.com/kubernetes-csi/external-attacher/v4/pkg/attacher"
	"github.com/kubernetes-csi/external-attacher/v4/pkg/controller"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	csitranslation "k8s.io/csi-translation-lib"
	"k8s.io/klog/v2"
)

const (
	// patience is how long one call of the driver may take.
	patience = 15 * time.Second
	// The rest are defaults of upstream's command.
	workers            = 10
	resync             = 10 * time.Minute
	retryFrom, retryTo = time.Second, 5 * time.Minute
)

func main() {
	socket := flag.String("csi-address", "", "where the driver serves CSI")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *socket); err != nil {
		fmt.Fprintln(os.Stderr, "attacher:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, socket string) error {
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	driver, err := connection.Connect(ctx, socket, metrics.NewCSIMetricsManagerForSidecar(""))
	if err != nil {
		return fmt.Errorf("connecting to the driver: %w", err)
	}
	defer func() { _ = driver.Close() }() // the process ends
	if err := rpc.ProbeForever(ctx, driver, patience); err != nil {
		return fmt.Errorf("waiting for the driver: %w", err)
	}
	name, err := rpc.GetDriverName(ctx, driver)
	if err != nil {
		return fmt.Errorf("asking for the driver's name: %w", err)
	}

	shared := informers.NewSharedInformerFactory(client, resync)
	storage, volumes := shared.Storage().V1(), shared.Core().V1().PersistentVolumes()
	timeout := patience
	retries := func() workqueue.TypedRateLimiter[string] {
		return workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryFrom, retryTo)
	}
	// The driver does not list what is attached, so that nothing is compared with it.
	handler := controller.NewCSIHandler(client, name, attacher.NewAttacher(driver), attacher.NewVolumeLister(driver, 0), volumes.Lister(), storage.CSINodes().Lister(),
		storage.VolumeAttachments().Lister(), &timeout, false, false, csitranslation.New(), "")
	c := controller.NewCSIAttachController(klog.Background(), client, name, handler, storage.VolumeAttachments(), volumes, retries(), retries(), false, resync)
	shared.Start(ctx.Done())
	c.Run(ctx, workers, nil)
	return nil
}
