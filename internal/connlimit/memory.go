// SPDX-License-Identifier: Apache-2.0

package connlimit

import "github.com/coracle-k8s/coracle/internal/memory"

const (
	// unauthenticatedBytes is what an unauthenticated connection costs an HTTP server with TLS, in bytes.
	// unauthenticatedShare is the fraction of the memory (one in so many) that such connections of a port may use.
	unauthenticatedBytes, unauthenticatedShare = 29 << 10, 64
	// minUnauthenticated and maxUnauthenticated are the limits of the number of such connections. Each client is
	// unauthenticated for a moment only, and each connection has a file descriptor.
	minUnauthenticated, maxUnauthenticated = 256, 4096
)

// ByMemory returns how many unauthenticated connections a port of this process may have. It returns the minimum and an
// error when the memory is not known.
func ByMemory() (int, error) {
	limit, err := memory.Self()
	return byMemory(limit.Bytes), err
}

func byMemory(bytes int64) int {
	return int(min(max(bytes/unauthenticatedShare/unauthenticatedBytes, minUnauthenticated), maxUnauthenticated))
}
