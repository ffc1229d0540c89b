// SPDX-License-Identifier: Apache-2.0

//go:debug containermaxprocs=0

// coracle-helper is a small program for what containerd and the kubelet's network start for every pod. Starting coracle
// itself for that would cost fifty milliseconds and a hundred megabytes each time. The name by which it is called
// selects what it is:
//
//   - containerd-shim-runc-v2: upstream's runc shim, one process for each pod, which outlives the agent (shim.go);
//   - coracle-cni: the CNI plugin, which passes its call to the agent.
//
// It is linked statically and holds no logic of the cluster. Its directive keeps Go from reading the list of all mounts
// at each start, for a limit of a control group that containers' helpers do not have.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/coracle-k8s/coracle/cni/plugin"
)

func main() {
	switch name := filepath.Base(os.Args[0]); {
	case name == "coracle-cni":
		os.Exit(plugin.Run(context.Background(), plugin.Options{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout}))
	case name == "containerd-shim-runc-v2" || slices.Contains(os.Args, "-namespace"):
		// The shim starts itself again by the path of its executable. That path has another name if the shim was
		// started by a symbolic link.
		runShim()
	default:
		fmt.Fprintln(os.Stderr,
			"coracle-helper: call it by one of its names: containerd-shim-runc-v2, coracle-cni. It is coracle that does.")
		os.Exit(2)
	}
}
