// SPDX-License-Identifier: Apache-2.0

// Package ha shows that a cluster of several machines lives on when some of them do not: whole clusters of real
// processes on a site (test/harness), with clients that write, watch and ask all the time, while machines are killed,
// paused, cut off and switched off.
//
// The scenarios have the build tag e2e and a short and a whole length (CORACLE_HA_WHOLE=1, `make e2e-ha`); the
// benchmarks have the build tag bench (`make bench-ha`), and measure upstream's programs by the same code.
package ha
