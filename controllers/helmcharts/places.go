// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"slices"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
)

// inTurn are the charts that this term looks after. Those that wait for a place among the children at work have their
// turn first, in the order in which they began to: a few charts whose hooks are stuck, and that are tried again and
// again, would otherwise keep all those behind them in the alphabet from ever having one.
func (c *Controller) inTurn(charts []*kinds.HelmChart) []*entry {
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

// full says whether there is no place for a child that does this step.
func (c *Controller) full(s Step) bool {
	return c.at >= AtOnce || s == Check && c.checks >= AtOnce-1
}
