// SPDX-License-Identifier: Apache-2.0

// Package preflight finds out whether a host has what coracle needs: kernel, control groups, network, ports, disk,
// memory, rights, clock. Each finding says what to do.
//
// It owns the list of needs and the words about them. It changes nothing on the host: what has to be tried, as making
// a bridge, it tries in a network namespace that ends with the trial. What coracle sets by itself, as ip_forward, is
// no finding.
package preflight
