// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/raftstore/election"
	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// TestNamesOfCalls: servers of other versions know what is asked and answered by these names, so a field that is
// renamed keeps its own in a tag.
func TestNamesOfCalls(t *testing.T) {
	for _, test := range []struct {
		of   any
		want string
	}{
		{infoReply{}, "Cluster ID Leader Members Applied Full Stalled Version Hostname Quota Newest ClusterQuota Refusing"},
		{raiseCall{}, "To Check"},
		{infoCall{}, "ClusterQuota"},
		{joinCall{}, "ID Address Share Quota"},
		{removeCall{}, "Name"},
		{promoteCall{}, "Name"},
		{leaseCall{}, "ID Keys"},
		{etcdapi.Lease{}, "Exists Granted Left Keys"},
		{reachRequest{}, "Majority"},
		{reachReply{}, "Reached Unfit"},
		{election.Report{}, "ID Silent Follower Leads Standing Polling Ended Unanswered AskerUnanswered " +
			"Term LogTerm LogIndex FlushTakes VoteFlush ClockOff Reached"},
		{electionStateRequest{}, "Within Reach Calls Address"},
		{leaderCall{}, "ID Address Term"},
	} {
		var names []string
		of := reflect.TypeOf(test.of)
		for i := range of.NumField() {
			f := of.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" {
				name = f.Name
			}
			names = append(names, name)
		}
		if got := fmt.Sprint(names); got != "["+test.want+"]" {
			t.Errorf("%T has the names %s, want [%s]", test.of, got, test.want)
		}
	}
}
