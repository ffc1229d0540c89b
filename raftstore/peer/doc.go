// SPDX-License-Identifier: Apache-2.0

// Package peer connects the servers of one store to one another: it carries raft's messages and calls, over connections
// that a dialer and a listener provide. These authenticate the two ends (mutual TLS). This package checks that the two
// ends belong to one cluster and are the servers that they should be.
//
// It owns the listener, every connection made over it and the handshake. It also owns what can be learned from them:
// the leader seen, when a peer last answered, and that a leader's process has ended. It never looks into log entries,
// never decides about membership, and keeps nothing on disk.
//
// Transport has raft's side. It consists of connections, which accepts, makes and ends them; calls; leaderObserver,
// which observes the leader; and peers, which is what is known of each server.
//
// # Connections
//
// Each begins with a handshake that names the cluster, the sender, and the server that the dialer wants to reach. A
// server whose directory is new has a new id. So if another member has the address now, it refuses the connection, with
// a reason, as *RefusedError. After the handshake, the connection serves raft or calls.
//
// Raft's messages go through four of hashicorp/raft's NetworkTransport: one for heartbeats, pre-votes and leadership
// transfers, with a short timeout, which also has the listener's side; one for votes and one for entries, whose answers
// wait for a disk; one for snapshots, which only have to make progress. These of its properties are corrected here:
//
//   - Its pool keeps connections to a peer that has restarted. A message that fails on a broken connection closes all
//     connections that were made before the message, and is sent again. Raft's messages can be repeated.
//   - Its dialer gets only an address. So the id is made a part of the address (target). A map from address to id would
//     be a race between two callers.
//   - Raft's pipeline sends a lagging follower many entries for each new one or each CommitTimeout, whatever the follower
//     can accept. It blocks for ever after a refusal, and a failed message counts as contact there. So it is not used:
//     raft sends a message when the one before is answered.
//   - Raft bounds a message by the number of its entries. Here it has as many entries as fit a size, which follows what
//     the peer answers in time. See peer.fitToSize.
//   - Its deadline for entries is the same for any size. Here it grows with the size.
//   - After a loss of packets, TCP retransmits on a connection at growing intervals. When heartbeats arrive on a new
//     connection, the old ones are ended.
//   - Its deadline for a snapshot is hours for a large one. The server that receives a snapshot waits in raft's main
//     loop, and has no deadline. Here both sides only need progress.
//   - Raft handles heartbeats beside its main loop, and so can make two leaders of one term. Here they go through the
//     main loop. While that waits for a disk, the transport answers the heartbeats of the leader that raft follows, as
//     Options.Follows says. See Transport.handleHeartbeat.
//   - Raft may send a commit index beyond what its message proves the follower to have. Here it is bounded by that. See
//     boundCommit.
//   - Raft sends again what this server's snapshot covers, and installs snapshots that the server does not need. See
//     appendfilter.Filter.
//   - Raft dials the address in its configuration, which it can only change once there is a leader. A server that does
//     not answer there is dialed where it was met last. See movedServers.
//   - Closing it leaves its connections, and so their goroutines. Transport closes them.
//
// Calls go through gRPC without generated code: one method, whose message is a name and bytes. There is one connection
// to each address. After packets were lost there may be two: calls do not begin on a connection that waits for TCP's
// next retransmission, but those under way continue there beside a new connection. See backsOff.
//
// # Goroutines
//
// Close ends these goroutines and waits for them:
//
//   - the accept loop, and one for each handshake (bounded in time and number);
//   - one that passes messages on to raft;
//   - one for a snapshot that this server does not need, which it reads to the end;
//   - one for a peer that is being sent the commit index (see Committed);
//   - at most one that dials a leader whose connection broke (see OnLeaderEnd; less than a second);
//   - gRPC's;
//   - NetworkTransport's, one for each incoming connection. It waits until raft's main loop takes a message and answers
//     it, heartbeats too (see Transport.handleHeartbeat), or until the message is refused (see Transport.forwardToRaft).
//
// Without traffic none of them wakes, with two exceptions. The goroutine that sends entries to a peer that is down
// waits for it for 30 s, and checks every 50 ms. The goroutine of a heartbeat that raft's main loop has not taken after
// 25 ms checks once whether the heartbeat can be answered without raft.
package peer
