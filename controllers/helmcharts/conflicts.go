// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"fmt"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
)

// releaseKey is what makes a release one and the same.
type releaseKey struct {
	namespace, name string
	configMap       bool
}

func keyOf(c *kinds.HelmChart) releaseKey {
	return releaseKey{Target(c), c.Name, c.Spec.Driver == "configmap"}
}

// conflicts are the charts whose release is another chart's, by that one's name. Charts of several namespaces can have
// the same target: the oldest of them has the release. Without that each would undo what the other has done, for ever,
// and one that is removed would take the other's release with it.
func conflicts(charts []*kinds.HelmChart) map[types.NamespacedName]types.NamespacedName {
	has := map[releaseKey]*kinds.HelmChart{}
	for _, c := range charts {
		if !Managed(c) {
			continue
		}
		// of two of the same second the one that is read first
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

// maxReleaseName is Helm's.
const maxReleaseName = 53

// checkTarget says what keeps a chart from having a release at all: then there is none, and nothing to ask the API for.
func checkTarget(c *kinds.HelmChart) *Problem {
	if len(c.Name) > maxReleaseName {
		return &Problem{string(helmjob.BadRequest), fmt.Sprintf("A release has the HelmChart's name, and Helm takes names of at most %d "+
			"characters; this one has %d. Give the HelmChart another name.", maxReleaseName, len(c.Name))}
	}
	if bad := validation.IsDNS1123Label(Target(c)); len(bad) > 0 {
		return &Problem{string(helmjob.BadRequest), fmt.Sprintf("The field targetNamespace is %q, which is no name of a namespace.",
			clip(Target(c)))}
	}
	return nil
}
