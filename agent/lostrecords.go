// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"

	"github.com/coracle-k8s/coracle/internal/status"
)

// reportLostRecords shows in the status which images need their registry once. There is no line before the first of
// them.
func (o Options) reportLostRecords(images []string) {
	part := o.statusPart("records of pulls")
	if len(images) == 0 {
		part.Set(status.Running, "")
		return
	}
	part.Set(status.Degraded, fmt.Sprintf("the record of image %s was lost in a power cut; it needs its registry once, although it is complete "+
		"on this node. Without the registry, put an archive of it into %s", strings.Join(images, ", of image "), o.paths().ImagesDir))
}
