// SPDX-License-Identifier: Apache-2.0

package mvcc

import "bytes"

// InRange says whether key is in etcd's range [from, end). Without an end that is the key from alone. An end of one
// zero byte means all keys from from on.
func InRange(key, from, end []byte) bool {
	switch {
	case len(end) == 0:
		return bytes.Equal(key, from)
	case bytes.Compare(key, from) < 0:
		return false
	}
	return isOpenEnd(end) || bytes.Compare(key, end) < 0
}
