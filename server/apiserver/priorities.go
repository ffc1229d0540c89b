// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
)

// groupOrder gives priorities to groups that upstream's DefaultGenericAPIServicePriorities does not contain, since only
// a full cluster serves them. Clients see the order in discovery, and resolve ambiguous short names by it.
var groupOrder = map[string]int32{
	"apps":              17800,
	"autoscaling":       17500,
	"batch":             17400,
	"networking.k8s.io": 17200,
	"policy":            17100,
	"storage.k8s.io":    16800,
	"scheduling.k8s.io": 16600,
	"node.k8s.io":       16300,
	"resource.k8s.io":   16200,
	"lifecycle.k8s.io":  15700,
}

// unknownGroupOrder is the priority of a group that a later upstream adds: the last. A group without a priority would
// get no APIService, and so would not be served.
const unknownGroupOrder = 15600

// groupPriorities returns a priority for every group version among the served paths. Within a group newer and more
// stable versions come first.
func groupPriorities(paths []string) map[schema.GroupVersion]controlplaneapiserver.APIServicePriority {
	priorities := controlplaneapiserver.DefaultGenericAPIServicePriorities()
	for _, path := range paths {
		parts := strings.Split(path, "/")
		if len(parts) != 4 || parts[1] != "apis" {
			continue
		}
		gv := schema.GroupVersion{Group: parts[2], Version: parts[3]}
		if _, known := priorities[gv]; known {
			continue
		}
		group, known := groupOrder[gv.Group]
		if !known {
			group = unknownGroupOrder
		}
		priorities[gv] = controlplaneapiserver.APIServicePriority{Group: group, Version: 1}
	}
	for gv, p := range priorities {
		if _, ours := groupOrder[gv.Group]; !ours {
			continue
		}
		p.Version = 1
		for other := range priorities {
			if other.Group == gv.Group && version.CompareKubeAwareVersionStrings(gv.Version, other.Version) > 0 {
				p.Version += 5
			}
		}
		priorities[gv] = p
	}
	return priorities
}
