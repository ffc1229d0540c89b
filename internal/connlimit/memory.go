// SPDX-License-Identifier: Apache-2.0

package connlimit

import "github.com/coracle-k8s/coracle/internal/memory"

const (
	// unauthenticatedBytes is what a connection over which no request was authenticated costs an HTTP server with TLS,
	// and unauthenticatedShare the part of the memory that those of a port may have together.
	unauthenticatedBytes, unauthenticatedShare = 29 << 10, 64
	// minUnauthenticated and maxUnauthenticated bound how many there may be: clients are unauthenticated for a moment
	// each, and every one has a file descriptor.
	minUnauthenticated, maxUnauthenticated = 256, 4096
)

// ByMemory is how many connections over which no request was authenticated a port of this process may have. It is the
// least number where an error says that the memory is not known.
func ByMemory() (int, error) {
	limit, err := memory.Self()
	return byMemory(limit.Bytes), err
}

func byMemory(bytes int64) int {
	return int(min(max(bytes/unauthenticatedShare/unauthenticatedBytes, minUnauthenticated), maxUnauthenticated))
}
