// SPDX-License-Identifier: Apache-2.0

package main

import "runtime/debug"

// libraryModules are the modules whose versions users ask for.
var libraryModules = map[string]string{
	"github.com/containerd/containerd/v2": "containerd",
	"github.com/coredns/coredns":          "coredns",
	"github.com/hashicorp/raft":           "raft",
}

// libraryVersions returns the versions of libraryModules by name, from the build information in the binary.
func libraryVersions() map[string]string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	out := map[string]string{}
	for _, m := range info.Deps {
		if name := libraryModules[m.Path]; name != "" {
			out[name] = m.Version
		}
	}
	return out
}
