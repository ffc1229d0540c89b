// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"maps"
	"strings"

	"github.com/coracle-k8s/coracle/internal/nfttable"
)

// frame is how many rules each chain has that is no Service's.
type frame map[nfttable.Table]map[string]int

// written is what the last full sync of a table has written that is no Service's, by its own words. Whoever counted it in the kernel might count what another program has left of it a moment later.
type written struct {
	table       nfttable.Table
	wanted      bool           // the sync that is under way may be a full one
	rules       map[string]int // how many each chain has; nil: none was seen
	nodePortIPs int            // how many elements that set has; 0: there is no such set
	commits     *uint32        // how many transactions of this proxy's the kernel has taken, of all families
	then        uint32         // how many these were after the last one that note was given
	generation  uint32         // and the kernel's number of transactions, of all programs
}

// note reads a transaction in nft's words, which the kernel has just taken. One that writes no such rules is no full sync.
func (w *written) note(text string) {
	w.generation, _ = nfttable.Generation() // 0 is no number that comes next
	w.then = *w.commits
	family := "ip"
	if w.table.Family == nfttable.IPv6 {
		family = "ip6"
	}
	rule := fmt.Sprintf("add rule %s %s ", family, w.table.Name)
	element := fmt.Sprintf("add element %s %s %s ", family, w.table.Name, nodePortIPs)
	rules, elements := map[string]int{}, 0
	for line := range strings.Lines(text) {
		if after, ok := strings.CutPrefix(line, rule); ok {
			if chain, _, _ := strings.Cut(after, " "); !services(chain) {
				rules[chain]++
			}
		} else if strings.HasPrefix(line, element) {
			elements++
		}
	}
	if len(rules) > 0 {
		w.rules, w.nodePortIPs = rules, elements
	}
}

// alone says whether no other program has changed anything in the kernel since then.
func (w *written) alone() bool {
	now, err := nfttable.Generation()
	return err == nil && now-w.generation == *w.commits-w.then
}

// services says whether a chain is a Service's, or an endpoint's, by its name.
func services(chain string) bool { return strings.Contains(chain, "/") }

// writtenFrame is nil where it is not known of each table what was written there.
func (b *nftables) writtenFrame() frame {
	out := frame{}
	for _, t := range tables(b.families) {
		w := b.written[t]
		if w == nil || w.rules == nil {
			return nil
		}
		out[t] = w.rules
	}
	return out
}

// learn takes what was counted after a full sync. Another program may have taken something out between the writing and the counting, so what differs from the frame
// has to be counted twice before it is the frame.
func (b *nftables) learn(counted frame) {
	if counted == nil {
		return // what was known stays: without it no look would find anything until the next sync
	}
	if b.frame == nil || maps.EqualFunc(counted, b.counted, maps.Equal) {
		b.frame = counted
	}
	b.counted = counted
}

// countFrame counts what a full sync has written. It is nil where that cannot be counted, as when another program changes something meanwhile.
func (b *nftables) countFrame() frame {
	out := frame{}
	for _, t := range tables(b.families) {
		rules, err := nfttable.CountRules(t)
		if err != nil {
			return nil
		}
		maps.DeleteFunc(rules, func(chain string, _ int) bool { return services(chain) })
		out[t] = rules
	}
	return out
}
