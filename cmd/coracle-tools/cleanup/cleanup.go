// SPDX-License-Identifier: Apache-2.0

// Package cleanup takes a node off its host: it ends the pods that coracle left running and removes the mounts, network
// devices, packet filter tables, cgroups and files that were made for them.
//
// It finds what is coracle's by what coracle recorded: shims by the program they run, containers by the ids in the run
// directory and the cgroups named after them, mounts by the folders they are in. It never goes by a process' name, and
// it never deletes a folder that something is still mounted in. It does not stop coracle itself: that is the service
// manager's to do, and it refuses to work while coracle runs.
package cleanup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/vip"
)

// Options say what to clean.
type Options struct {
	Paths config.Paths
	// Kubeconfig is the administrator's, removed with the data.
	Kubeconfig string
	// Grace is how long containers may take to end after SIGTERM.
	Grace time.Duration
	// RemoveData removes the data directory, logs and the kubeconfig too.
	RemoveData bool
	// Progress is called with each step.
	Progress io.Writer
}

// Kept is a folder that was left because what is in it is not coracle's to remove.
type Kept struct {
	Path string
	Why  string // completes "PATH was kept: "
}

// Run does all steps, each as far as it can. It returns what it left on purpose, and as an error what could not be
// done. What was removed already is fine: it may be run again.
func Run(ctx context.Context, o Options) ([]Kept, error) {
	if err := refuseWhileRunning(o.Paths.PIDFile); err != nil {
		return nil, err
	}
	sockets := shimSocketDirs(o.Paths.ContainerdState) // these two before the files that say so are gone
	uids := podUIDs(o.Paths.ContainerdState)
	var keep remover
	var errs []error
	for _, s := range []struct {
		what string
		do   func() error
	}{
		{"pods", func() error { return endPods(ctx, o) }},
		{"mounts", func() error {
			return unmountBelow(append(kubeletRoots(o.Paths), o.Paths.RunDir, o.Paths.ContainerdRoot)...)
		}},
		{"network", func() error { return cleanNetwork(o.Paths.RunDir) }},
		{"cgroups", func() error {
			return errors.Join(removeCgroups("kubepods"), removeCgroups("coracle-ingress")) // the latter's name: agent/ingress
		}},
		{"run directory", func() error { return keep.removeAll(append(sockets, o.Paths.RunDir)...) }},
	} {
		fmt.Fprintf(o.Progress, "removing %s\n", s.what)
		if err := s.do(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.what, err))
		}
	}
	if !o.RemoveData {
		return keep.kept, errors.Join(errs...)
	}
	if len(errs) > 0 {
		return keep.kept, errors.Join(append(errs, fmt.Errorf("the data in %s was kept because of this: see to it and run the same again",
			o.Paths.DataDir))...)
	}
	fmt.Fprintf(o.Progress, "removing data\n")
	err := removeData(o, &keep, uids)
	return keep.kept, err
}

func removeData(o Options, keep *remover, uids []string) error {
	var errs []error
	for _, root := range kubeletRoots(o.Paths) {
		errs = append(errs, removePodLogs(filepath.Join(root, "pods")))
	}
	return errors.Join(append(errs, removeKubeletDir(o.Paths, keep, uids), removeCNICache(keep),
		keep.removeAll(o.Kubeconfig, o.Paths.DataDir))...)
}

// cleanNetwork removes what the pod network and NetworkPolicies made, and what the Service proxy recorded that it made.
func cleanNetwork(runDir string) error {
	_, err := nft.RemoveServiceRules(nft.ServiceRecordIn(runDir))
	policies := nft.Delete(nft.Table{Family: nft.INet, Name: nft.PolicyTable})
	ingress := nft.Delete(nft.Table{Family: nft.INet, Name: nft.IngressTable})
	return errors.Join(cni.Cleanup(cni.CleanupOptions{}), err, policies, ingress, vip.SetRedirects(nil))
}
