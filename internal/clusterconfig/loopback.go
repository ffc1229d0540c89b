// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import "net/netip"

// Loopback is the loopback address of this program's listeners at random ports: containerd's for streams, and the relay
// of registries. No host port of a pod takes what is sent there, so that none of these ports need be known, or kept
// from pods.
var Loopback = netip.AddrFrom4([4]byte{127, 67, 79, 82})
