// SPDX-License-Identifier: Apache-2.0

package balancer

// Connected says whether a server has connections of this machine's. One that does not answer loses them.
func (b *Balancer) Connected() bool { return len(b.inUse()) > 0 }
