// SPDX-License-Identifier: Apache-2.0

// Command provisioner is upstream's external-provisioner with what the tests' driver needs of it: its packages make and
// remove the volumes. It is never part of a release. Upstream's own command wraps the same in election of leaders,
// capacities and metrics; its version 6.3 does not compile with the API of Kubernetes 1.37.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/metrics"
	csicontroller "github.com/kubernetes-csi/external-provisioner/v6/pkg/controller"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	csitranslation "k8s.io/csi-translation-lib"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// patience is how long one call of the driver may take.
const patience = 30 * time.Second

func main() {
	socket := flag.String("csi-address", "", "where the driver serves CSI")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *socket); err != nil {
		fmt.Fprintln(os.Stderr, "provisioner:", err)
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
	driver, err := csicontroller.Connect(ctx, socket, metrics.NewCSIMetricsManagerForSidecar(""))
	if err != nil {
		return fmt.Errorf("connecting to the driver: %w", err)
	}
	defer func() { _ = driver.Close() }() // the process ends
	if err := csicontroller.Probe(ctx, driver, patience); err != nil {
		return fmt.Errorf("waiting for the driver: %w", err)
	}
	name, err := csicontroller.GetDriverName(driver, patience)
	if err != nil {
		return fmt.Errorf("asking for the driver's name: %w", err)
	}
	plugin, capabilities, err := csicontroller.GetDriverCapabilities(driver, patience)
	if err != nil {
		return fmt.Errorf("asking what the driver can do: %w", err)
	}

	shared := informers.NewSharedInformerFactory(client, csicontroller.ResyncPeriodOfCsiNodeInformer)
	storage, core := shared.Storage().V1(), shared.Core().V1()
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	// No snapshots, no migration from volumes of the kubelet's own, no VolumeAttachments, no claims of other
	// namespaces, one provisioner for all nodes.
	p := csicontroller.NewCSIProvisioner(client, patience, host+"-"+name, "pvc", -1, driver, nil, name, plugin, capabilities, "", false, true, csitranslation.New(),
		storage.StorageClasses().Lister(), storage.CSINodes().Lister(), core.Nodes().Lister(), core.PersistentVolumeClaims().Lister(), nil, nil, false, "", nil, true, true,
		csicontroller.NewInMemoryStore())
	c := controller.NewProvisionController(ctx, client, name, p, controller.LeaderElection(false), controller.AddFinalizer(true),
		controller.ClaimsInformer(core.PersistentVolumeClaims().Informer()))
	shared.Start(ctx.Done())
	shared.WaitForCacheSync(ctx.Done())
	c.Run(ctx)
	return nil
}
