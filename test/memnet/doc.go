// SPDX-License-Identifier: Apache-2.0

// Package memnet is a network in memory whose links can be cut, healed and
// slowed, one direction at a time: the ground for tests of a cluster's
// behaviour under partitions, inside testing/synctest bubbles (whose fake time
// it follows) as well as outside.
//
// It models TCP as a program sees it: connections are ordered streams of bytes
// in bounded buffers, with deadlines.
//
//   - A cut link loses packets in silence: writes succeed until the buffer is
//     full, the other side reads nothing, new dials block until their context
//     ends. A cut in either direction stops dials, since both are needed to
//     connect. What had arrived before the cut can still be read.
//   - A healed link delivers what was sent meanwhile, in order, as
//     retransmission would, and lets hanging dials through. Backoff makes that
//     as slow as TCP's. A connection's Retransmits says, as the kernel's do, how
//     often something was sent again that is still not acknowledged.
//   - Delay and jitter hold for each write. One connection keeps its order;
//     several are reordered against one another. Rate holds for each connection.
//   - Reset is a crashed process: its ends fail at once, its peers' when the
//     news crosses the link; its listeners are closed.
//   - A dial to an address where no process listens is refused.
//
// In a bubble, time stands still while a goroutine waits for a sync.Mutex or a
// sync.Once. So code under test must hold neither while it waits for the
// network or for time, or the test does not end.
//
// It owns no goroutines: timers of package time wake who waits. It never
// touches a real network, and never duplicates or damages bytes.
package memnet
