// SPDX-License-Identifier: Apache-2.0

// coracle-helper is the small program beside coracle. containerd and the kubelet's network start programs for every
// pod, and starting coracle itself for that would cost fifty milliseconds and a hundred megabytes each time. By the
// name it is called it is
//
//   - containerd-shim-runc-v2: upstream's runc shim, one process for each pod, which outlives the agent (shim.go);
//   - coracle-cni: the CNI plugin, which passes its call on to the agent.
//
// It is linked statically and holds no logic of the cluster.
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
		// The shim starts itself again by the path of its executable, which has lost the name if that was a symbolic
		// link.
		runShim()
	default:
		fmt.Fprintln(os.Stderr,
			"coracle-helper: call it by one of its names: containerd-shim-runc-v2, coracle-cni. It is coracle that does.")
		os.Exit(2)
	}
}
