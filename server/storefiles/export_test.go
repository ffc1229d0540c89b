// SPDX-License-Identifier: Apache-2.0

package storefiles

import "crypto/sha256"

// Trailed is data as Maintenance.Snapshot streams it.
func Trailed(data string) []byte {
	out := append([]byte(data), make([]byte, -len(data)&(backupAlign-1))...)
	sum := sha256.Sum256(out)
	return append(out, sum[:]...)
}
