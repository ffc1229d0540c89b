// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"strconv"
	"strings"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// newestLevel is the newest level of log entries that this version can read. A change that adds to log entries what an
// earlier version cannot read, such as a kind of command or a flag, raises it by one. The leader may then write that
// only where replica.level is as high. The levels so far:
//
//	1  everything up to format 2 of the directory
const newestLevel = 1

// A member's level is part of its address for raft: HOST:PORT#RANDOM@LEVEL, without @LEVEL for level 1. So the level is
// in raft's configuration: all servers know it from the same log entry on, also of members that are down. A server that
// comes back with another version announces its new level as it announces a new address.

// withLevel returns the raft address with the member's level of log entries, as ADDRESS@LEVEL. Level 1 is not written.
func withLevel(address raft.ServerAddress, level int) raft.ServerAddress {
	if level <= 1 {
		return address
	}
	return address + raft.ServerAddress("@"+strconv.Itoa(level))
}

func levelOf(address raft.ServerAddress) int {
	_, member, _ := strings.Cut(string(address), "#")
	_, level, _ := strings.Cut(member, "@")
	if n, err := strconv.Atoi(level); err == nil && n > 1 {
		return n
	}
	return 1
}

// lowestLevel returns the newest level that all members can read, with or without a vote.
func lowestLevel(members []raft.Server) int {
	lowest := 0
	for _, m := range members {
		if level := levelOf(m.Address); lowest == 0 || level < lowest {
			lowest = level
		}
	}
	return max(lowest, 1)
}

// level returns the newest level of entries that may be written: all members in the newest configuration of the log can
// read it. It never falls, since checkReadable refuses a server that would lower it. So every member can read all
// earlier entries: in every log, an entry comes after the configuration of the members that can read it.
func (r *replica) level() int {
	members, _ := r.dir.Log.Members()
	return lowestLevel(members.Servers)
}

// checkReadable returns an error if a server cannot become or stay a member, since the others write entries that it
// cannot read.
func checkReadable(members []raft.Server, address raft.ServerAddress) error {
	have, need := levelOf(address), lowestLevel(members)
	if have >= need {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition,
		"raftstore: the version of the server at %s is too old: it reads log entries up to level %d, "+
			"and the cluster writes those of level %d. Nothing was changed. Start it with the version that the other servers run",
		dialAddress(address), have, need)
}
