// SPDX-License-Identifier: Apache-2.0

package status

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// UsagePath is the path at which a server's admin socket reports what takes the space in its store.
const UsagePath = "/v1/store/usage"

// StoreUsage says what takes the space in a store, as one server has it. Sizes are in bytes.
type StoreUsage struct {
	StoreSize
	Keys int64 `json:"keys"`
	// Kinds are the kinds of objects in each namespace, those with the most bytes first. Their bytes together are Live.
	Kinds []KindUsage `json:"kinds"`
}

// KindUsage is what the objects of one kind in one namespace take.
type KindUsage struct {
	Kind      string `json:"kind"`                // RESOURCE or RESOURCE.GROUP, or the beginning of a key that is no object's
	Namespace string `json:"namespace,omitempty"` // empty for kinds without one
	Keys      int64  `json:"keys"`
	Bytes     int64  `json:"bytes"` // keys, values, and what is used in memory beside them
}

// SortUsage sorts by bytes, the most first.
func SortUsage(kinds []KindUsage) {
	slices.SortFunc(kinds, func(a, b KindUsage) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace))
	})
}

// ByKind returns the sums of all namespaces, the most bytes first.
func (u *StoreUsage) ByKind() []KindUsage {
	sums := map[string]KindUsage{}
	for _, k := range u.Kinds {
		sum := sums[k.Kind]
		sums[k.Kind] = KindUsage{Kind: k.Kind, Keys: sum.Keys + k.Keys, Bytes: sum.Bytes + k.Bytes}
	}
	out := slices.Collect(maps.Values(sums))
	SortUsage(out)
	return out
}

// Bytes formats a size for users.
func Bytes(n int64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	case n < 1_000_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	case n < 1_000_000_000:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

// RefusalProblem says what it means that a store refuses writes, and what to do. reason is a value of the label of the
// metric coracle_store_writes_refused. It returns "" for no reason.
func RefusalProblem(reason string) string {
	switch reason {
	case "":
		return ""
	case "disk_full":
		return "writes are refused: a disk is full, this server's or those of too many others. Nothing is lost, and reads go on. Free some " +
			"space there; writes are accepted again by themselves"
	case "quota":
		return "writes are refused: the store's quota is used up. Nothing is lost; reads, deletions and small writes that fit in go on. " +
			"coracle store usage says what takes most: delete what is not needed, or give the servers' machines or control groups more memory"
	}
	return "writes are refused or fail: the disk of the store does not take them. Nothing is lost, and reads go on. Check the disk and the " +
		"kernel's log on this machine; writes are accepted again by themselves"
}
