// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
)

// maxNamed limits how many kubelets a message names.
const maxNamed = 3

// showStatus writes the collector's state to the status.
func (c *Collector) showStatus() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.showLocked()
}

func (c *Collector) showLocked() {
	kept := ""
	if h := c.history; h != nil {
		kept = fmt.Sprintf("; the history of a day began at %s and takes %d KiB",
			time.Now().Add(-time.Since(h.begun)).UTC().Format(time.RFC3339), h.size()>>10)
	}
	switch f := c.current; {
	case c.otherProvider != "":
		c.o.Part.Set(status.Running, "the Service "+c.otherProvider+" answers, as the APIService "+GroupVersion.Version+"."+
			GroupVersion.Group+" says; coracle serves metrics once that APIService is deleted"+kept)
	case f == nil:
		c.o.Part.Set(status.Running, "idle until a client requests metrics"+kept)
	case len(f.unresponsive) > 0:
		unresponsive := map[string]error{}
		for _, name := range f.unresponsive {
			unresponsive[name] = f.failed[name]
		}
		c.o.Part.Set(status.Degraded, fmt.Sprintf("%d of %d kubelets do not answer, so kubectl top and autoscalers have no metrics of "+
			"their pods: %s",
			len(unresponsive), f.nodeCount, describeErrors(unresponsive))+kept)
	default:
		c.o.Part.Set(status.Running, "clients ask, so kubelets are asked every "+roundInterval.String()+kept)
	}
}

func describeErrors(failed map[string]error) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		if len(parts) == maxNamed {
			parts = append(parts, fmt.Sprintf("and %d more", len(failed)-maxNamed))
			break
		}
		parts = append(parts, fmt.Sprintf("the kubelet of node %s does not answer: %v", name, failed[name]))
	}
	return strings.Join(parts, "; ")
}
