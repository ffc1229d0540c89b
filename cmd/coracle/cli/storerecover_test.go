// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/storefiles"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestPlanNamesPossibleLoss(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	var out bytes.Buffer
	printPlan(&out, storefiles.Plan{
		Members: []raftstore.Member{
			{ID: 1, Name: "one", Address: "192.0.2.1:6443", Voter: true, Self: true},
			{ID: 2, Name: "two", Address: "192.0.2.2:6443", Voter: true},
			{ID: 3, Name: "three", Address: "192.0.2.3:6443", Voter: true},
			{ID: 4, Name: "four", Address: "192.0.2.4:6443"},
		},
		LastIndex: 1234, LastTerm: 5, Written: now.Add(-time.Hour), Revision: 99, Keys: 7, Bytes: 1500,
	}, now)
	for _, want := range []string{
		"7 keys, 1.5 kB, at revision 99", "newest log entry is 1234 of term 5, written 2026-01-02 02:04:05 (1h0m ago)",
		"at least 2 of the 3 voters", "takes nothing from the other servers (two, three, four)", "anything after entry 1234", "this server",
	} {
		testenv.True(t, strings.Contains(out.String(), want), "no %q in:\n%s", want, out.String())
	}
}

// TestRecoveryIsRefusedWhileOthersAnswer: whom the command asked, by which records and with what result, is printed. It
// refuses while one answers, unless there may be a second cluster.
func TestRecoveryIsRefusedWhileOthersAnswer(t *testing.T) {
	silent := storefiles.Other{Name: "two", Address: "192.0.2.2:6443", Server: true, From: []string{"store", "PEERS"}, Reply: "by TCP: refused"}
	alive := storefiles.Other{Name: "agent-1", Address: "192.0.2.9:6443", From: []string{"gossip"}, Answers: true, Reply: "by TLS: it forwards"}
	for _, c := range []struct {
		others  []storefiles.Other
		second  bool
		prints  []string
		refuses string
	}{
		{nil, false, []string{"none was asked"}, ""},
		{[]storefiles.Other{silent}, false, []string{"192.0.2.2:6443", "store, PEERS", "by TCP: refused", "Silence is no proof"}, ""},
		{[]storefiles.Other{silent, alive}, false, []string{"YES", "by TLS: it forwards"}, "a server answers at 192.0.2.9:6443"},
		{[]storefiles.Other{silent, alive}, true, []string{"YES"}, ""},
	} {
		var out bytes.Buffer
		testenv.NoError(t, printOthers(&out, c.others))
		for _, want := range c.prints {
			testenv.Contains(t, out.String(), want, "")
		}
		if err := refuseRecovery(c.others, c.second); c.refuses == "" {
			testenv.NoError(t, err)
		} else {
			testenv.WantError(t, err, c.refuses)
			testenv.WantError(t, err, "Nothing was changed")
		}
	}
}
