// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"strconv"
	"strings"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// newestLevel is how new the log entries are that this version can read. A change that
// adds a kind of command, a flag, or anything else to log entries that a version
// before cannot read raises it by one, and has the leader write that only where
// replica.level is as high. The levels so far:
//
//	1  everything up to format 2 of the directory
const newestLevel = 1

// A member's level is part of its address for raft: HOST:PORT#RANDOM@LEVEL, without
// the last part for level 1. So it is in raft's configuration: every server knows
// it, from the same entry of the log on, also of members that are away; and a
// server that comes back with another version says so as it says that it moved.

// withLevel adds a level to an address for raft.
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

// lowestLevel is what all members can read, with or without a vote.
func lowestLevel(members []raft.Server) int {
	lowest := 0
	for _, m := range members {
		if level := levelOf(m.Address); lowest == 0 || level < lowest {
			lowest = level
		}
	}
	return max(lowest, 1)
}

// level is the newest level of entries that may be written: all members that the
// log has at its end can read it. It never falls, since readable refuses who would
// lower it, and so every member can read all that was written before: an
// entry comes after the members that could read it, in every log that has it.
func (r *replica) level() int {
	members, _ := r.dir.Log.Members()
	return lowestLevel(members.Servers)
}

// readable returns an error if a server cannot become or stay a member, for the
// others write entries that it cannot read.
func readable(members []raft.Server, address raft.ServerAddress) error {
	have, need := levelOf(address), lowestLevel(members)
	if have >= need {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition,
		"raftstore: the version of the server at %s is too old: it reads log entries up to level %d, "+
			"and the cluster writes those of level %d. Nothing was changed. Start it with the version that the other servers run",
		dialAddress(address), have, need)
}
