// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"slices"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
)

// slotOrder returns the charts that this term manages. Charts that wait for a child's slot come first, in the order in
// which they began to wait. Otherwise a few charts with stuck hooks, which are tried again and again, would keep all
// charts after them in the alphabet from ever getting a slot.
func (c *Controller) slotOrder(charts []*kinds.HelmChart) []*entry {
	var waiting, others []*entry
	for _, chart := range charts {
		switch e := c.entries[nameOf(chart)]; {
		case e == nil:
		case e.waits.IsZero():
			others = append(others, e)
		default:
			waiting = append(waiting, e)
		}
	}
	slices.SortStableFunc(waiting, func(a, b *entry) int { return a.waits.Compare(b.waits) })
	return append(waiting, others...)
}

// noSlot reports whether there is no free slot for a child that does this step.
func (c *Controller) noSlot(s Step) bool {
	return c.running >= AtOnce || s == Check && c.checks >= AtOnce-1
}
