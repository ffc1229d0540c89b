// SPDX-License-Identifier: Apache-2.0

// Package arm64 has the scenario of a cluster of one node on a machine with the other processor: QEMU emulates a board
// with four Cortex-A72, as a Raspberry Pi 4 has them, which boots Debian's kernel. Every instruction is translated, so
// it takes many minutes; make arm64-test runs it.
package arm64
