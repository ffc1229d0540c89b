// SPDX-License-Identifier: Apache-2.0

// This file defines the record of which node announces which address of the load balancer's pools. The leader writes it
// (controllers/servicelb), and every node reads it (agent/lbspeaker).

package loadbalancer

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// ConfigMap is the name of the ConfigMap with the record, in the namespace kube-system.
	ConfigMap = "load-balancer.coracle"
	// dataKey is the key in that ConfigMap.
	dataKey = "holders"
	// NetworksAnnotation is an annotation of a Node. It lists the networks of the machine's Ethernet interfaces,
	// separated by commas. The node can announce addresses in these networks.
	NetworksAnnotation = "coracle.dev/networks"
	// WidestNetwork is the shortest prefix length in NetworksAnnotation. The API server accepts no wider network from a
	// node.
	WidestNetwork = 8
	// ConflictsAnnotation is an annotation of a Node. It lists addresses that the node has to announce and that another
	// machine uses: ADDRESS=ETHERNET-ADDRESS, separated by commas.
	ConflictsAnnotation = "coracle.dev/addresses-in-use"
	// ProvenAnnotation is an annotation of a Node. It lists addresses for which no other machine answered when this
	// node probed them, and that the record still has as New: ADDRESS=TERM, separated by commas.
	ProvenAnnotation = "coracle.dev/addresses-proven"
	// Lease is for how long a node may announce an address after it began to check whether it is still the holder.
	Lease = 700 * time.Millisecond
	// Wait is how long a new holder waits before it announces. Its predecessor may announce for Lease from a moment
	// before the new holder was recorded. A tenth is added for clocks of different speed.
	Wait = Lease + Lease/10
)

// Holder is the node that announces an address.
type Holder struct {
	Node string `json:"node"`
	// Term increases with each change of the node. So a node that becomes the holder again can see that another node
	// was the holder meanwhile.
	Term uint64 `json:"term"`
	// New says that no node has proven yet that no other machine has the address. The holder then probes the network
	// before it announces, and reports the proof on its Node (ProvenAnnotation). New stays set when the address moves
	// before the proof. It is cleared while the node holds the address, without a change of Term.
	New bool `json:"new,omitempty"`
}

// Same says whether both are the same term of the same node, proven or not.
func (h Holder) Same(other Holder) bool { return h.Node == other.Node && h.Term == other.Term }

// Holders maps all addresses to their holders.
type Holders map[netip.Addr]Holder

// Read decodes the data of the ConfigMap. Without a record, it returns an empty one.
func Read(from map[string]string) (Holders, error) {
	out := Holders{}
	text, ok := from[dataKey]
	if !ok {
		return out, nil
	}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, fmt.Errorf("reading who answers for the load balancer's addresses: %w", err)
	}
	return out, nil
}

// Write encodes the record as the data of the ConfigMap.
func (r Holders) Write() (map[string]string, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("writing who answers for the load balancer's addresses: %w", err)
	}
	return map[string]string{dataKey: string(text)}, nil
}

// Conflicts maps addresses that another machine uses to that machine's Ethernet address.
type Conflicts map[netip.Addr]net.HardwareAddr

// maxReported is how many addresses an annotation of a Node may list. A machine on the network can invent a conflict
// for each address. Proven addresses are removed from the annotation when the record has them, which makes room for
// more.
const maxReported = 64

// ReadConflicts parses the annotation. It ignores words that it cannot parse, because a node writes the annotation.
func ReadConflicts(text string) Conflicts { return readPairs(text, net.ParseMAC) }

// String returns the value of the annotation.
func (c Conflicts) String() string { return formatPairs(c, net.HardwareAddr.String) }

// Proven maps addresses that a node has proven to the term in which it holds them.
type Proven map[netip.Addr]uint64

// ReadProven parses the annotation. It ignores words that it cannot parse, because a node writes the annotation.
func ReadProven(text string) Proven {
	return readPairs(text, func(number string) (uint64, error) { return strconv.ParseUint(number, 10, 64) })
}

// String returns the value of the annotation.
func (p Proven) String() string {
	return formatPairs(p, func(term uint64) string { return strconv.FormatUint(term, 10) })
}

func readPairs[V any](text string, parse func(string) (V, error)) map[netip.Addr]V {
	out := map[netip.Addr]V{}
	for word := range strings.SplitSeq(text, ",") {
		address, value, _ := strings.Cut(word, "=")
		a, err := netip.ParseAddr(address)
		v, valueErr := parse(value)
		if err == nil && valueErr == nil && len(out) < maxReported {
			out[a] = v
		}
	}
	return out
}

func formatPairs[V any](of map[netip.Addr]V, text func(V) string) string {
	var words []string
	for _, a := range slices.SortedFunc(maps.Keys(of), netip.Addr.Compare) {
		if len(words) < maxReported {
			words = append(words, a.String()+"="+text(of[a]))
		}
	}
	return strings.Join(words, ",")
}
