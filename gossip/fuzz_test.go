// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"log/slog"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/coracle-k8s/coracle/internal/truncate"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// counts is a Reach that counts its calls.
type counts struct {
	nopObserver
	left, reported int
}

func (r *counts) NodeLeft(string)            { r.left++ }
func (r *counts) PeerReportedFailure(string) { r.reported++ }

// unheard is a member with two others, which hears nothing but what a test says.
func unheard(reach Reach) *Member {
	m := &Member{
		o:      Options{Name: "self", Reach: reach, Logger: slog.New(slog.DiscardHandler), Most: func() int { return 3 }},
		roster: newRoster("self", time.Now), log: &libraryLog{logger: slog.New(slog.DiscardHandler)},
	}
	for _, name := range []string{"self", "a", "b"} {
		m.roster.update(name, func(i *Info) { i.State = Alive })
	}
	return m
}

// FuzzMessage: a message of a member's, who may be anything with the key, makes nothing a member, and no member a dead
// one.
func FuzzMessage(f *testing.F) {
	f.Add([]byte{byeMessage, 'a'})
	f.Add([]byte{failureMessage, 'b'})
	f.Add([]byte{byeMessage, 's', 'e', 'l', 'f'})
	f.Add([]byte{3, 0xff})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		reach := &counts{}
		m := unheard(reach)
		delegate{m}.NotifyMsg(text)
		all := m.Members()
		testenv.Equal(t, len(all), 3, "members:")
		for _, i := range all {
			testenv.Equal(t, i.State, Alive, "%s is", i.Name)
		}
		testenv.True(t, reach.left+reach.reported <= 1, "counted %+v", reach)
	})
}

// FuzzMember: what a new member says of itself may be anything. None becomes one that no Node could be, or beyond the
// number of Nodes, and what is kept of it is short and does no harm on a terminal.
func FuzzMember(f *testing.F) {
	f.Add("c", fullMeta.encode(), []byte{10, 0, 0, 7}, uint16(6443))
	f.Add("a", fullMeta.encode(), []byte{10, 0, 0, 7}, uint16(0))
	f.Add("a", []byte{metaFormat, tagVersion, 3, 'v', 0x1b, '['}, []byte{1, 2, 3}, uint16(1))
	f.Add("self", []byte{}, []byte{}, uint16(1))
	f.Add("../\x1b[2J", []byte{metaFormat, tagProtocol, 1, 99}, []byte("sixteen bytes.. "), uint16(1))
	f.Fuzz(func(t *testing.T, name string, meta, address []byte, port uint16) {
		m := unheard(nopObserver{})
		n := &memberlist.Node{Name: name, Meta: meta, Addr: address, Port: port}
		if err := (names{m}).NotifyAlive(n); err != nil {
			testenv.Equal(t, len(m.Members()), 3, "%q was refused and is a member:", name)
			return
		}
		testenv.Require(t, name == "self" || name == "a" || name == "b", "%q is one too many", name)
		events{m}.NotifyJoin(n)
		events{m}.NotifyUpdate(n)
		all := m.Members()
		testenv.Require(t, len(all) == 3, "%d members", len(all))
		for _, i := range all {
			if checkName(i.Name) != nil || len(i.API) > maxAddresses || len(i.Addresses) > maxAddresses || len(i.PodSubnets) > maxPodSubnets ||
				len(i.Version) > maxVersionText || truncate.Printable(i.Version, "") != i.Version {
				t.Errorf("kept: %+v", i)
			}
		}
		events{m}.NotifyLeave(n)
	})
}
