// SPDX-License-Identifier: Apache-2.0

package embedded

import "embed"

// The folder holds a committed README besides the files of make embedded, so this compiles without these files.
//
//go:embed all:files/arm64
var embedded embed.FS

const embeddedRoot = "files/arm64"
