// SPDX-License-Identifier: Apache-2.0

// Package peer is how the servers of one store speak to one another: raft's
// messages and calls, over connections that a dialer and a listener give. Who
// may connect at all is decided there (mutual TLS); here it is decided whether
// the two ends belong together.
//
// It owns the listener, every connection made over it, the handshake, and what
// can be learned on the way: the leader seen, when a peer last answered, that a
// server has ended. It never looks into log entries, never decides about
// membership, and keeps nothing on disk.
//
// # Connections
//
// Each starts with a handshake: cluster, sender, and whom the dialer means to
// reach. A server's id is new whenever its directory is, so an address that
// another member holds by now is refused in words, as *RefusedError. Then the
// connection serves raft or calls.
//
// Raft's messages go through hashicorp/raft's NetworkTransport, three of them:
// one for heartbeats and votes, with a short timeout and the listener's side;
// one for entries, whose answers wait for a disk; one for snapshots, which only
// have to make progress. What it leaves to be wished is mended around it:
//
//   - Its pool keeps connections of a peer that has restarted. A message that
//     fails on a broken connection drops all that were made before it and is
//     sent again; raft's messages can be repeated.
//   - Its dialer knows only an address. The id travels inside it (target), so
//     that there is no map that two callers could race for.
//   - Raft's pipeline sends a follower that lags so many entries for each new one
//     or each CommitTimeout, whatever it could take; it blocks for ever after a
//     refusal; and a failed message counts as contact there. So there is none:
//     raft sends a message when the one before is answered.
//   - Raft bounds a message by the number of its entries. Here it has as many as
//     fit a size, which follows what the peer answers in time. See Transport.fill.
//   - Its deadline for entries is the same for any size. Here large ones get more.
//   - After a silent loss of packets, TCP tries again on a connection later and
//     later. When heartbeats come through on a new one, the old ones are ended.
//   - Its deadline for a snapshot is hours for a large one, and who gets a
//     snapshot, in raft's main loop, waits for ever. Here both only have to see
//     progress.
//   - Raft handles heartbeats beside its main loop, and so can make two leaders
//     of one term. Here they go through the main loop; only while that waits for
//     a disk, those of the leader that raft follows by what Options.Follows says
//     are answered in its stead. See Transport.heard.
//   - Raft may say that more is committed than its message proves the follower to
//     have. Here it says no more than that. See proven.
//   - Raft asks again for what this server's snapshot covers, and installs
//     snapshots that it does not need. See appendfilter.Filter.
//   - Raft dials the address that its configuration has, which it can only change
//     once there is a leader. A server that does not answer there is dialed where
//     it was met last. See moved.
//   - Closing it leaves its connections, and so their goroutines. Transport
//     closes them.
//
// Calls go through gRPC without generated code: one method, whose message is
// a name and bytes. There is one connection to each address, except
// after packets were lost: calls do not begin on one that waits for TCP to try
// again, and go on there beside a new one. See backsOff.
//
// # Goroutines
//
// Close ends and waits for all of them: the accept loop, one for each handshake (bounded in time and number), one that
// passes messages on to raft, one for a snapshot that this server does not need, which it reads to the end, one for a
// peer that is being sent the commit index (see Committed), at most one that dials a leader whose connection broke
// (see OnGone; less than a second), gRPC's, and NetworkTransport's, which has one for each incoming connection: it
// waits there until raft's main loop takes a message and answers it, heartbeats too (see Transport.heard), or until the
// message is refused since raft takes none (see Transport.passOn). None wakes without traffic, except that entries for
// a peer that is away look every
// 50 ms, for 30 s, whether it is back, and that a heartbeat which raft's main
// loop does not come for looks once, after 25 ms, whether it can be answered in
// raft's stead.
package peer
