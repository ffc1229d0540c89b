// SPDX-License-Identifier: Apache-2.0

// Package preflight checks whether a host has what coracle needs: kernel, control groups, network, ports, disk, memory,
// rights, clock. Each finding has a hint.
//
// It owns the list of needs and their texts. It leaves no change on the host. What has to be tried, such as making a
// bridge, is tried in a namespace or a temporary file that is removed afterwards. A setting that coracle changes by
// itself, such as ip_forward, is no finding.
package preflight
