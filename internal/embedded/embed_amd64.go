// SPDX-License-Identifier: Apache-2.0

package embedded

import "embed"

// The folder holds a committed README besides what make embedded writes, so that this compiles without it.
//
//go:embed all:files/amd64
var embedded embed.FS

const embeddedRoot = "files/amd64"
