// SPDX-License-Identifier: Apache-2.0

package appendfilter

import "github.com/hashicorp/raft"

// After is for the tests from outside.
func (f *Filter) After(m *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	return f.withoutCovered(m)
}
