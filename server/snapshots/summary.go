// SPDX-License-Identifier: Apache-2.0

package snapshots

import "github.com/coracle-k8s/coracle/internal/status"

// Summary returns how many snapshots this machine has, how old the newest is, and the number of failures of the
// schedule. It reads only names and headers.
func (k *Keeper) Summary() (status.Snapshots, error) {
	out := status.Snapshots{Failures: k.counts.failures.Load(), Scheduled: k.o.Schedule != nil}
	all, err := k.folder.list()
	if err != nil {
		return out, err
	}
	for i := range all {
		if all[i].Problem != "" {
			continue
		}
		out.Count++
		if all[i].Time.After(out.Last) {
			out.Last, out.LastSize = all[i].Time, all[i].Size
		}
	}
	return out, nil
}
