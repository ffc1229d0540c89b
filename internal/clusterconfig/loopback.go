// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import "net/netip"

// Loopback is the loopback address of this process' listeners on random ports: containerd's for streams, and the relay
// of registries. A pod's host port never receives what is sent to this address. So these ports need not be known, or be
// reserved from pods.
var Loopback = netip.AddrFrom4([4]byte{127, 67, 79, 82})
