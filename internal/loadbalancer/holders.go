// SPDX-License-Identifier: Apache-2.0

// This file has the record of which node answers for which address of the load balancer's pools. The server that leads
// writes it (controllers/servicelb), every node reads it (agent/lbspeaker).

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
	// ConfigMap holds the record, in the namespace kube-system.
	ConfigMap = "load-balancer.coracle"
	// data is its key.
	data = "holders"
	// NetworksAnnotation on a Node lists the networks of the machine's Ethernet interfaces, with commas in between: it
	// can announce addresses in those.
	NetworksAnnotation = "coracle.dev/networks"
	// WidestNetwork is the shortest prefix in NetworksAnnotation: the API server takes no node's word for a wider
	// network.
	WidestNetwork = 8
	// ConflictsAnnotation on a Node lists addresses for which it is to answer and that another machine uses:
	// ADDRESS=ETHERNET-ADDRESS, with commas in between.
	ConflictsAnnotation = "coracle.dev/addresses-in-use"
	// ProvenAnnotation on a Node lists addresses of which the record does not say yet that they were proven, and that
	// it has proven since it holds them: ADDRESS=TERM, with commas in between.
	ProvenAnnotation = "coracle.dev/addresses-proven"
	// Lease is for how long a node may answer after it began to ask whether it still is the holder.
	Lease = 700 * time.Millisecond
	// Wait is how long a new holder is silent: its predecessor may answer for Lease from a moment before this one was
	// written down. A tenth more is for clocks of different speed.
	Wait = Lease + Lease/10
)

// Holder is who answers for an address.
type Holder struct {
	Node string `json:"node"`
	// Term is another one for each change of the node, so that one who was the holder before last knows that there was
	// another in between.
	Term uint64 `json:"term"`
	// New says that no node has proven yet that no other machine has the address: this one asks the network before it
	// answers, and says so on its Node (ProvenAnnotation). It stays when the address moves before that. It is taken
	// back while the node holds the address, with the same Term.
	New bool `json:"new,omitempty"`
}

// Same says whether both are one node's holding of an address, proven or not.
func (h Holder) Same(other Holder) bool { return h.Node == other.Node && h.Term == other.Term }

// Holders is all addresses with their holders.
type Holders map[netip.Addr]Holder

// Read reads the data of the ConfigMap. That of none is an empty record.
func Read(from map[string]string) (Holders, error) {
	out := Holders{}
	text, ok := from[data]
	if !ok {
		return out, nil
	}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, fmt.Errorf("reading who answers for the load balancer's addresses: %w", err)
	}
	return out, nil
}

// Write is the data for the ConfigMap.
func (r Holders) Write() (map[string]string, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("writing who answers for the load balancer's addresses: %w", err)
	}
	return map[string]string{data: string(text)}, nil
}

// Conflicts are addresses that another machine uses, with its Ethernet address.
type Conflicts map[netip.Addr]net.HardwareAddr

// maxReported bounds what a Node says of addresses: a machine on the network can invent as many conflicts as there are
// addresses. What was proven makes room for more as soon as the record has it.
const maxReported = 64

// ReadConflicts reads the annotation, and passes over what it does not understand: a node writes it.
func ReadConflicts(text string) Conflicts {
	out := Conflicts{}
	for word := range strings.SplitSeq(text, ",") {
		address, by, _ := strings.Cut(word, "=")
		a, err := netip.ParseAddr(address)
		hw, hwErr := net.ParseMAC(by)
		if err == nil && hwErr == nil && len(out) < maxReported {
			out[a] = hw
		}
	}
	return out
}

// String is the annotation.
func (c Conflicts) String() string {
	var words []string
	for _, a := range slices.SortedFunc(maps.Keys(c), netip.Addr.Compare) {
		if len(words) < maxReported {
			words = append(words, a.String()+"="+c[a].String())
		}
	}
	return strings.Join(words, ",")
}

// Proven are addresses that a node has proven, with the term of its holding.
type Proven map[netip.Addr]uint64

// ReadProven reads the annotation, and passes over what it does not understand: a node writes it.
func ReadProven(text string) Proven {
	out := Proven{}
	for word := range strings.SplitSeq(text, ",") {
		address, number, _ := strings.Cut(word, "=")
		a, err := netip.ParseAddr(address)
		term, termErr := strconv.ParseUint(number, 10, 64)
		if err == nil && termErr == nil && len(out) < maxReported {
			out[a] = term
		}
	}
	return out
}

// String is the annotation.
func (p Proven) String() string {
	var words []string
	for _, a := range slices.SortedFunc(maps.Keys(p), netip.Addr.Compare) {
		if len(words) < maxReported {
			words = append(words, a.String()+"="+strconv.FormatUint(p[a], 10))
		}
	}
	return strings.Join(words, ",")
}
