// SPDX-License-Identifier: Apache-2.0

// Package cleanup removes a node from its host. It ends the pods that coracle left running. It removes the mounts,
// network devices, packet filter tables, cgroups and files that were made for them.
//
// It recognizes what is coracle's by coracle's own records: shims by the program that they run, containers by the ids
// in the run directory and the cgroups named after them (internal/podkill), mounts by the folders in which they are. It
// never goes by a process' name, and never deletes a folder in which something is still mounted. It refuses to work
// while coracle runs, and does not stop coracle: the service manager does that.
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
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/podkill"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/vip"
)

// Options say what to clean.
type Options struct {
	Paths config.Paths
	// Kubeconfig is the path of the administrator's kubeconfig, which is removed with the data.
	Kubeconfig string
	// Grace is how long containers may run after SIGTERM before they are killed.
	Grace time.Duration
	// RemoveData says whether the data directory, logs and the kubeconfig are removed too.
	RemoveData bool
	// Progress gets a line for each step.
	Progress io.Writer
}

// Kept is a path that was kept because its content is not coracle's to remove.
type Kept struct {
	Path string
	Why  string // completes "PATH was kept: "
}

// Run does all steps, each as far as possible. It returns the paths that it kept on purpose, and an error that joins
// the failures. It may be run again: what was removed already is no failure.
func Run(ctx context.Context, o Options) ([]Kept, error) {
	if err := refuseWhileRunning(o.Paths.PIDFile); err != nil {
		return nil, err
	}
	sockets := shimSocketDirs(o.Paths.ContainerdState) // sockets and uids are read here, because a step removes the files that hold them
	uids := podUIDs(o.Paths.ContainerdState)
	var keep remover
	var errs []error
	for _, s := range []struct {
		what string
		do   func() error
	}{
		{"pods", func() error {
			n := podkill.Node{Root: o.Paths.ContainerdRoot, State: o.Paths.ContainerdState, BinDir: o.Paths.BinDir}
			return podkill.End(ctx, n, o.Grace, func(text string) { fmt.Fprintln(o.Progress, text) })
		}},
		{"mounts", func() error {
			return podkill.UnmountBelow(append(kubeletRoots(o.Paths), o.Paths.RunDir, o.Paths.ContainerdRoot)...)
		}},
		{"network", func() error { return cleanNetwork(o.Paths.RunDir) }},
		{"cgroups", func() error {
			return errors.Join(removeCgroups("kubepods"), removeCgroups("coracle-ingress")) // agent/ingress uses the latter name
		}},
		{"run directory", func() error { return keep.removeAll(append(sockets, o.Paths.RunDir)...) }},
	} {
		fmt.Fprintf(o.Progress, "removing %s\n", s.what)
		if err := s.do(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.what, err))
		}
	}
	if !o.RemoveData {
		return keep.keptPaths, errors.Join(errs...)
	}
	if len(errs) > 0 {
		return keep.keptPaths, errors.Join(append(errs, fmt.Errorf("the data in %s was kept because of this: see to it and run the same again",
			o.Paths.DataDir))...)
	}
	fmt.Fprintf(o.Progress, "removing data\n")
	err := removeData(o, &keep, uids)
	return keep.keptPaths, err
}

// removeData removes all data. The versions of the program stay: they are installed, and the command can be run again.
func removeData(o Options, keep *remover, uids []string) error {
	errs := convert.Slice(kubeletRoots(o.Paths), func(root string) error { return removePodLogs(filepath.Join(root, "pods")) })
	return errors.Join(append(errs, removeKubeletDir(o.Paths, keep, uids), removeCNICache(keep),
		keep.removeAll(o.Kubeconfig), keep.removeBut(o.Paths.DataDir, slots.Folder))...)
}

// cleanNetwork removes what the pod network, NetworkPolicies, the ingress and virtual addresses made, and what the
// Service proxy recorded as made by it.
func cleanNetwork(runDir string) error {
	_, err := nft.RemoveServiceRules(nft.ServiceRecordIn(runDir))
	policies := nft.Delete(nft.Table{Family: nft.INet, Name: nft.PolicyTable})
	ingress := nft.Delete(nft.Table{Family: nft.INet, Name: nft.IngressTable})
	return errors.Join(cni.Cleanup(cni.CleanupOptions{}), err, policies, ingress, vip.SetRedirects(nil))
}
