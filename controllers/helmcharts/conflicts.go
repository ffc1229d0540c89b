// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"fmt"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
	"github.com/coracle-k8s/coracle/internal/truncate"
)

type releaseKey struct {
	namespace, name string
	configMap       bool
}

func keyOf(c *kinds.HelmChart) releaseKey {
	return releaseKey{Target(c), c.Name, c.Spec.Driver == "configmap"}
}

// findConflicts returns the charts whose release belongs to another chart, with that chart's name. Charts of several
// namespaces can have the same target: the oldest of them owns the release. Otherwise each would undo the other's
// changes, for ever, and removing one would remove the other's release.
func findConflicts(charts []*kinds.HelmChart) map[types.NamespacedName]types.NamespacedName {
	has := map[releaseKey]*kinds.HelmChart{}
	for _, c := range charts {
		if !Managed(c) {
			continue
		}
		// of two with the same second, the first in the list
		if first := has[keyOf(c)]; first == nil || c.CreationTimestamp.Time.Before(first.CreationTimestamp.Time) {
			has[keyOf(c)] = c
		}
	}
	out := map[types.NamespacedName]types.NamespacedName{}
	for _, c := range charts {
		if first := has[keyOf(c)]; Managed(c) && first != c {
			out[nameOf(c)] = nameOf(first)
		}
	}
	return out
}

// maxReleaseName is Helm's limit of the length of a release's name.
const maxReleaseName = 53

// checkTarget returns the problem of a chart that cannot have a release at all. No request for it is sent to the API
// then.
func checkTarget(c *kinds.HelmChart) *Problem {
	if len(c.Name) > maxReleaseName {
		return &Problem{string(helmjob.BadRequest), fmt.Sprintf("A release has the HelmChart's name, and Helm takes names of at most %d "+
			"characters; this one has %d. Give the HelmChart another name.", maxReleaseName, len(c.Name))}
	}
	if bad := validation.IsDNS1123Label(Target(c)); len(bad) > 0 {
		return &Problem{string(helmjob.BadRequest), fmt.Sprintf("The field targetNamespace is %q, which is no name of a namespace.",
			truncate.Text(Target(c), maxMessage))}
	}
	return nil
}
